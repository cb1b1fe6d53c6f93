"""The operators that choose tokens and cut tensors to them, and put results back: ``torch.ops.segmo.*``.

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of the batch, H hidden size, S scenes, R rows
of features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.errors import KernelError, PromptError
from segmo.runtime import selection
from segmo.runtime.host import here
from segmo.runtime.kernels.compact import Source, compact, compact_kernel, payload_of, selection_runs
from segmo.runtime.kernels.specs import Payload
from segmo.runtime.lowering import kernel_name, runs_generated
from segmo.runtime.register import fake, operator


def _kept_count(frame_BN: Tensor, total: int, keep: float) -> int:
    """K, from shapes alone; ``total`` video tokens of the batch."""
    batch, length = frame_BN.shape
    return selection.kept_count(length, total, batch, keep)


@operator("select_tokens")
def select_tokens(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    total: int,
    keep: float,
    balance: float,
    encoded_BN: Tensor | None = None,
) -> Tensor:
    """Positions of the kept tokens, (B, K) int64; K from shapes alone.

    See :func:`segmo.runtime.selection.select_tokens`; ``total`` video tokens in the batch.
    """
    kept = _kept_count(frame_BN, total, keep)
    return selection.select_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, balance, encoded_BN)


@fake(select_tokens)
def _(frame_BN: Tensor, total: int, keep: float) -> Tensor:
    return frame_BN.new_empty((frame_BN.shape[0], _kept_count(frame_BN, total, keep)))


@operator("select_and_gather")
def select_and_gather(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    total: int,
    keep: float,
    balance: float,
    encoded_BN: Tensor | None,
    like: Tensor,
    sources: list[Tensor],
    dims: list[int],
    implementation: str,
) -> list[Tensor]:
    """``select_tokens``, and ``gather_tokens`` of each source along its dimension, in one launch where ``like`` is.

    The positions come first, as the host has them and as that device has them, then the sources in order. There is a
    generated implementation only.
    """
    named = {f"x{i}": Source(x, dim) for i, (x, dim) in enumerate(zip(sources, dims, strict=True))}
    payloads = [payload_of(name, x.tensor.dtype, x.outer, x.width) for name, x in named.items()]
    if not runs_generated(implementation, lambda: selection_kernel(like.device, payloads)):
        raise KernelError("select_and_gather has no torch implementation; use select_tokens and gather_tokens")
    kept = _kept_count(frame_BN, total, keep)
    chosen = selection.choose_tokens(novelty_BN, frame_BN, cell_BN, scene_BN, relevance_BS, kept, balance, encoded_BN)
    runs = selection_runs(chosen, novelty_BN, cell_BN, scene_BN, encoded_BN, like.device)
    index_BK, cut = compact(runs, kept, named)
    return [torch.from_numpy(chosen.index_BK), index_BK, *cut.values()]


@fake(select_and_gather)
def _(frame_BN: Tensor, total: int, keep: float, like: Tensor, sources: list[Tensor], dims: list[int]) -> list[Tensor]:
    chosen_BK = frame_BN.new_empty((frame_BN.shape[0], _kept_count(frame_BN, total, keep)))
    index_BK = torch.empty_like(chosen_BK, device=like.device)
    return [chosen_BK, index_BK, *(_gathered(x, index_BK, dim) for x, dim in zip(sources, dims, strict=True))]


def selection_kernel(device: torch.device, payloads: list[Payload]) -> str:
    """Name of ``select_and_gather``'s implementation for such payloads.

    Raises:
        KernelError: generated kernels cannot run on the device.
    """
    return kernel_name(compact_kernel(device, payloads))


@operator("gather_tokens")
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


def _gathered(x: Tensor, index_BK: Tensor, dim: int) -> Tensor:
    size = list(x.shape)
    size[0], size[dim] = index_BK.shape
    return x.new_empty(size)


@fake(gather_tokens)
def _(x: Tensor, index_BK: Tensor, dim: int) -> Tensor:
    return _gathered(x, index_BK, dim)


@operator("scatter_tokens")
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


@fake(scatter_tokens)
def _(x: Tensor, length: int, dim: int) -> Tensor:
    size = list(x.shape)
    size[dim] = length
    return x.new_empty(size)


@operator("gather_rows")
def gather_rows(features_RH: Tensor, mask_BN: Tensor, index_BK: Tensor) -> Tensor:
    """Of features with one row per flagged token, in prompt order, the rows of the kept tokens.

    Raises:
        PromptError: the flags do not cover the dropped tokens, so that the count would not fit.
    """
    row_BN = mask_BN.long().flatten().cumsum(0).view_as(mask_BN) - 1
    row_T, flag_T = row_BN.gather(1, index_BK).flatten(), mask_BN.gather(1, index_BK).flatten()
    expected = features_RH.shape[0] - index_BK.shape[0] * (mask_BN.shape[1] - index_BK.shape[1])
    if here(flag_T) and (found := int(flag_T.numpy().sum())) != expected:
        # A device is not waited for: there the model's own addition meets another number of rows, which is an error.
        raise PromptError(
            f"{found} rows of vision features belong to kept tokens where {expected} were expected; "
            "the model adds features at tokens that are not video tokens"
        )
    first = torch.argsort((~flag_T).byte(), stable=True)[:expected]  # the flagged ones, in order
    return features_RH.index_select(0, row_T[first].clamp(min=0))


@fake(gather_rows)
def _(features_RH: Tensor, mask_BN: Tensor, index_BK: Tensor) -> Tensor:
    rows = features_RH.shape[0] - index_BK.shape[0] * (mask_BN.shape[1] - index_BK.shape[1])
    return features_RH.new_empty((rows, *features_RH.shape[1:]))
