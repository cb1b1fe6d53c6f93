"""Calls whose pictures are no frames, or may be none, run as they are; :mod:`segmo.runtime.pictures` tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from segmo.calls.inputs import pictures_of
from segmo.calls.videos import frames_of
from segmo.compiler.chat import chat_of
from segmo.errors import NotRewrittenError
from segmo.families import description_of, family_for
from segmo.passes.reasons import Miss
from segmo.runtime.pictures import Run, frames_of_video, runs_of


def no_video(model: Any, inputs: Mapping[str, Any]) -> Miss | None:
    """Why a call runs as it is, None if nothing is against cutting it: its pictures are images, or some may be.

    Args:
        model: a transformers Video LLM.
        inputs: of its forward by name.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape[-1] == 1 or pictures_of(inputs) != {"image"}:
        return None
    token = _shared_placeholder(model)
    if token is None:
        return None
    rows = [runs_of(row == token) for row in ids]
    if not any(rows):
        return None
    told = description_of(model)
    if told.frames is not None:
        counts = frames_of(model, inputs)[0] or []
        return None if sum(map(len, rows)) in (len(counts), sum(counts)) else Miss.of("images-and-video")
    if told.placeholder is not None:
        return None
    chat, cells = chat_of(model).tokens, _cells(inputs, token)
    found = [frames_of_video(row, runs, row == token, chat, cells) for row, runs in zip(ids, rows, strict=True)]
    if all(all(flags) for flags in found):
        return None
    return Miss.of("images") if all(_is_one_image(runs, cells) for runs in rows) else Miss.of("images-and-video")


def refuse_gaps(inputs: Mapping[str, Any], miss: Miss) -> None:
    """A prompt that is not cut must hold every picture.

    Raises:
        NotRewrittenError: frames were left out of the vision encoder, when the prompt looked like one of a video.
    """
    outputs = inputs.get("mm_encoder_outputs")
    encoded = outputs.values() if isinstance(outputs, Mapping) else ()
    features = [getattr(output, "pooler_output", None) for output in encoded]
    parts = [part for each in features for part in ([each] if isinstance(each, Tensor) else each or ())]
    if any(bool((part == 0).all(-1).any()) for part in parts):
        raise NotRewrittenError(
            f"frames were left out of the vision encoder, and then the prompt could not be cut: {miss.reason}. Set "
            "frames=1 for such prompts"
        )


def _shared_placeholder(model: Any) -> int | None:
    """The placeholder of images, if that of frames is no other."""
    config = getattr(model, "config", None)
    if family_for(config).video_argument:
        return None
    names = ("image_token_id", "image_token_index")
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)


def _cells(inputs: Mapping[str, Any], token: int) -> int | None:
    """Tokens of one picture, where the encoder gives each picture's features apart, or is to do so."""
    ids, pixels = inputs["input_ids"], inputs.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.dim() == 4:
        return int((ids == token).sum()) // len(pixels)
    outputs = inputs.get("mm_encoder_outputs")
    image = outputs.get("image") if isinstance(outputs, Mapping) else None
    features = getattr(image, "pooler_output", None)
    return features.shape[1] if isinstance(features, Tensor) and features.dim() == 3 else None


def _is_one_image(runs: Sequence[Run], cells: int | None) -> bool:
    """Whether a row has one run, or only runs of several tiles, which no frame has."""
    return len(runs) < 2 or (cells is not None and all(end - start > cells for start, end in runs))
