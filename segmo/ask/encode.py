"""A video through the processor and the vision encoder, some frames at a time.

The encoders of all known families treat frames (Qwen: pairs of frames) apart from each other, so a part of a video
gives the same features alone as within the whole, to rounding, in memory that does not grow with the video.

Legend: F frames, V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmo.ask.features import Facts, Features
from segmo.ask.loaded import Loaded
from segmo.ask.prompt import chat, cut_out, short_ids
from segmo.families import family_of
from segmo.video import Clip
from segmo.video.source import VideoError

PATCHES = 8192  # patches of a part, at most, unless a single frame has more
FRAMES = 8  # frames of a part where frames are not cut into patches beforehand

Progress = Callable[[int, int], None]
_PIXELS = "pixel_values_videos"


def process(loaded: Loaded, clip: Clip, question: str) -> dict[str, Any]:
    """The processor's work on the CPU: what the model takes for one question, pixels included.

    Args:
        loaded: the model.
        clip: frames are not sampled again; their times go into the prompt where a family writes times.
        question: any; the video's part of the prompt does not depend on it.

    Raises:
        VideoError: the processor cannot bring frames of this shape to the model.
        PromptError: the question holds the model's video token.
    """
    text = chat(loaded.processor, question)
    short_ids(loaded.processor, text, loaded.video_token)  # a question with a video token is refused by name
    places = np.rint(clip.seconds * clip.fps).astype(int).tolist()
    metadata = {"total_num_frames": places[-1] + 1, "fps": clip.fps, "frames_indices": places}
    try:
        inputs: dict[str, Any] = loaded.processor(
            text=[text],
            videos=[clip.frames],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
        )
    except ValueError as error:
        height, width = clip.frames.shape[1:3]
        raise VideoError(f"{clip.path}: the model's processor refuses {width} x {height} pixels: {error}") from error
    return dict(inputs)


@torch.no_grad()
def encode(
    loaded: Loaded,
    inputs: Mapping[str, Any],
    clip: Clip,
    question: str,
    progress: Progress = lambda done, total: None,
) -> Features:
    """The vision encoder's work.

    Args:
        loaded: the model.
        inputs: of :func:`process` for the same clip and question.
        clip: for its facts.
        question: as for :func:`process`.
        progress: called with (parts done, parts in all).
    """
    parts = list(_parts(inputs))
    outputs = []
    for number, part in enumerate(parts):
        moved = {name: tensor.to(loaded.model.device) for name, tensor in part.items()}
        outputs.append(loaded.model.base_model.get_video_features(**moved, return_dict=True))
        progress(number + 1, len(parts))
    short = short_ids(loaded.processor, chat(loaded.processor, question), loaded.video_token)
    left_out = ("input_ids", "attention_mask", "mm_token_type_ids", _PIXELS)
    return Features(
        _join(outputs, family_of(loaded.model).trailing),  # type: ignore[union-attr]  # known since it was loaded
        _deepstack(outputs),
        cut_out(inputs["input_ids"][0], short, loaded.video_token),
        {name: torch.as_tensor(value) for name, value in inputs.items() if name not in left_out},
        "mm_token_type_ids" in inputs,
        Facts(len(clip.frames), clip.fps, clip.duration, clip.cuts, clip.notes),
    )


def _parts(inputs: Mapping[str, Any]) -> Iterator[dict[str, Tensor]]:
    """The pixels in parts that are whole frames, with the size of each part."""
    pixels = inputs[_PIXELS]
    grid = inputs.get("video_grid_thw")
    if grid is None:  # (1, F, channels, height, width)
        for part in pixels.split(FRAMES, dim=1):
            yield {_PIXELS: part}
        return
    frames, height, width = grid[0].tolist()
    step = max(1, PATCHES // (height * width))
    for start in range(0, frames, step):
        count = min(step, frames - start)
        rows = pixels[start * height * width : (start + count) * height * width]
        yield {_PIXELS: rows, "video_grid_thw": torch.tensor([[count, height, width]])}


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
