"""What a processor makes of a video that comes part by part, and of the questions behind it.

Legend: T tokens, F frames of the language model, f sampled frames, H height, W width of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.errors import REFUSALS, OptionError, PromptError
from segmo.memory.features import ENCODED, FURTHER, GRID, PIXELS

FPS = 2.0  # what frames are taken for when nobody says, as the families' processors sample
_INTERVALS = ("second_per_grid_ts",)

Message = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of a video as the model takes it.

    Attributes:
        sinks: ids of the text in front of the video, (T,); empty for a further part.
        ids: from there to the last video token, (T,).
        suffix: what stands behind it, (T,).
        pixels: arguments of ``get_video_features``, or what it has made of them.
        intervals: arguments of ``get_rope_index`` that belong to the video.
        seconds: when each frame of the language model is shown, (F,).
        each: seconds from one to the next.
    """

    sinks: Tensor
    ids: Tensor
    suffix: Tensor
    pixels: dict[str, Any]
    intervals: dict[str, Any]
    seconds: tuple[float, ...]
    each: float

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Patches in time, height and width; None where a family has none."""
        grid = self.pixels.get(GRID)
        return None if grid is None else tuple(grid[0].tolist())

    @property
    def frames(self) -> int:
        """F."""
        return self.grid[0] if self.grid else self.pixels[PIXELS].shape[1]


def from_outputs(outputs: Mapping[str, Any], video_token: int, fps: float) -> Part:
    """A processor's outputs for a prompt with one video, whatever is asked there.

    Args:
        outputs: for ``generate``; ``input_ids`` (1, N), ``pixel_values_videos`` and what belongs to them, or
            ``mm_encoder_outputs`` in their place.
        video_token: id of the video placeholder.
        fps: sampled frames per second.

    Raises:
        PromptError: it is not one prompt with one video and no image.
    """
    ids = outputs.get("input_ids")
    encoded = outputs.get(ENCODED) is not None and outputs.get(GRID) is not None
    if ids is None or (outputs.get(PIXELS) is None and not encoded):
        raise PromptError(
            "a processor's outputs for a memory need input_ids and pixel_values_videos (or mm_encoder_outputs with "
            "video_grid_thw)"
        )
    ids = torch.as_tensor(ids).cpu()
    grid = outputs.get(GRID)
    if ids.shape[0] != 1 or outputs.get("pixel_values") is not None or (grid is not None and len(grid) != 1):
        raise PromptError("a memory is of one prompt with one video and no image; watch one video at a time")
    mask = outputs.get("attention_mask")
    row = ids[0] if mask is None else ids[0][torch.as_tensor(mask).cpu()[0].bool()]
    if grid is None and outputs.get(PIXELS) is not None and torch.as_tensor(outputs[PIXELS]).dim() == 2:
        raise PromptError("these pixel_values_videos are cut into patches, which need video_grid_thw beside them")
    places = (row == video_token).nonzero()[:, 0]
    if not len(places):
        raise PromptError(f"the prompt holds no video token (id {video_token})")
    first, last = int(places[0]), int(places[-1])
    given = (GRID,) if encoded else (PIXELS, GRID, *FURTHER)
    pixels: dict[str, Any] = {n: torch.as_tensor(outputs[n]).cpu() for n in given if outputs.get(n) is not None}
    if encoded:
        pixels[ENCODED] = outputs[ENCODED]
    intervals = {name: outputs[name] for name in _INTERVALS if outputs.get(name) is not None}
    each = float(torch.as_tensor(intervals[_INTERVALS[0]])[0]) if intervals else (2 if GRID in pixels else 1) / fps
    frames = int(pixels[GRID][0, 0]) if GRID in pixels else pixels[PIXELS].shape[1]
    seconds = tuple(each * frame for frame in range(frames))
    return Part(row[:first], row[first : last + 1], row[last + 1 :], pixels, intervals, seconds, each)


class Script:
    """A processor at work on one video: part after part, and the text behind it.

    Args:
        processor: of transformers.
        video_token: id of the video placeholder.
        fps: sampled frames per second.

    Attributes:
        head: ids that begin every prompt, up to where the video's own text or tokens start.
        lead: ids that the processor puts behind a video's last token, in front of the question.
        sampled: frames that have come.
        last: the last of them, as many as make a frame of the language model, (f, H, W, 3) uint8.
        grid: patches of a frame's height and width; None where frames are not cut into patches.
    """

    def __init__(self, processor: Any, video_token: int, fps: float) -> None:
        lacking = [
            name for name in ("apply_chat_template", "tokenizer", "video_processor") if not hasattr(processor, name)
        ]
        if lacking:
            raise OptionError(
                f"the processor is a {type(processor).__name__} without {', '.join(lacking)}; hand in the model's own "
                "(AutoProcessor), or None and a processor's outputs"
            )
        self.processor, self.video_token, self.fps = processor, video_token, fps
        self.head: list[int] = []
        self.lead: list[int] = []
        self.sampled = 0
        self.last: NDArray[np.uint8] | None = None
        self.grid: tuple[int, int] | None = None

    def first(self, frames: NDArray[np.uint8]) -> Part:
        """The first part of a video, (f, H, W, 3) uint8."""
        text = chat(self.processor, [user("?", video=True)])
        part = from_outputs(self._process(text, frames, 0), self.video_token, self.fps)
        self._learn(part, part, text)
        self._note(part, frames)
        return part

    def learn(self, part: Part) -> None:
        """Takes a prompt that was made elsewhere for the first part; further frames cannot follow it."""
        text = chat(self.processor, [user("?", video=True)])
        blank = np.zeros((2, 64, 64, 3), np.uint8)
        self._learn(part, from_outputs(self._process(text, blank, 0), self.video_token, self.fps), text)

    def _learn(self, part: Part, sample: Part, text: str) -> None:
        """How prompts begin, as in ``part``, and what stands behind a video, as in a ``sample`` of the template.

        Raises:
            PromptError: the processor changes the question.
        """
        known, short = [*part.sinks.tolist(), *part.ids.tolist()], self._short(text)
        same = next((i for i, (a, b) in enumerate(zip(short, known, strict=False)) if a != b), len(part.sinks))
        self.head = known[: min(same, len(part.sinks))]
        behind, suffix = short[short.index(self.video_token) + 1 :], sample.suffix.tolist()
        self.lead = suffix[: len(suffix) - len(behind)]
        if suffix != [*self.lead, *behind]:
            raise PromptError("the processor writes the question differently behind a video; this prompt is not known")

    def more(self, frames: NDArray[np.uint8]) -> Part:
        """The next part. It is processed behind the frame before it, whose text and pixels then go."""
        if self.last is None:
            raise PromptError("this video came as a processor's outputs, so its frames are not known; extend it alike")
        before = len(self.last)
        text = chat(self.processor, [user("?", video=True)])
        if frames.shape[1:] != self.last.shape[1:]:
            raise PromptError(
                f"these frames are {frames.shape[2]} x {frames.shape[1]} pixels, those before them "
                f"{self.last.shape[2]} x {self.last.shape[1]}; a memory is of one video"
            )
        both = np.concatenate([self.last, frames])
        start = self.sampled - before
        part = from_outputs(self._process(text, both, start), self.video_token, self.fps)
        if part.grid is not None and self.grid != part.grid[1:]:
            part = from_outputs(self._process(text, self._sized(both), start, fixed=True), self.video_token, self.fps)
        video = (part.ids == self.video_token).nonzero()[:, 0]
        cells = (len(video) - len(video) % part.frames) // part.frames
        pixels = dict(part.pixels)
        if part.grid is None:
            pixels[PIXELS] = pixels[PIXELS][:, 1:]
        else:
            count, height, width = part.grid
            pixels[PIXELS] = pixels[PIXELS][height * width :]
            pixels[GRID] = torch.tensor([[count - 1, height, width]])
        seconds = tuple((self.sampled + frame * before) / self.fps for frame in range(part.frames - 1))
        rest = part.ids[int(video[cells - 1]) + 1 :]
        part = Part(part.ids[:0], rest, part.suffix, pixels, part.intervals, seconds, before / self.fps)
        self._note(part, frames)
        return part

    def behind(self, messages: Sequence[Message]) -> list[int]:
        """Ids behind the last video token of a chat whose first turn holds the video.

        Raises:
            PromptError: the text holds the model's video token, or the chat begins otherwise than the memory.
        """
        short = self._short(chat(self.processor, messages))
        place = short.index(self.video_token)
        if short[: len(self.head)] != self.head:
            raise PromptError(
                "the processor's chat template begins otherwise than when this video was watched; watch it again"
            )
        return [*self.lead, *short[place + 1 :]]

    def words(self, question: str) -> list[int]:
        """Ids of a question alone."""
        ids: list[int] = self.processor.tokenizer(question, add_special_tokens=False)["input_ids"]
        return ids

    def _short(self, text: str) -> list[int]:
        ids: list[int] = self.processor.tokenizer(text)["input_ids"]
        if ids.count(self.video_token) != 1:
            name = self.processor.tokenizer.convert_ids_to_tokens(self.video_token)
            raise PromptError(
                f"the prompt has {ids.count(self.video_token)} video tokens {name}, not one; a question must not hold "
                "that token"
            )
        return ids

    def _process(self, text: str, frames: NDArray[np.uint8], start: int, fixed: bool = False) -> Mapping[str, Any]:
        places = list(range(start, start + len(frames)))
        metadata = {"total_num_frames": places[-1] + 1, "fps": self.fps, "frames_indices": places}
        more = {"do_resize": False} if fixed else {}
        try:
            found: Mapping[str, Any] = self.processor(
                text=[text],
                videos=[frames],
                video_metadata=[metadata],
                do_sample_frames=False,
                return_tensors="pt",
                **more,
            )
        except REFUSALS as error:
            raise PromptError(
                f"the processor refuses {len(frames)} frames of {frames.shape[2]} x {frames.shape[1]} pixels: {error}"
            ) from error
        return found

    def _note(self, part: Part, frames: NDArray[np.uint8]) -> None:
        each = 1 if part.grid is None else int(self.processor.video_processor.temporal_patch_size)
        if part.grid is not None:
            self.grid = part.grid[1:]
        short = -len(frames) % each
        self.sampled += len(frames) + short  # the processor shows the last frame again where one is missing
        self.last = np.concatenate([frames, *[frames[-1:]] * short])[-each:]

    def _sized(self, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames of the size that the first ones were brought to: a processor takes another for fewer of them."""
        from torchvision.transforms.v2 import InterpolationMode, functional

        assert self.grid is not None
        patch = int(self.processor.video_processor.patch_size)
        size = [side * patch for side in self.grid]
        pictures = torch.from_numpy(frames).movedim(-1, 1)
        found = functional.resize(pictures, size, InterpolationMode.BICUBIC, antialias=True)
        resized: NDArray[np.uint8] = found.movedim(1, -1).numpy()
        return resized


def user(text: str, video: bool = False) -> Message:
    """A turn of the user, with the video in front of its text or without."""
    content = [{"type": "video"}] if video else []
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def assistant(text: str) -> Message:
    """A turn of the model."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def chat(processor: Any, messages: Sequence[Message]) -> str:
    """A chat as text, up to where the model answers."""
    text: str = processor.apply_chat_template(list(messages), add_generation_prompt=True)
    return text
