"""The vision encoder over ranks: each encodes an even share of the frames.

Then either every rank is given all features, or each keeps its own (``spread``): CAS exchanges the numbers that its
budget over the whole video needs, and after selection the kept tokens' features go where their segments are.

Legend: F frames, T video tokens, H hidden size.

Exact where attention of the encoder stays inside a frame, as in all known families: Qwen-VL cuts attention at
every temporal patch, and SigLIP sees one frame at a time. Shares are even because scenes are not known before encoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from segmo.compat.arguments import with_arguments
from segmo.errors import PromptError
from segmo.families import family_of
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.session import session_of

PIXELS, GRID = "pixel_values_videos", "video_grid_thw"


def frame_share(frames: int, rank: int, world: int) -> tuple[int, int]:
    """First frame of a rank's share and the one after its last; shares differ by one frame at most."""
    return frames * rank // world, frames * (rank + 1) // world


def encode_video(
    model: Any, inputs: Mapping[str, Any], ranks: Ranks | None = None, *, spread: bool = False
) -> dict[str, Any]:
    """Inputs for ``generate`` with the video encoded, by all ranks together, in place of its pixels.

    Args:
        model: a model of a known family.
        inputs: of the processor; one prompt, the same on every rank.
        spread: leave each rank with the features of its own frames, and NaN in place of the others. For a model that
            :func:`segmo.compile` has spread over the same ranks; its next prefill must be of these inputs.

    Returns:
        The inputs without pixels and with ``mm_encoder_outputs``; inputs without a video as they are.

    Raises:
        PromptError: several prompts with videos at once, or a model of an unknown family.
        RankError: another rank died, hung or holds another video.
        VersionError: the model takes no ``mm_encoder_outputs``.
    """
    ranks = Ranks.of() if ranks is None else ranks
    if inputs.get(PIXELS) is None:
        return dict(inputs)
    if family_of(model) is None:
        raise PromptError(f"{type(model).__name__} is of no known family: its frames may not be independent")
    if inputs["input_ids"].shape[0] != 1:
        raise PromptError("a video is encoded over ranks one prompt at a time; call this once per prompt")
    place = _own_alone if spread else gather_rows
    with torch.no_grad():
        encode = _encode_grid if GRID in inputs else _encode_frames
        output = encode(model, inputs, ranks, place)
    if spread and ranks.group is not None:
        session_of(ranks.group.group_name).pending = ranks.world > 1
    rest = {name: value for name, value in inputs.items() if name != PIXELS}
    return with_arguments(model, rest, mm_encoder_outputs={**inputs.get("mm_encoder_outputs", {}), "video": output})


def gather_rows(mine_TH: Tensor, counts: list[int], ranks: Ranks) -> Tensor:
    """Rows of all ranks, in order, on every rank; rank r brings the first ``counts[r]`` of its own."""
    padded = mine_TH.new_zeros(max(counts), *mine_TH.shape[1:])
    padded[: counts[ranks.rank]] = mine_TH[: counts[ranks.rank]]
    everyone = ranks.gather(padded, "video features")
    return torch.cat([everyone[rank, :count] for rank, count in enumerate(counts)])


def _own_alone(mine_TH: Tensor, counts: list[int], ranks: Ranks) -> Tensor:
    """Rows of this rank in their place, and NaN in place of all others."""
    whole = mine_TH.new_full((sum(counts), *mine_TH.shape[1:]), torch.nan)
    first = sum(counts[: ranks.rank])
    whole[first : first + counts[ranks.rank]] = mine_TH[: counts[ranks.rank]]
    return whole


Place = Callable[[Tensor, list[int], Ranks], Tensor]


def _encode_grid(model: Any, inputs: Mapping[str, Any], ranks: Ranks, place: Place) -> Any:
    """Qwen-VL: patches of all videos in one (patches, values) tensor, described by a (videos, 3) grid."""
    grid = inputs[GRID]
    per_frame = (grid[:, 1] * grid[:, 2]).tolist()
    ends = grid[:, 0].cumsum(0).tolist()
    merge = model.config.vision_config.spatial_merge_size**2
    start, end = frame_share(ends[-1], ranks.rank, ranks.world)
    # A rank without a frame encodes the first one, so that it too knows the features' width, and brings nothing.
    grids, rows = _part_of_grid(grid, start, max(end, start + 1) if start < ends[-1] else ends[-1])
    if not rows:
        grids, rows = _part_of_grid(grid, 0, 1)
    pixels = torch.cat([inputs[PIXELS][first:last] for first, last in rows])
    output = model.base_model.get_video_features(
        pixel_values_videos=pixels, video_grid_thw=torch.stack(grids), return_dict=True
    )
    counts = [
        sum(per_frame[v] // merge * frames for v, frames in enumerate(_frames_per_video(ends, share)))
        for share in (frame_share(ends[-1], rank, ranks.world) for rank in range(ranks.world))
    ]
    sizes = (grid.prod(-1) // merge).tolist()

    def whole(parts: Any) -> tuple[Tensor, ...]:
        return torch.split(place(torch.cat(list(parts)), counts, ranks), sizes)

    changed: dict[str, Any] = {"last_hidden_state": None, "pooler_output": whole(output.pooler_output)}
    if getattr(output, "deepstack_features", None) is not None:
        changed["deepstack_features"] = [_like(level, whole(level)) for level in output.deepstack_features]
    return dataclasses.replace(output, **changed)


def _like(level: Any, parts: tuple[Tensor, ...]) -> Any:
    """Parts per video in the container in which the encoder gave them."""
    return torch.cat(parts) if isinstance(level, Tensor) else list(parts)


def _frames_per_video(ends: list[int], share: tuple[int, int]) -> list[int]:
    starts = [0, *ends[:-1]]
    return [max(0, min(end, share[1]) - max(start, share[0])) for start, end in zip(starts, ends, strict=True)]


def _part_of_grid(grid: Tensor, start: int, end: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Grid rows and ranges of patches of the frames from ``start`` to ``end``, counted through all videos."""
    grids: list[Tensor] = []
    rows: list[tuple[int, int]] = []
    frame = patch = 0
    for one in grid:
        count, size = int(one[0]), int(one[1] * one[2])
        first, last = max(start, frame) - frame, min(end, frame + count) - frame
        if last > first:
            grids.append(torch.stack([one.new_tensor(last - first), one[1], one[2]]))
            rows.append((patch + first * size, patch + last * size))
        frame, patch = frame + count, patch + count * size
    return grids, rows


def _encode_frames(model: Any, inputs: Mapping[str, Any], ranks: Ranks, place: Place) -> Any:
    """LLaVA-OneVision: (1, F, C, height, width), and a newline token after the last frame."""
    pixels = inputs[PIXELS]
    frames = pixels.shape[1]
    start, end = frame_share(frames, ranks.rank, ranks.world)
    mine = pixels[:, start:end] if end > start else pixels[:, :1]
    output = model.base_model.get_video_features(pixel_values_videos=mine, return_dict=True)
    tokens, newline = output.pooler_output[0, :-1], output.pooler_output[0, -1:]
    cells = tokens.shape[0] // mine.shape[1]
    shares = (frame_share(frames, rank, ranks.world) for rank in range(ranks.world))
    whole = place(tokens, [(last - first) * cells for first, last in shares], ranks)
    features = torch.cat([whole, newline])[None]
    return dataclasses.replace(output, last_hidden_state=None, pooler_output=features, hidden_states=None)
