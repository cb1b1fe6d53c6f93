"""A chat of lmms-eval as inputs of a Video LLM: videos are read from their files, at the rate that was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segmo.errors import OptionError, PromptError
from segmo.upstream.clips import pictures_per_frame, with_times
from segmo.video import Clip, read
from segmo.video.given import as_source
from segmo.video.pictures import Pictures


@dataclass(frozen=True)
class Sampling:
    """How frames are taken from a video file: so many a second, and at most so many in all, evenly spread."""

    fps: float = 2.0
    most: int = 64


def show(video: Any, sampling: Sampling, start: float | None = None, end: float | None = None) -> Clip:
    """Reads a video.

    Args:
        video: in any form that :func:`segmo.video.read` takes, or a mapping with one and with seconds.
        sampling: how frames are taken from a file; frames that a task has read itself are taken as they are.
        start, end: seconds of the part to show; all of it when None.

    Raises:
        VideoError: the file cannot be read.
        PromptError: the part holds no frame.
    """
    if isinstance(video, Mapping):  # how tasks name a part of a file
        named = next((video[name] for name in ("url", "path", "video") if video.get(name) is not None), None)
        return show(named, sampling, video.get("video_start", start), video.get("video_end", end))
    source = as_source(video)
    most = None if isinstance(source, Pictures) else sampling.most
    try:
        return read(source, sampling.fps, max_frames=most, start=start, end=end, scenes=None)
    except OptionError as error:
        raise PromptError(f"{source}: {error}") from error


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
    pictures = pictures_per_frame(processor)
    if videos:
        videos = [video.padded(pictures) for video in videos]
        given["videos"] = [video.frames for video in videos]
        given["video_metadata"] = [video.metadata() for video in videos]
        given["do_sample_frames"] = False
    inputs = processor(text=[text], return_tensors="pt", **given)
    with_times(inputs, videos, pictures)
    return text, inputs


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] in ("video", "image"):
        return {"type": part["type"]}
    raise PromptError(f"a task has a part of type {part['type']!r}; SegMo takes text, images and videos")
