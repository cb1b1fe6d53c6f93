"""Budgeted top-k per scene and compaction in one launch of a generated Triton kernel.

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of a row, S scenes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.errors import KernelError, PromptError
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import CompactSpec, Payload
from segmo.runtime.scenes import head_frames
from segmo.runtime.selection import row_budgets

_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Runs:
    """Stretches of tokens with a budget each; every token is in one.

    Attributes:
        key_BN: what decides inside a run, fp32: the largest are kept, ties by order; +inf is always kept.
        table: (runs, 5) list: batch row, first token, end, budget, first place in the kept tokens.
    """

    key_BN: Tensor
    table: list[list[int]]


def selection_runs(
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    relevance_BS: Tensor,
    kept: int,
    balance: float,
) -> Runs:
    """Keys and budgets of the choice that :func:`segmo.runtime.selection.select_tokens` makes, with its
    arguments.

    Raises:
        PromptError: a row's video tokens do not fit ``kept``.
    """
    key_BN = novelty_BN.float().masked_fill(cell_BN < 0, torch.inf)
    table: list[list[int]] = []
    for row in range(frame_BN.shape[0]):
        video_V = (cell_BN[row] >= 0).nonzero()[:, 0]
        length, video = frame_BN.shape[1], video_V.numel()
        total = kept - (length - video)
        ends_in_video = bool(cell_BN[row, -1] >= 0)
        if not ends_in_video <= total <= video:
            raise PromptError(
                f"row {row} has {video} video tokens of {length}, which does not fit {kept} kept tokens: every row "
                "of a batch must hold equally many video tokens, and a prompt that ends in a video must keep at "
                "least one of them"
            )
        budget_S: list[int] = []
        if video:
            frame_V, scene_V = frame_BN[row, video_V], scene_BN[row, video_V]
            budget_S = [0] * (int(scene_V.max()) + 1)
        if total:
            head_V = frame_V == head_frames(frame_V, scene_V)[scene_V]
            key_V = key_BN[row, video_V].masked_fill(head_V, 1)
            budget_S = row_budgets(key_V, scene_V, relevance_BS[row], total, balance, ends_in_video)
            if ends_in_video:
                key_V[-1] = torch.inf
            key_BN[row, video_V] = key_V
        table += _row_runs(row, scene_BN[row], cell_BN[row], budget_S)
    return Runs(key_BN, table)


def _row_runs(row: int, scene_N: Tensor, cell_N: Tensor, budget_S: list[int]) -> list[list[int]]:
    values, counts = torch.unique_consecutive(scene_N, return_counts=True)
    text = torch.nn.functional.pad((cell_N < 0).long().cumsum(0), (1, 0)).tolist()
    table, start, place = [], 0, 0
    for scene, size in zip(values.tolist(), counts.tolist(), strict=True):
        end = start + size
        budget = text[end] - text[start] + (budget_S[scene] if scene >= 0 else 0)
        table.append([row, start, end, budget, place])
        start, place = end, place + budget
    return table


def _payload(name: str, tensor: Tensor, batch: int, length: int) -> tuple[Payload, Tensor]:
    """The payload's spec and its tensor as (outer, B, N, width)."""
    if tensor.dtype not in _TYPES:
        raise KernelError(f"payload {name!r} has dtype {tensor.dtype}, which the compaction kernel cannot copy")
    for token_dim in (1, 2):
        lead = tensor.shape[:token_dim]
        if tensor.dim() > token_dim and tensor.shape[token_dim] == length and lead[-1] in (1, batch):
            outer = lead[0] if token_dim == 2 else 1
            width = tensor.shape[token_dim + 1 :].numel()
            shaped = tensor.reshape(outer, lead[-1], length, width).expand(outer, batch, length, width)
            shaped = shaped if width == 1 or shaped.stride(3) == 1 else shaped.contiguous()
            return Payload(name, _TYPES[tensor.dtype], outer, width), shaped
    raise KernelError(
        f"payload {name!r} of shape {tuple(tensor.shape)} is neither (B, N, ...) nor (X, B, N, ...) for "
        f"B = {batch} and N = {length}"
    )


def compact(
    runs: Runs, kept: int, payloads: Mapping[str, Tensor], block_r: int = 1024
) -> tuple[Tensor, dict[str, Tensor]]:
    """Positions of the kept tokens, ascending, (B, K) int64, and the payloads cut to them, in one launch.

    Args:
        runs: from :func:`selection_runs`; the budgets of a batch row add up to ``kept``.
        kept: K.
        payloads: tensors (B, N, ...) or (X, B, N, ...), where B may be 1 for all rows: hidden states, cos and
            sin, positions. The names are those of the kernel's arguments.

    Raises:
        KernelError: a payload has another shape or dtype, or there is no kernel for the device.
    """
    key_BN = _ordered(runs.key_BN)
    batch, length = key_BN.shape
    device = key_BN.device
    architecture(device)  # refuses devices that cannot run the kernel
    shaped = [_payload(name, tensor, batch, length) for name, tensor in payloads.items()]
    spec = CompactSpec(tuple(payload for payload, _ in shaped), block_r=block_r)
    kernels: Any = render(spec).load()
    tiles = [
        [run, first]
        for run, (_, start, end, budget, _) in enumerate(runs.table)
        if budget
        for first in range(start, end, spec.block_t)
    ]
    index_BK = torch.empty(batch, kept, dtype=torch.long, device=device)
    outputs = [
        torch.empty(payload.outer, batch, kept, payload.width, dtype=tensor.dtype, device=device)
        for payload, tensor in shaped
    ]
    arguments: list[Any] = []
    for (_, tensor), out in zip(shaped, outputs, strict=True):
        arguments += [tensor, out, *tensor.stride()[:3]]
    if tiles and kept:
        kernels.compact_kernel[(len(tiles),)](
            key_BN,
            torch.tensor(runs.table, dtype=torch.int32, device=device),
            torch.tensor(tiles, dtype=torch.int32, device=device),
            index_BK,
            *arguments,
            length,
            kept,
            batch,
            num_warps=kernels.NUM_WARPS,
            num_stages=kernels.NUM_STAGES,
        )
    cut = {
        name: out.reshape(_cut_shape(tensor, batch, length, kept))
        for (name, tensor), out in zip(payloads.items(), outputs, strict=True)
    }
    return index_BK, cut


def _ordered(key_BN: Tensor) -> Tensor:
    """fp32 as int64 in [0, 2^32) with the same order; -0 counts as 0."""
    bits_BN = (key_BN.contiguous() + 0.0).view(torch.int32)
    return (bits_BN ^ ((bits_BN >> 31) & 0x7FFFFFFF)).long() + 2**31


def _cut_shape(tensor: Tensor, batch: int, length: int, kept: int) -> tuple[int, ...]:
    token_dim = 1 if tensor.shape[1] == length and tensor.shape[0] in (1, batch) else 2
    return (*tensor.shape[: token_dim - 1], batch, kept, *tensor.shape[token_dim + 1 :])
