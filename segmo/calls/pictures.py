"""Which pictures of a prompt are frames of a video, where a family has one placeholder for images and frames alike.

InternVL and SmolVLM get images and frames in one tensor, and a run of one and the same placeholder for each. What tells
them apart is how the prompt lays them out: the frames of a video stand in a row, each behind a tag of one form. A
picture alone, a tile of an image, and a picture behind other text than the frames beside it are none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

import torch
from torch import Tensor

from segmo.calls.videos import frames_of
from segmo.compiler.chat import chat_of
from segmo.errors import NotRewrittenError
from segmo.families import description_of, family_for
from segmo.passes.reasons import Miss
from segmo.runtime.layout import video_layout, video_starts
from segmo.runtime.question import ChatTokens, turn_marks

_FORM = 2  # so many tokens in front of a frame are the same for all frames of a video, where its tags have a form

Run = tuple[int, int]  # places of a run of placeholders in its row, from one up to the other


def no_video(model: Any, inputs: Mapping[str, Any]) -> Miss | None:
    """Why a call runs as it is, None if nothing is against cutting it: its pictures are images, or some may be.

    Args:
        model: a transformers Video LLM.
        inputs: of its forward by name.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.shape[-1] == 1 or not _only_images(inputs):
        return None
    token = _shared_placeholder(model)
    if token is None:
        return None
    rows = [_runs(row == token) for row in ids]
    if not any(rows):
        return None
    told = description_of(model)
    if told.frames is not None:
        counts = frames_of(model, inputs) or []
        return None if sum(map(len, rows)) in (len(counts), sum(counts)) else Miss.of("images-and-video")
    if told.placeholder is not None:
        return None
    chat, cells = chat_of(model).tokens, _cells(inputs, token)
    found = [_of_video(row, runs, row == token, chat, cells) for row, runs in zip(ids, rows, strict=True)]
    if all(all(flags) for flags in found):
        return None
    return Miss.of("images") if all(_is_one_image(runs, cells) for runs in rows) else Miss.of("images-and-video")


def refuse_gaps(inputs: Mapping[str, Any], miss: Miss) -> None:
    """A prompt that is not cut must hold every picture.

    Raises:
        NotRewrittenError: frames were left out of the vision encoder, when the prompt looked like one of a video.
    """
    outputs = inputs.get("mm_encoder_outputs")
    image = outputs.get("image") if isinstance(outputs, Mapping) else None
    features = getattr(image, "pooler_output", None)
    parts = [features] if isinstance(features, Tensor) else list(features or ())
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


def _only_images(inputs: Mapping[str, Any]) -> bool:
    outputs = inputs.get("mm_encoder_outputs")
    encoded = outputs if isinstance(outputs, Mapping) else {}
    if inputs.get("pixel_values_videos") is not None or encoded.get("video") is not None:
        return False  # the arguments tell a video
    return inputs.get("pixel_values") is not None or encoded.get("image") is not None


def _cells(inputs: Mapping[str, Any], token: int) -> int | None:
    """Tokens of one picture, where the encoder gives each picture's features apart, or is to do so."""
    ids, pixels = inputs["input_ids"], inputs.get("pixel_values")
    if isinstance(pixels, Tensor) and pixels.dim() == 4:
        return int((ids == token).sum()) // len(pixels)
    outputs = inputs.get("mm_encoder_outputs")
    image = outputs.get("image") if isinstance(outputs, Mapping) else None
    features = getattr(image, "pooler_output", None)
    return features.shape[1] if isinstance(features, Tensor) and features.dim() == 3 else None


def _runs(flag_N: Tensor) -> list[Run]:
    edges = torch.nn.functional.pad(flag_N.int(), (1, 1)).diff()
    starts, ends = ((edges == sign).nonzero()[:, 0].tolist() for sign in (1, -1))
    return list(zip(starts, ends, strict=True))


def _is_one_image(runs: Sequence[Run], cells: int | None) -> bool:
    """Whether a row has one run, or only runs of several tiles, which no frame has."""
    return len(runs) < 2 or (cells is not None and all(end - start > cells for start, end in runs))


def _of_video(ids_N: Tensor, runs: Sequence[Run], video_N: Tensor, chat: ChatTokens, cells: int | None) -> list[bool]:
    """For each run of a row, whether it is laid out as a frame of a video."""
    if not runs:
        return []
    marks_BN = turn_marks(ids_N[None], chat)
    frame_BN, cell_BN = video_layout(video_N[None], None, 0, 0, marks_BN)
    first = [at for at, starts in enumerate(video_starts(frame_BN[0], cell_BN[0]).tolist()) if starts]
    ids, flags = ids_N.tolist(), []
    for begin, end in zip(first, [*first[1:], len(runs)], strict=True):
        row = runs[begin:end]
        alike = len(row) > 1 and _one_form(ids, row)
        flags += [alike and cells in (None, stop - start) for start, stop in row]
    return flags


def _one_form(ids: Sequence[int], row: Sequence[Run]) -> bool:
    """Whether all pictures in a row have tags of one form in front of them.

    A tag is what stands between two pictures, without what closes the first of them. Where most tags end in the same
    ``_FORM`` tokens, all have to. Where they do not, all end in the same token (tiles of an image are numbered there).
    Two pictures alone need such a form.
    """
    gaps = [ids[stop:start] for (_, stop), (start, _) in pairwise(row)]
    longest, end, start = max(map(len, gaps)), row[-1][1], row[0][0]
    closing = _common([*gaps, ids[end : end + longest]])
    tags = [ids[max(start - longest, 0) : start][::-1], *(gap[closing:][::-1] for gap in gaps)]
    width = min(_FORM, *map(len, tags))
    most = Counter(tuple(tag[:width]) for tag in tags).most_common(1)[0][1]
    if len(row) == 2:
        return width == _FORM and most == 2
    return most == len(row) or (most <= len(row) // 2 and _common(tags) > 0)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens rows have in common at their start."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
