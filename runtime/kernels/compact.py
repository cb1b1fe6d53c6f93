"""Budgeted top-k per scene and compaction in one launch of a generated Triton kernel.

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of a row, S scenes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmo.errors import KernelError
from segmo.runtime.host import Array, give, read
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import Kernel, render
from segmo.runtime.kernels.specs import CompactSpec, Payload
from segmo.runtime.selection import Chosen
from segmo.runtime.video_runs import places

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
    chosen: Chosen,
    novelty_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    encoded_BN: Tensor | None = None,
    device: torch.device | None = None,
) -> Runs:
    """Keys and budgets with which :func:`compact` keeps the tokens that were chosen.

    Args:
        chosen: from :func:`segmo.runtime.selection.choose_tokens`, which was given the others but the device.
        device: where the tokens are to be cut; that of the novelty if not given.
    """
    novelty, cell, scene, encoded = read(novelty_BN, cell_BN, scene_BN, encoded_BN)
    key = np.where(cell < 0, np.float32(np.inf), novelty)
    if encoded is not None:
        key[(cell >= 0) & ~encoded] = -np.inf  # below every budget
    key[:, -1] = np.inf  # the prompt's last token always stays
    table: list[list[int]] = []
    for row, budgets in enumerate(chosen.budgets):
        table += _row_runs(row, scene[row], cell[row], budgets)
    return Runs(give(key, device or novelty_BN.device), table)


def _row_runs(row: int, scene_N: Array, cell_N: Array, budgets: list[int]) -> list[list[int]]:
    starts = [0, *(places(np.diff(scene_N)) + 1).tolist()]
    text = np.append(0, (cell_N < 0).cumsum()).tolist()
    table, place = [], 0
    for start, end in pairwise([*starts, len(scene_N)]):
        scene = int(scene_N[start])
        budget = text[end] - text[start] + (budgets[scene] if 0 <= scene < len(budgets) else 0)
        table.append([row, start, end, budget, place])
        place += budget
    return table


@dataclass(frozen=True)
class Source:
    """A tensor to be cut to the kept tokens.

    Attributes:
        tensor: with a dimension that counts tokens and one that counts batch rows, the latter B long, or 1
            where all rows share it.
        token_dim, batch_dim: which ones; batch rows come first or right before the tokens.
    """

    tensor: Tensor
    token_dim: int = 1
    batch_dim: int = 0

    @property
    def outer(self) -> int:
        """Product of the other dimensions before the tokens."""
        sizes = self.tensor.shape[: self.token_dim]
        return math.prod(size for dim, size in enumerate(sizes) if dim != self.batch_dim)

    @property
    def width(self) -> int:
        """Values per token."""
        return math.prod(self.tensor.shape[self.token_dim + 1 :])

    def check(self, name: str, batch: int, length: int) -> None:
        """Refuses a tensor whose dimensions are not those of the prompt.

        Raises:
            KernelError: with the payload's ``name``.
        """
        shape = self.tensor.shape
        fits = self.batch_dim in (0, self.token_dim - 1) and 0 < self.token_dim < len(shape)
        if not fits or shape[self.token_dim] != length or shape[self.batch_dim] not in (1, batch):
            raise KernelError(
                f"payload {name!r} of shape {tuple(shape)} has not {batch} batch rows in dimension {self.batch_dim} "
                f"and {length} tokens in dimension {self.token_dim}"
            )

    def rows(self, batch: int) -> Tensor:
        """The tensor as (outer, B, N, width)."""
        x = self.tensor.movedim(self.batch_dim, self.token_dim - 1)
        x = x.reshape(self.outer, *x.shape[self.token_dim - 1 : self.token_dim + 1], self.width)
        x = x.expand(-1, batch, -1, -1)
        return x if self.width == 1 or x.stride(3) == 1 else x.contiguous()

    def cut(self, batch: int, kept: int) -> Tensor:
        """Room for the result: the tensor's shape with B batch rows and K tokens."""
        size = list(self.tensor.shape)
        size[self.batch_dim], size[self.token_dim] = batch, kept
        return self.tensor.new_empty(size)


def payload_of(name: str, dtype: torch.dtype, outer: int, width: int) -> Payload:
    """The payload's spec.

    Raises:
        KernelError: the kernel cannot copy this dtype.
    """
    if dtype not in _TYPES:
        raise KernelError(f"payload {name!r} has dtype {dtype}, which the compaction kernel cannot copy")
    return Payload(name, _TYPES[dtype], outer, width)


def compact_kernel(device: torch.device, payloads: Iterable[Payload], block_r: int = 1024) -> Kernel:
    """The kernel that copies these payloads on a device.

    Raises:
        KernelError: generated kernels cannot run on the device.
    """
    architecture(device)  # refuses devices that cannot run the kernel, which is the same for all that can
    return render(CompactSpec(tuple(payloads), block_r=block_r))


def compact(
    runs: Runs, kept: int, sources: Mapping[str, Source], block_r: int = 1024
) -> tuple[Tensor, dict[str, Tensor]]:
    """Positions of the kept tokens, ascending, (B, K) int64, and the sources cut to them, in one launch.

    Args:
        runs: from :func:`selection_runs`; the budgets of a batch row add up to ``kept``.
        kept: K.
        sources: hidden states, cos and sin, positions. The names are those of the kernel's arguments.

    Raises:
        KernelError: a source has another shape or dtype, or there is no kernel for the device.
    """
    key_BN = _ordered(runs.key_BN)
    batch, length = key_BN.shape
    device = key_BN.device
    for name, source in sources.items():
        source.check(name, batch, length)
    payloads = [payload_of(name, x.tensor.dtype, x.outer, x.width) for name, x in sources.items()]
    kernels: Any = compact_kernel(device, payloads, block_r).load()
    tiles = [
        [run, first]
        for run, (_, start, end, budget, _) in enumerate(runs.table)
        if budget
        for first in range(start, end, kernels.BLOCK_T)
    ]
    index_BK = torch.empty(batch, kept, dtype=torch.long, device=device)
    cut = {name: source.cut(batch, kept) for name, source in sources.items()}
    arguments: list[Any] = []
    for name, source in sources.items():
        rows = source.rows(batch)
        written = Source(cut[name], source.token_dim, source.batch_dim).rows(batch)
        arguments += [rows, cut[name], *rows.stride()[:3], *written.stride()[:2]]
    if tiles and kept:
        kernels.compact_kernel[(len(tiles),)](
            key_BN,
            give(np.array(runs.table, dtype=np.int32), device),
            give(np.array(tiles, dtype=np.int32), device),
            index_BK,
            *arguments,
            length,
            kept,
            num_warps=kernels.NUM_WARPS,
            num_stages=kernels.NUM_STAGES,
        )
    return index_BK, cut


def _ordered(key_BN: Tensor) -> Tensor:
    """fp32 as int64 in [0, 2^32) with the same order; -0 counts as 0."""
    bits_BN = (key_BN.contiguous() + 0.0).view(torch.int32)
    return (bits_BN ^ ((bits_BN >> 31) & 0x7FFFFFFF)).long() + 2**31
