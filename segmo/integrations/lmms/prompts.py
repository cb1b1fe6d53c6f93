"""A chat of lmms-eval as inputs of a Video LLM: videos are read from their files, at the rate that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.errors import PromptError
from segmo.video import read


@dataclass(frozen=True)
class Sampling:
    """How frames are taken from a video file: so many a second, and at most so many in all, evenly spread."""

    fps: float = 2.0
    most: int = 64


@dataclass(frozen=True)
class Shown:
    """A video as the model sees it: frames (F, height, width, 3) uint8, and what its processor asks about them."""

    frames: NDArray[np.uint8]
    metadata: dict[str, Any]


def show(video: Any, sampling: Sampling, start: float | None = None, end: float | None = None) -> Shown:
    """Reads a video.

    Args:
        video: path of a file, a mapping with one and with seconds, or frames that a task has read itself.
        sampling: how frames are taken from a file.
        start, end: seconds of the part to show; all of it when None.

    Raises:
        VideoError: the file cannot be read.
        PromptError: the part holds no frame.
    """
    if isinstance(video, Mapping):  # how tasks name a part of a file
        path = video.get("url") or video.get("path") or video.get("video")
        return show(path, sampling, video.get("video_start"), video.get("video_end"))
    if not isinstance(video, str):
        frames = np.stack([np.asarray(frame, dtype=np.uint8) for frame in video])
        return Shown(frames, _metadata(list(range(len(frames))), sampling.fps))
    clip = read(video, sampling.fps, max_frames=sampling.most, scenes=None)
    inside = (clip.seconds >= (start or 0.0)) & (clip.seconds <= (clip.duration if end is None else end))
    if not inside.any():
        raise PromptError(f"{video} has no frame between {start} and {end} seconds; it is {clip.duration:.1f} s long")
    places = np.rint(clip.seconds[inside] * clip.fps).astype(int).tolist()
    return Shown(clip.frames[inside], _metadata(places, clip.fps))


def _metadata(places: list[int], fps: float) -> dict[str, Any]:
    return {"total_num_frames": places[-1] + 1, "fps": fps, "frames_indices": places}


def chat_inputs(processor: Any, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> tuple[str, Any]:
    """The prompt as text, and the processor's tensors.

    Args:
        processor: a transformers processor with a chat template.
        messages: turns whose parts are ``{"type": "text" | "image" | "video", ...}``; images and videos hold what they
            show under ``"url"``, videos ``"start_time"`` and ``"end_time"`` too.
        sampling: for videos in files.
    """
    parts = [part for message in messages for part in message["content"]]
    videos = [
        show(part["url"], sampling, part.get("start_time"), part.get("end_time"))
        for part in parts
        if part["type"] == "video"
    ]
    images = [part["url"] for part in parts if part["type"] == "image"]
    turns = [
        {"role": message["role"], "content": [_plain(part) for part in message["content"]]} for message in messages
    ]
    text: str = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    given: dict[str, Any] = {"images": images} if images else {}
    if videos:
        given["videos"] = [video.frames for video in videos]
        given["video_metadata"] = [video.metadata for video in videos]
        given["do_sample_frames"] = False
    return text, processor(text=[text], return_tensors="pt", **given)


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] in ("video", "image"):
        return {"type": part["type"]}
    raise PromptError(f"a task has a part of type {part['type']!r}; SegMo takes text, images and videos")
