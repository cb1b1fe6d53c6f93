"""A video through the processor and the vision encoder, some frames at a time.

The encoders of all known families treat frames (Qwen: pairs of frames) apart from each other, so a part of a video
gives the same features alone as within the whole, to rounding, in memory that does not grow with the video.

Legend: F frames, V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.ask.checkpoint import Checkpoint
from segmo.ask.features import Features, VideoFacts
from segmo.ask.prompt import chat, cut_out, short_ids
from segmo.errors import REFUSALS, PromptError
from segmo.families import family_of
from segmo.upstream.clips import pictures_per_frame, with_times
from segmo.video import Clip
from segmo.video.source import VideoError

PATCHES = 8192  # patches of a part, at most, unless a single frame has more
FRAMES = 8  # frames of a part where frames are not cut into patches beforehand

Progress = Callable[[int, int], None]
_PIXELS = "pixel_values_videos"


def process(loaded: Checkpoint, clip: Clip, question: str, pixels: bool = True) -> dict[str, Any]:
    """The processor's work on the CPU: what the model takes for one question, pixels included.

    Args:
        loaded: the model.
        clip: frames are not sampled again; their times go into the prompt where a family writes times.
        question: any; the video's part of the prompt does not depend on it.
        pixels: without them, no picture is looked at: the prompt is that of any clip of this shape.

    Raises:
        VideoError: the processor cannot bring frames of this shape to the model.
        PromptError: the question holds the model's video token.
    """
    text = chat(loaded.processor, question)
    _check_prompt(loaded, text)
    pictures = pictures_per_frame(loaded.processor)
    clip = clip.padded(pictures)
    frames: Any = clip.frames
    if not pixels:
        count, height, width, channels = frames.shape
        frames = torch.empty((count, channels, height, width), dtype=torch.uint8, device="meta")
    try:
        inputs: dict[str, Any] = loaded.processor(
            text=[text],
            videos=[frames],
            video_metadata=[clip.metadata()],
            do_sample_frames=False,
            return_tensors="pt",
        )
    except REFUSALS as error:
        height, width = clip.frames.shape[1:3]
        raise VideoError(f"{clip.path}: the model's processor refuses {width} x {height} pixels: {error}") from error
    found = dict(inputs)
    with_times(found, [clip], pictures)
    return found


def _check_prompt(loaded: Checkpoint, text: str) -> None:
    """A question with a video token is refused by name."""
    if loaded.takes_features:
        short_ids(loaded.processor, text, loaded.video_token)
        return
    token = getattr(loaded.processor, "video_token", None)
    if isinstance(token, str) and text.count(token) != 1:
        raise PromptError(f"the prompt has {text.count(token)} {token}, not one; a question must not hold that token")


@dataclass(frozen=True)
class Encoded:
    """What the vision encoder gives for some frames.

    Attributes:
        pooled: features, (V, H); (1, V, H) for LLaVA-OneVision, whose last token belongs to no frame.
        deepstack: features for the first layers, (V, H) each; only Qwen3-VL has them.
    """

    pooled: Tensor
    deepstack: tuple[Tensor, ...] = ()


@torch.no_grad()
def encode_frames(
    loaded: Checkpoint,
    inputs: Mapping[str, Any],
    frames: Sequence[int] | None = None,
    progress: Progress = lambda done, total: None,
) -> Encoded:
    """The vision encoder's work on some frames of the language model, all when None."""
    parts = list(_parts(inputs, frames))
    outputs = []
    for number, part in enumerate(parts):
        moved = {name: tensor.to(loaded.model.device) for name, tensor in part.items()}
        outputs.append(loaded.model.base_model.get_video_features(**moved, return_dict=True))
        progress(number + 1, len(parts))
    return Encoded(_join(outputs, trailing(loaded)), _deepstack(outputs))


def facts_of(clip: Clip) -> VideoFacts:
    """What a reader of an answer may want to know of the clip."""
    seconds = tuple(clip.seconds.tolist())
    return VideoFacts(len(clip.frames), clip.fps, clip.duration, clip.cuts, clip.notes, seconds, clip.damaged)


def features_of(loaded: Checkpoint, inputs: Mapping[str, Any], encoded: Encoded, clip: Clip, question: str) -> Features:
    """Encoded frames with what a prompt needs; arguments as for :func:`encode`."""
    short = short_ids(loaded.processor, chat(loaded.processor, question), loaded.video_token)
    left_out = ("input_ids", "attention_mask", "mm_token_type_ids", _PIXELS)
    return Features(
        encoded.pooled,
        encoded.deepstack,
        cut_out(inputs["input_ids"][0], short, loaded.video_token),
        {name: torch.as_tensor(value) for name, value in inputs.items() if name not in left_out},
        "mm_token_type_ids" in inputs,
        facts_of(clip),
    )


def frame_shape(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """The size at which a processor brings each frame to the encoder; the same for clips of any length, or not."""
    grid = inputs.get("video_grid_thw")
    return tuple(inputs[_PIXELS].shape[2:]) if grid is None else tuple(grid[0, 1:].tolist())


def frame_count(inputs: Mapping[str, Any]) -> int:
    """Frames of the language model in a processor's inputs."""
    grid = inputs.get("video_grid_thw")
    return int(inputs[_PIXELS].shape[1] if grid is None else grid[0, 0])


def trailing(loaded: Checkpoint) -> int:
    """Tokens that the model's family puts behind a video."""
    return family_of(loaded.model).trailing  # type: ignore[union-attr]  # known since it was loaded


def _parts(inputs: Mapping[str, Any], frames: Sequence[int] | None) -> Iterator[dict[str, Tensor]]:
    """The pixels of frames in parts that are whole frames, with the size of each part."""
    pixels = inputs[_PIXELS]
    grid = inputs.get("video_grid_thw")
    if grid is None:  # (1, F, channels, height, width)
        chosen = pixels if frames is None else pixels[:, list(frames)]
        for part in chosen.split(FRAMES, dim=1):
            yield {_PIXELS: part}
        return
    count, height, width = grid[0].tolist()
    rows = pixels.unflatten(0, (count, height * width))
    chosen = rows if frames is None else rows[list(frames)]
    for part in chosen.split(max(1, PATCHES // (height * width))):
        yield {_PIXELS: part.flatten(0, 1), "video_grid_thw": torch.tensor([[len(part), height, width]])}


def _join(outputs: list[Any], trailing: int) -> Tensor:
    """Features of all parts, (V, H) or (1, V, H). Tokens that a family puts behind a video stand there once."""
    pooled = [output.pooler_output for output in outputs]
    if isinstance(pooled[0], Tensor) and pooled[0].ndim == 3:
        bodies = [part[:, : part.shape[1] - trailing] for part in pooled]
        return torch.cat([*bodies, pooled[-1][:, pooled[-1].shape[1] - trailing :]], dim=1)
    return torch.cat([part if isinstance(part, Tensor) else torch.cat(tuple(part)) for part in pooled])


def _deepstack(outputs: list[Any]) -> tuple[Tensor, ...]:
    layers = [getattr(output, "deepstack_features", None) or () for output in outputs]
    return tuple(torch.cat([torch.cat(tuple(part)) for part in parts]) for parts in zip(*layers, strict=True))
