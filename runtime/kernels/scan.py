"""Redundancy and frame descriptors by a generated Triton kernel: :func:`segmo.runtime.features.scan_video`,
:func:`segmo.runtime.features.scan_tokens` and :func:`segmo.runtime.novelty.distance_to` on a GPU.

Legend: B batch, N prompt tokens, V video tokens of the whole batch, T video tokens of successive frames of one prompt,
F frames, R rows of features, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from segmo.runtime.features import alone, check_finite, previous_cell
from segmo.runtime.kernels.configs import scan_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import ScanSpec, dtype_name
from segmo.runtime.layout import video_starts


@dataclass(frozen=True)
class FrameTable:
    """Where video tokens lie among rows of features, frame by frame.

    Attributes:
        position_V: row of each token, int64.
        previous_V: index in this table of the same cell of the previous frame, -1 where there is none, int64.
        size_F: tokens of each frame, int64.
        follows_F: 1 where a frame of the same video comes before, int32.
    """

    position_V: Tensor
    previous_V: Tensor
    size_F: Tensor
    follows_F: Tensor

    def first_F(self) -> Tensor:
        """First token of each frame, and their number at the end, (F + 1,) int32."""
        return torch.nn.functional.pad(self.size_F.cumsum(0), (1, 0)).int()


def _row_table(position_T: Tensor, frame_T: Tensor, cell_T: Tensor, first_F: Tensor) -> FrameTable:
    """The table of one prompt's tokens, in order, whose frames count from 0; ``first_F``: which begin a video."""
    previous_T = previous_cell(frame_T, cell_T).masked_fill(first_F[frame_T], -1)
    frames, size_F = torch.unique_consecutive(frame_T, return_counts=True)
    return FrameTable(position_T, previous_T, size_F, (~first_F[frames]).int())


def frame_table(frame_BN: Tensor, cell_BN: Tensor) -> FrameTable | None:
    """The table of a batch, from :func:`segmo.runtime.layout.video_layout`; None where it holds no video."""
    length = frame_BN.shape[1]
    tables: list[FrameTable] = []
    tokens = 0
    for row in range(frame_BN.shape[0]):
        video_V = (cell_BN[row] >= 0).nonzero()[:, 0]
        if video_V.numel() == 0:
            continue
        first_F = video_starts(frame_BN[row], cell_BN[row])
        table = _row_table(video_V + row * length, frame_BN[row, video_V], cell_BN[row, video_V], first_F)
        previous_V = torch.where(table.previous_V < 0, -1, table.previous_V + tokens)
        tables.append(replace(table, previous_V=previous_V))
        tokens += video_V.shape[0]
    if not tables:
        return None
    return FrameTable(*(torch.cat([getattr(table, field.name) for table in tables]) for field in fields(FrameTable)))


def spec_for(embeds_BNH: Tensor) -> ScanSpec:
    """The spec of the kernels for features on this device, with this dtype and hidden size.

    Raises:
        KernelError: there are none.
    """
    return scan_spec(architecture(embeds_BNH.device), int(embeds_BNH.shape[2]), dtype_name(embeds_BNH.dtype))


def scan_video(
    embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, spec: ScanSpec | None = None
) -> tuple[Tensor, Tensor]:
    """Novelty and frame similarity of every video token, (B, N) fp32 each; text has 0 and 1.

    Args:
        embeds_BNH: token embeddings after the merge.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        spec: the kernel to run; one for this device when not given.

    Raises:
        PromptError: the features hold NaN or infinity.
        KernelError: there is no kernel for the dtype or device.
    """
    table = frame_table(frame_BN, cell_BN)
    if table is None:
        return torch.zeros(frame_BN.shape, device=embeds_BNH.device), torch.ones(
            frame_BN.shape, device=embeds_BNH.device
        )
    novelty_R, similarity_R = _launch(embeds_BNH.flatten(0, 1), table, spec or spec_for(embeds_BNH))
    at_V = table.position_V
    check_finite(novelty_R[at_V], frame_BN.flatten()[at_V], cell_BN.flatten()[at_V])
    return novelty_R.view(frame_BN.shape), similarity_R.view(frame_BN.shape)


def scan_tokens(
    embeds_NH: Tensor, at_T: Tensor, frame_T: Tensor, cell_T: Tensor, first_F: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`segmo.runtime.features.scan_tokens` by the kernel for this device.

    Raises:
        PromptError: the features hold NaN or infinity.
        KernelError: there is no kernel for the dtype or device.
    """
    local_T, first = alone(frame_T, first_F)
    table = _row_table(at_T, local_T, cell_T, first)
    novelty_N, similarity_N = _launch(embeds_NH, table, spec_for(embeds_NH[None]))
    check_finite(novelty_N[at_T], frame_T, cell_T)
    return novelty_N[at_T], similarity_N[at_T[table.first_F()[:-1]]]


def distance_to(embeds_NH: Tensor, at_T: Tensor, other_T: Tensor, frame_T: Tensor) -> Tensor:
    """:func:`segmo.runtime.novelty.distance_to` by the same kernels: the other token stands for the cell before.

    Raises:
        KernelError: there is no kernel for the dtype or device.
    """
    size_F = torch.unique_consecutive(frame_T, return_counts=True)[1]
    table = FrameTable(at_T, other_T, size_F, torch.zeros_like(size_F, dtype=torch.int32))
    return _launch(embeds_NH, table, spec_for(embeds_NH[None]))[0][at_T]


def _launch(x_RH: Tensor, table: FrameTable, spec: ScanSpec) -> tuple[Tensor, Tensor]:
    """Novelty and frame similarity in the rows of the table's tokens, 0 and 1 in others; (R,) fp32 each."""
    x_RH = x_RH if x_RH.stride(1) == 1 else x_RH.contiguous()
    rows, hidden = x_RH.shape
    device = x_RH.device
    tokens, frames = table.position_V.shape[0], table.size_F.shape[0]
    novelty_R, similarity_R = torch.zeros(rows, device=device), torch.ones(rows, device=device)
    dot_SV = torch.empty(spec.slices, tokens, device=device)
    norm_SV = torch.empty_like(dot_SV)
    sum_FH = torch.empty(frames, hidden, device=device)
    before_V = torch.where(table.previous_V < 0, -1, table.position_V[table.previous_V.clamp(min=0)])
    first_F = table.first_F()
    kernels: Any = render(spec).load()
    launch = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    kernels.scan_kernel[frames, spec.slices](
        x_RH, table.position_V, before_V, first_F, dot_SV, norm_SV, sum_FH, x_RH.stride(0), tokens, **launch
    )
    kernels.finish_scan_kernel[(frames,)](
        dot_SV,
        norm_SV,
        sum_FH,
        table.position_V,
        table.previous_V,
        first_F,
        table.follows_F,
        novelty_R,
        similarity_R,
        tokens,
        **launch,
    )
    return novelty_R, similarity_R
