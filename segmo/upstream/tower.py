"""A model's vision encoder as rows in, rows out, whatever a family's pixels and outputs look like.

Legend: R rows, H hidden size, V videos, F frames of all videos, Q words.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segmo.compiler.chat import chat_of
from segmo.errors import PromptError
from segmo.families import Family, description_of, encoder_of, video_encoder_name
from segmo.runtime.encoded import VideoRows
from segmo.upstream.prompt import Prompt, Runs
from segmo.upstream.shapes import PICTURES, VIDEOS, PooledPatches, Taken, shape_of
from segmo.upstream.video_call import Beside, VideoCall

_PLACEHOLDERS = ("video_token_id", "video_token_index", "image_token_id", "image_token_index", "image_patch_id")


class Tower(torch.nn.Module):
    """The encoder of a model, up to the features that take the places of video tokens.

    As a module it takes rows of pixels and what goes beside them, and gives a tuple of features, (R, H) each, in
    prompt order.
    """

    model: Any
    base: Any
    original: Callable[..., Any]

    def __init__(self, model: Any, family: Family) -> None:
        super().__init__()
        self.name = video_encoder_name(model.base_model)
        original: Any = encoder_of(model.base_model, "video" if "video" in self.name else "image")
        # Not registered as modules: the model owns its encoder.
        self.__dict__.update(model=model, base=model.base_model, original=getattr(original, "original", original))
        self.signature = inspect.signature(self.original)
        self.family = family
        self.shape = shape_of(self.signature.parameters, model.config, {})
        self.outputs = 1
        self.made: Any = None
        self.pieces, self.whole = 0, False  # parts of what the method gave last, and whether it gave one tensor
        self.parts = "videos"  # what these parts are

    def placeholder(self, ids: Tensor) -> int:
        """The token that stands for a video in a prompt: the video's own, or the image's where that is not there."""
        told = description_of(self.model).placeholder
        known = [told, *(getattr(self.model.config, name, None) for name in _PLACEHOLDERS)]
        tokens = [int(token) for token in known if token is not None]
        return next((token for token in tokens if bool((ids == token).any())), tokens[0])

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], prompt: Prompt | None) -> VideoCall | None:
        """A call's videos; None for one without any.

        Args:
            args, kwargs: of the model's own method.
            prompt: that it is called for; without one, all frames are taken to be of one video where nothing tells.

        Raises:
            PromptError: the pixels are not those of the prompt, or an argument cannot be told into frames.
        """
        bound = self.signature.bind_partial(*args, **kwargs).arguments
        given = {**bound, **bound.pop("kwargs", {})}
        if given.get(VIDEOS) is None and (VIDEOS in self.signature.parameters or given.get(PICTURES) is None):
            return None
        pixels = {name: given[name] for name in (VIDEOS, PICTURES) if isinstance(given.get(name), Tensor)}
        shape = shape_of(self.signature.parameters, self.model.config, pixels)
        if shape is None:
            sizes = {name: tuple(value.shape) for name, value in pixels.items()}
            raise PromptError(f"frames below 1: frames cannot be told apart in pixels of these sizes: {sizes}")
        self.shape = shape
        given.pop("return_dict", None)
        runs = None if prompt is None else prompt.runs(self.placeholder(prompt.ids), chat_of(self.model).tokens)
        taken = shape.take(given, lambda count: _in_prompt(count, runs))
        for name, value in given.items():
            if isinstance(value, Tensor):
                raise PromptError(
                    f"frames below 1: the vision encoder is handed {name}, and SegMo cannot tell which part of it is "
                    "which frame's; leave it out, or set frames=1"
                )
        beside = Beside(taken.frames, taken.per_frame, taken.per_video, given)
        cells, trailing = self._cells(taken, runs)
        token_rows = VideoRows(taken.frames, cells, trailing)
        return VideoCall(taken.pixels, beside, VideoRows(taken.frames, taken.rows), token_rows)

    def _cells(self, taken: Taken, runs: Runs | None) -> tuple[tuple[int, ...], int]:
        """Tokens of a frame of each video, and those behind the last frame of each."""
        if taken.cells is not None:
            return taken.cells, 0
        if self.family.cells_per_frame is not None:
            return (self.family.cells_per_frame(self.model.config),) * len(taken.frames), self.family.trailing
        lengths: Sequence[int] = () if runs is None else runs.lengths
        if runs is not None and len(lengths) != sum(taken.frames) == len(runs.parts):
            lengths = runs.frame_lengths()
        return _cells_in_prompt(taken.frames, lengths)

    def forward(self, pixels: Tensor, beside: Beside) -> tuple[Tensor, ...]:
        """Features of every frame, through the model's own method."""
        assert self.shape is not None
        arguments = self.shape.put(pixels, beside.frames, {**beside.per_frame, **beside.per_video})
        made = self.original(**arguments, **beside.plain, return_dict=True)
        self.made, self.pieces = type(made), len(made.pooler_output)
        self.whole = isinstance(made.pooler_output, Tensor)
        levels = getattr(made, "deepstack_features", None) or ()
        features = tuple(_flat(item) for item in (made.pooler_output, *levels))
        self.outputs = len(features)
        return features

    def settle(self, trial: VideoCall) -> None:
        """Remembers, from the call that was tried last, which parts the model's own method gives features in."""
        frames = trial.beside.frames
        self.parts = "videos" if self.pieces == len(frames) else "frames" if self.pieces == sum(frames) else "all"

    def absent(self, features: Tensor, ids: Tensor) -> Tensor:
        """What stands for a missing feature, (H,): zeros in its token's place, behind the merge."""
        zeros = torch.zeros_like(features[0])
        if not isinstance(self.shape, PooledPatches):
            return zeros
        # Molmo adds features to what the placeholder's embedding is.
        placeholder = torch.tensor([self.placeholder(ids)], device=ids.device)
        return zeros - self.embed(placeholder)[0].to(zeros)

    def output(self, call: VideoCall, features: Sequence[Tensor], rows: int) -> Any:
        """What the model's own method gives, around these features, for a batch of so many rows."""
        first, *levels = (self._split(call, item, rows) for item in features)
        more = {"deepstack_features": levels} if levels else {}
        return self.made(pooler_output=first, **more)

    def _split(self, call: VideoCall, features: Tensor, rows: int) -> Any:
        if self.parts == "all":
            return features if self.whole else list(torch.split(features, len(features) // rows))
        sizes = call.tokens()
        if self.parts == "frames":
            pairs = zip(call.token_rows.frames, call.token_rows.rows, strict=True)
            sizes = [cells for frames, cells in pairs for _ in range(frames)]
        return torch.unflatten(features, 0, (len(sizes), -1)) if self.whole else torch.split(features, sizes)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of words, (Q, H)."""
        words: Tensor = self.base.get_input_embeddings()(ids)
        return words


def _in_prompt(count: int, runs: Runs | None) -> Sequence[tuple[int, int]]:
    """Frames of each video and pictures of each frame, where the prompt's runs are so many pictures, or share them."""
    if runs is None:
        return [(count, 1)]
    found = len(runs.lengths)
    if found and found != count and count % found == 0:
        return [(count // found, 1)] * found
    if found != count:
        raise PromptError(
            f"the prompt has {found} runs of video tokens and its videos {count} frames; to choose frames "
            "before the encoder every frame must have a run of its own: leave the processor's placeholders be"
        )
    videos = runs.by_video()
    if any(len(set(parts)) > 1 for parts in videos):
        raise PromptError("the frames of a video are cut into different numbers of slices; set frames=1")
    return [(len(parts), parts[0]) for parts in videos]


def _cells_in_prompt(frames: Sequence[int], lengths: Sequence[int]) -> tuple[tuple[int, ...], int]:
    """Tokens of a frame of each video, and those behind each video's last frame, from the runs of a prompt."""
    if len(lengths) == len(frames):
        cells = tuple(length // count for length, count in zip(lengths, frames, strict=True))
        trailing = {length % count for length, count in zip(lengths, frames, strict=True)}
        if len(trailing) == 1 and all(cells):
            return cells, trailing.pop()
    elif len(lengths) == sum(frames):
        places = [sum(frames[:video]) for video in range(len(frames))]
        parts = [lengths[start : start + count] for start, count in zip(places, frames, strict=True)]
        if all(len(set(part)) == 1 for part in parts):
            return tuple(part[0] for part in parts), 0
    elif lengths and sum(lengths) % sum(frames) == 0:
        return (sum(lengths) // sum(frames),) * len(frames), 0
    if not lengths:
        return (0,) * len(frames), 0
    raise PromptError(
        f"the prompt's {sum(lengths)} video tokens, in {len(lengths)} runs, are not whole frames of videos of "
        f"{', '.join(map(str, frames))} frames; leave the processor's placeholders be"
    )


def _flat(features: Any) -> Tensor:
    if isinstance(features, (list, tuple)):
        return torch.cat([_flat(part) for part in features])
    rows: Tensor = features
    return rows.flatten(0, -2)
