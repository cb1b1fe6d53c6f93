"""The operators that passes insert: ``torch.ops.segmo.*``, each with a fake for shape propagation.

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of the batch, H hidden size, S scenes, R rows
of features, A query heads, G key/value heads, D head size.

The work is done in the modules beside this one; here stand signatures and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from segmo.errors import PromptError
from segmo.runtime import encoded, external, features, layout, relevance, scenes, schedule, segments, selection
from segmo.runtime.attention.choice import implementation as attention_implementation
from segmo.runtime.kernels import question as generated_question
from segmo.runtime.kernels import scan as generated_scan
from segmo.runtime.kernels.device import can_generate


def _op(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    return torch.library.custom_op(f"segmo::{name}", mutates_args=())


@_op("valid_tokens")
def valid_tokens(attention_mask_BN: Tensor | None, positions: Tensor | None, like_BN: Tensor) -> Tensor:
    """False at padding, (B, N) bool.

    Args:
        attention_mask_BN: the 2-D attention mask, or None for no padding.
        positions: text position ids (B, N) or M-RoPE ids with a row of text positions first (4, B, N), when
            the model looks into them for packed sequences.
        like_BN: any (B, N) tensor.

    Raises:
        PromptError: several sequences are packed into one row.
    """
    valid_BN = torch.ones(like_BN.shape, dtype=torch.bool, device=like_BN.device)
    if attention_mask_BN is not None:
        valid_BN = attention_mask_BN.to(torch.bool).clone()
    if positions is not None and (positions.dim() == 2 or positions.shape[0] == 4):
        text_BN = (positions if positions.dim() == 2 else positions[0]).expand_as(valid_BN)
        breaks = (text_BN.diff(dim=1) != 1) & valid_BN[:, 1:] & valid_BN[:, :-1]
        if bool(breaks.any()):  # transformers then hides the sequences of a row from each other
            raise PromptError(
                "the position ids jump inside a row, as for packed sequences; pass one prompt per row, and an "
                "attention_mask if the positions are meant to have gaps"
            )
    return valid_BN


@valid_tokens.register_fake
def _(attention_mask_BN: Tensor | None, positions: Tensor | None, like_BN: Tensor) -> Tensor:
    return like_BN.new_empty(like_BN.shape, dtype=torch.bool)


@_op("video_layout")
def video_layout(
    video_BN: Tensor, positions_RBN: Tensor | None, cells_per_frame: int, trailing: int
) -> tuple[Tensor, Tensor]:
    """See :func:`segmo.runtime.layout.video_layout`."""
    return layout.video_layout(video_BN, positions_RBN, cells_per_frame, trailing)


@video_layout.register_fake
def _(video_BN: Tensor, positions_RBN: Tensor | None, cells_per_frame: int, trailing: int) -> tuple[Tensor, Tensor]:
    return (
        video_BN.new_empty(video_BN.shape, dtype=torch.long),
        video_BN.new_empty(video_BN.shape, dtype=torch.long),
    )


@_op("encoded_tokens")
def encoded_tokens(embeds_BNH: Tensor, cell_BN: Tensor) -> Tensor:
    """See :func:`segmo.runtime.encoded.encoded_tokens`."""
    return encoded.encoded_tokens(embeds_BNH, cell_BN)


@encoded_tokens.register_fake
def _(embeds_BNH: Tensor, cell_BN: Tensor) -> Tensor:
    return cell_BN.new_empty(cell_BN.shape, dtype=torch.bool)


@_op("encoded_cells")
def encoded_cells(cell_BN: Tensor, encoded_BN: Tensor) -> Tensor:
    """Cells with -1, as for text, at tokens whose frame was not encoded."""
    return torch.where(encoded_BN, cell_BN, -1)


@encoded_cells.register_fake
def _(cell_BN: Tensor, encoded_BN: Tensor) -> Tensor:
    return torch.empty_like(cell_BN)


@_op("take_rows")
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows of a tensor."""
    return x.index_select(0, rows)


@take_rows.register_fake
def _(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty((rows.shape[0], *x.shape[1:]))


@_op("place_rows")
def place_rows(kept: Tensor, rows: Tensor, total: int) -> Tensor:
    """See :func:`segmo.runtime.encoded.place_rows`."""
    return encoded.place_rows(kept, rows, total)


@place_rows.register_fake
def _(kept: Tensor, rows: Tensor, total: int) -> Tensor:
    return kept.new_empty((total, *kept.shape[1:]))


@_op("scan_video")
def scan_video(
    embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, encoded_BN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See :func:`segmo.runtime.features.scan_video`; ``encoded_BN`` tells which tokens are there at all."""
    scan = generated_scan.scan_video if can_generate(embeds_BNH) else features.scan_video
    if encoded_BN is None:
        return scan(embeds_BNH, frame_BN, cell_BN)
    return encoded.scan_encoded(scan, embeds_BNH, frame_BN, cell_BN, encoded_BN)


@scan_video.register_fake
def _(embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, encoded_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
    shape = frame_BN.shape
    return embeds_BNH.new_empty(shape, dtype=torch.float32), embeds_BNH.new_empty(shape, dtype=torch.float32)


@_op("find_scenes")
def find_scenes(
    similarity_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int, encoded_BN: Tensor | None = None
) -> Tensor:
    """See :func:`segmo.runtime.scenes.find_scenes`; ``encoded_BN`` tells which tokens are there at all."""
    if encoded_BN is None:
        return scenes.find_scenes(similarity_BN, frame_BN, cell_BN, max_scenes)
    return encoded.find_encoded_scenes(scenes.find_scenes, similarity_BN, frame_BN, cell_BN, encoded_BN, max_scenes)


@find_scenes.register_fake
def _(
    similarity_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int, encoded_BN: Tensor | None = None
) -> Tensor:
    return torch.empty_like(frame_BN)


@_op("embedding_relevance")
def embedding_relevance(
    embeds_BNH: Tensor, scene_BN: Tensor, cell_BN: Tensor, valid_BN: Tensor | None, max_scenes: int
) -> Tensor:
    """See :func:`segmo.runtime.relevance.embedding_relevance`."""
    return relevance.embedding_relevance(embeds_BNH, scene_BN, cell_BN, valid_BN, max_scenes)


@embedding_relevance.register_fake
def _(embeds_BNH: Tensor, scene_BN: Tensor, cell_BN: Tensor, valid_BN: Tensor | None, max_scenes: int) -> Tensor:
    return embeds_BNH.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


@_op("attention_relevance")
def attention_relevance(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
) -> Tensor:
    """See :func:`segmo.runtime.relevance.attention_relevance`."""
    arguments = (q_BAND, k_BGND, scene_BN, cell_BN, valid_BN, scale, max_scenes)
    if can_generate(q_BAND) and q_BAND.shape[3] % 16 == 0:
        return generated_question.attention_relevance(*arguments)
    return relevance.attention_relevance(*arguments)


@attention_relevance.register_fake
def _(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
) -> Tensor:
    return q_BAND.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


@_op("external_relevance")
def external_relevance(scene_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    """Relevance from the scores handed in by :func:`segmo.external_scores` for the running call."""
    return relevance.external_relevance(external.current_scores(), scene_BN, frame_BN, cell_BN, max_scenes)


@external_relevance.register_fake
def _(scene_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    return scene_BN.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


def _video_total(features: Tensor) -> int:
    return features.numel() // features.shape[-1]


@_op("select_tokens")
def select_tokens(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    features: Tensor,
    keep: float,
    balance: float,
    encoded_BN: Tensor | None = None,
) -> Tensor:
    """Positions of the kept tokens, (B, K) int64; K from shapes alone.

    See :func:`segmo.runtime.selection.select_tokens`; ``features`` (..., H) is there for its size.
    """
    batch, length = frame_BN.shape
    kept = selection.kept_count(length, _video_total(features), batch, keep)
    return selection.select_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, balance, encoded_BN)


@select_tokens.register_fake
def _(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    features: Tensor,
    keep: float,
    balance: float,
    encoded_BN: Tensor | None = None,
) -> Tensor:
    batch, length = frame_BN.shape
    kept = selection.kept_count(length, _video_total(features), batch, keep)
    return frame_BN.new_empty((batch, kept))


@_op("gather_tokens")
def gather_tokens(x: Tensor, index_BK: Tensor, dim: int) -> Tensor:
    """``x`` at the kept positions of each row along ``dim``; dimension 0 is the batch (or 1, shared by all
    rows).
    """
    if index_BK.shape[0] == 1:
        return x.index_select(dim, index_BK[0])
    shape = [1] * x.dim()
    shape[0], shape[dim] = index_BK.shape
    size = list(x.shape)
    size[0], size[dim] = index_BK.shape
    source = list(x.shape)
    source[0] = index_BK.shape[0]
    return x.expand(source).gather(dim, index_BK.view(shape).expand(size))


@gather_tokens.register_fake
def _(x: Tensor, index_BK: Tensor, dim: int) -> Tensor:
    size = list(x.shape)
    size[0], size[dim] = index_BK.shape
    return x.new_empty(size)


@_op("scatter_tokens")
def scatter_tokens(x: Tensor, index_BK: Tensor, length: int, dim: int) -> Tensor:
    """Back to the prompt's length along ``dim``: NaN (the lowest value for integers) at dropped tokens.

    A dropped position has no result. NaN says so in any use of it, where 0 would look like an answer.
    """
    size = list(x.shape)
    size[dim] = length
    out = x.new_full(size, torch.nan if x.dtype.is_floating_point else torch.iinfo(x.dtype).min)
    shape = [1] * x.dim()
    shape[0], shape[dim] = index_BK.shape
    return out.scatter_(dim, index_BK.view(shape).expand_as(x), x)


@scatter_tokens.register_fake
def _(x: Tensor, index_BK: Tensor, length: int, dim: int) -> Tensor:
    size = list(x.shape)
    size[dim] = length
    return x.new_empty(size)


@_op("gather_rows")
def gather_rows(features_RH: Tensor, mask_BN: Tensor, index_BK: Tensor) -> Tensor:
    """Of features with one row per flagged token, in prompt order, the rows of the kept tokens.

    Raises:
        PromptError: the flags do not cover the dropped tokens, so that the count would not fit.
    """
    flagged_BN = mask_BN.long().flatten().cumsum(0).view_as(mask_BN) - 1
    rows = flagged_BN.gather(1, index_BK)[mask_BN.gather(1, index_BK)]
    expected = features_RH.shape[0] - index_BK.shape[0] * (mask_BN.shape[1] - index_BK.shape[1])
    if rows.shape[0] != expected:
        raise PromptError(
            f"{rows.shape[0]} rows of vision features belong to kept tokens where {expected} were expected; "
            "the model adds features at tokens that are not video tokens"
        )
    return features_RH[rows]


@gather_rows.register_fake
def _(features_RH: Tensor, mask_BN: Tensor, index_BK: Tensor) -> Tensor:
    rows = features_RH.shape[0] - index_BK.shape[0] * (mask_BN.shape[1] - index_BK.shape[1])
    return features_RH.new_empty((rows, *features_RH.shape[1:]))


@_op("segment_ids")
def segment_ids(frame_BK: Tensor, scene_BK: Tensor, mode: str) -> Tensor:
    """See :func:`segmo.runtime.segments.segment_ids`."""
    return segments.segment_ids(frame_BK, scene_BK, mode)


@segment_ids.register_fake
def _(frame_BK: Tensor, scene_BK: Tensor, mode: str) -> Tensor:
    return torch.empty_like(frame_BK)


@_op("context_tokens")
def context_tokens(frame_BK: Tensor, scene_BK: Tensor, relevance_BS: Tensor, scenes: int) -> Tensor:
    """See :func:`segmo.runtime.segments.context_tokens`."""
    return segments.context_tokens(frame_BK, scene_BK, relevance_BS, scenes)


@context_tokens.register_fake
def _(frame_BK: Tensor, scene_BK: Tensor, relevance_BS: Tensor, scenes: int) -> Tensor:
    return frame_BK.new_empty(frame_BK.shape, dtype=torch.bool)


@_op("attention_schedule")
def attention_schedule(segment_BK: Tensor, context_BK: Tensor | None, valid_BK: Tensor | None) -> Tensor:
    """See :func:`segmo.runtime.schedule.attention_schedule`."""
    return schedule.attention_schedule(segment_BK, context_BK, valid_BK)


@attention_schedule.register_fake
def _(segment_BK: Tensor, context_BK: Tensor | None, valid_BK: Tensor | None) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.long)


@_op("segment_attention")
def segment_attention(
    q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float, implementation: str
) -> Tensor:
    """Segment attention, (B, A, K, D) laid out (B, K, A, D).

    ``implementation`` is a name from :func:`segmo.runtime.attention.choice.choose`; a generated kernel's name
    holds the hash of its source.
    """
    out = attention_implementation(implementation)(q_BAKD, k_BGKD, v_BGKD, schedule, scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)  # free where it is laid out so already


@segment_attention.register_fake
def _(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float, implementation: str) -> Tensor:
    batch, heads, length, _ = q_BAKD.shape
    return q_BAKD.new_empty((batch, length, heads, v_BGKD.shape[3])).transpose(1, 2)
