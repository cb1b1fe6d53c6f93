"""Numerics of every generated kernel on the device, against fp64 or torch."""

from __future__ import annotations

from typing import Any

import torch
from gpu_place import Place, relative_error
from torch import Tensor

from segmo.runtime import asking, features
from segmo.runtime.attention import reference, triton
from segmo.runtime.attention.decode import Piece, decode_attention
from segmo.runtime.attention.merge import merge_parts
from segmo.runtime.kernels import question, scan
from segmo.runtime.kernels.compact import Runs, Source, compact
from segmo.runtime.kernels.specs import dtype_name
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.schedule import RowSchedule, pack

LIMIT = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def example_row(length: int, segments: int = 8) -> RowSchedule:
    """Sinks, segments of one length, the video's first 256 tokens as context, a question."""
    edge = min(32, length // 8)
    video = length - 2 * edge
    ends = tuple(edge + video * (segment + 1) // segments for segment in range(segments))
    return RowSchedule(0, edge, ends, length, tuple(range(edge, edge + min(256, video // segments))))


def qkv(place: Place, length: int, head_size: int, dtype: torch.dtype, heads: int, groups: int) -> list[Tensor]:
    """Random q, k, v laid out as a model makes them."""
    counts = (heads, groups, groups)
    return [
        place.randn(seed, 1, length, count, head_size, dtype=dtype).transpose(1, 2) for seed, count in enumerate(counts)
    ]


def check_attention(place: Place, length: int, head_size: int) -> list[dict[str, Any]]:
    """Segment attention and decode against fp64 for every dtype."""
    rows = []
    row, full = pack([example_row(length, 3)]), pack([RowSchedule(0, 0, (length,), length, ())])
    for dtype, limit in LIMIT.items():
        q, k, v = qkv(place, length, head_size, dtype, 14, 2)
        scale, wide = head_size**-0.5, [x.double() for x in (q, k, v)]
        out, _ = triton.segment_attention_lse(q, k, v, row, scale)
        cut = length // 2
        pieces = [Piece(k[:, :, :cut], v[:, :, :cut]), Piece(k[:, :, cut:], v[:, :, cut:])]
        one, _ = decode_attention(q[:, :, -1], pieces, scale)
        errors = {
            "segment attention": relative_error(out, _reference(wide, row, scale)),
            "decode": relative_error(one, _reference(wide, full, scale)[:, :, -1]),
        }
        facts = {"head_size": head_size, "dtype": dtype_name(dtype)}
        rows += [{"check": n, **facts, "error": error, "ok": error < limit} for n, error in errors.items()]
    return rows


def _reference(wide: list[Tensor], schedule: Tensor, scale: float) -> Tensor:
    q, k, v = wide
    return reference.segment_attention(q, k, v, schedule, scale)


def check_others(place: Place, frames: int, cells: int, hidden: int, head_size: int) -> list[dict[str, Any]]:
    """The merge, CAS scoring and compaction against torch on the device."""
    tokens = frames * cells
    frame = torch.arange(frames, device=place.device).repeat_interleave(cells)[None]
    cell = torch.arange(cells, device=place.device).repeat(frames)[None]
    x = place.randn(0, 1, tokens, hidden, dtype=torch.bfloat16)
    novelty, similarity, mean = scan.scan_video(x, frame, cell)
    wide_novelty, wide_similarity, wide_mean = features.scan_video(x, frame, cell)
    errors = {
        "merge": (_merge_error(place, head_size), 1e-6),
        "novelty": (relative_error(novelty, wide_novelty), 1e-4),
        "frame similarity": (relative_error(similarity, wide_similarity), 1e-4),
        "mean feature": (relative_error(mean, wide_mean), 1e-4),
        "question's attention": (_question_error(place, frame, cell, head_size), 5e-3),
        **_selection_errors(place, x),
    }
    return [{"check": name, "error": error, "ok": error < limit} for name, (error, limit) in errors.items()]


def _merge_error(place: Place, head_size: int) -> float:
    parts, lse = place.randn(1, 5, 2, 8, 20, head_size), place.randn(2, 5, 2, 8, 20)
    merged, _ = merge_parts(parts, lse)
    return relative_error(merged, (parts.double() * lse.double().softmax(0)[..., None]).sum(0))


def _question_error(place: Place, frame: Tensor, cell: Tensor, head_size: int) -> float:
    pad = torch.nn.functional.pad
    scene = pad(pad(frame // 4, (10, 0), value=SINK), (0, 30), value=QUERY)
    padded = pad(cell, (10, 30), value=-1)
    q, k, _ = qkv(place, scene.shape[1], head_size, torch.bfloat16, 14, 2)
    scenes = int(scene.max()) + 1
    asked = question.attention_relevance(q, k, scene, padded, scene == QUERY, None, head_size**-0.5, scenes)
    wide = asking.attention_relevance(
        q.float(), k.float(), scene, padded, scene == QUERY, None, head_size**-0.5, scenes
    )
    return relative_error(asked, wide)


def _selection_errors(place: Place, x: Tensor) -> dict[str, tuple[float, float]]:
    tokens = x.shape[1]
    kept = tokens // 4
    key = place.randn(3, 1, tokens).round(decimals=1)  # with many ties
    index, cut = compact(Runs(key, [[0, 0, tokens, kept, 0]]), kept, {"hidden": Source(x)})
    expected = torch.argsort(key[0], descending=True, stable=True)[:kept].sort().values
    return {
        "kept tokens": (float((index[0] != expected).sum()), 0.5),
        "kept hidden states": (float((cut["hidden"][0] != x[0, expected]).sum()), 0.5),
    }
