"""Redundancy and frame descriptors by a generated Triton kernel: :func:`segmo.runtime.features.scan_video`,
:func:`segmo.runtime.features.scan_tokens` and :func:`segmo.runtime.novelty.distance_to` on a GPU.

Legend: B batch, N prompt tokens, V video tokens of the whole batch, T video tokens of successive frames of one prompt,
F frames, R rows of features, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.features import alone, finite_or_nan, mean_of_rows, previous_cell
from segmo.runtime.host import Array, give, read
from segmo.runtime.kernels.configs import scan_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import ScanSpec, dtype_name
from segmo.runtime.video_runs import places
from segmo.runtime.video_tokens import VideoTokens


@dataclass(frozen=True)
class FrameTable:
    """Where video tokens lie among rows of features, frame by frame.

    Attributes:
        position_V: row of each token, int64.
        previous_V: index in this table of the same cell of the previous frame, -1 where there is none, int64.
        first_F: first token of each frame, and their number at the end, (F + 1,) int32.
        follows_F: 1 where a frame of the same video comes before, int32.
    """

    position_V: Tensor
    previous_V: Tensor
    first_F: Tensor
    follows_F: Tensor


def _heads(frame_T: Array) -> Array:
    """First token of each frame, and their number at the end, (F + 1,) int32."""
    return np.append(places(np.diff(frame_T, prepend=-1)), len(frame_T)).astype(np.int32)


def _table(at_T: Array, frame_T: Array, cell_T: Array, first_F: Array, device: torch.device) -> FrameTable:
    """The table of tokens in order, whose frames count from 0; ``first_F``: which begin a video."""
    previous_T = previous_cell(frame_T, cell_T)
    previous_T[first_F[frame_T]] = -1
    head_F = _heads(frame_T)
    follows_F = (~first_F[frame_T[head_F[:-1]]]).astype(np.int32)
    return FrameTable(*(give(part, device) for part in (at_T, previous_T, head_F, follows_F)))


def spec_for(embeds_BNH: Tensor) -> ScanSpec:
    """The spec of the kernels for features on this device, with this dtype and hidden size.

    Raises:
        KernelError: there are none.
    """
    return scan_spec(architecture(embeds_BNH.device), int(embeds_BNH.shape[2]), dtype_name(embeds_BNH.dtype))


def scan_video(
    embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, spec: ScanSpec | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Novelty and frame similarity of every video token, (B, N) fp32 each; text has 0 and 1. Each row's mean, (B, H).

    Args:
        embeds_BNH: token embeddings after the merge.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        spec: the kernel to run; one for this device when not given.

    Raises:
        PromptError: the features hold NaN or infinity.
        KernelError: there is no kernel for the dtype or device.
    """
    video, device = VideoTokens.of(frame_BN, cell_BN), embeds_BNH.device
    if not len(video.at_T):
        mean_BH = torch.zeros(len(frame_BN), embeds_BNH.shape[2], device=device, dtype=torch.float32)
        novelty_BN = torch.zeros(frame_BN.shape, device=device, dtype=torch.float32)
        return novelty_BN, torch.ones_like(novelty_BN), mean_BH
    table = _table(video.at_T, video.frame_T, video.cell_T, video.first_F, device)
    novelty_R, similarity_R, sum_FH = _launch(embeds_BNH.flatten(0, 1), table, spec or spec_for(embeds_BNH))
    novelty_V = novelty_R[table.position_V]
    novelty_R[table.position_V] = finite_or_nan(novelty_V, novelty_V, video.number_T, video.cell_T)
    mean_BH = mean_of_rows(sum_FH, video, len(frame_BN))
    return novelty_R.view(frame_BN.shape), similarity_R.view(frame_BN.shape), mean_BH


def scan_tokens(
    embeds_NH: Tensor, at_T: Tensor, frame_T: Tensor, cell_T: Tensor, first_F: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`segmo.runtime.features.scan_tokens` by the kernel for this device.

    Raises:
        PromptError: the features hold NaN or infinity.
        KernelError: there is no kernel for the dtype or device.
    """
    at, frame, cell, first_of_all = read(at_T, frame_T, cell_T, first_F)
    local, first = alone(frame, first_of_all)
    table = _table(at, local, cell, first, embeds_NH.device)
    novelty_N, similarity_N, _ = _launch(embeds_NH, table, spec_for(embeds_NH[None]))
    novelty_T = novelty_N[table.position_V]
    head_F = table.position_V[table.first_F[:-1].long()]
    return finite_or_nan(novelty_T, novelty_T, frame, cell), similarity_N[head_F]


def distance_to(embeds_NH: Tensor, at_T: Array, other_T: Tensor, frame_T: Array) -> Tensor:
    """:func:`segmo.runtime.novelty.distance_to` by the same kernels: the other token stands for the cell before.

    Raises:
        KernelError: there is no kernel for the dtype or device.
    """
    device, head_F = embeds_NH.device, _heads(frame_T)
    follows_F = torch.zeros(len(head_F) - 1, dtype=torch.int32, device=device)
    table = FrameTable(give(at_T, device), other_T, give(head_F, device), follows_F)
    return _launch(embeds_NH, table, spec_for(embeds_NH[None]))[0][table.position_V]


def _launch(x_RH: Tensor, table: FrameTable, spec: ScanSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Novelty and frame similarity in rows of the table's tokens, 0 and 1 in others, (R,); sums of frames, (F, H)."""
    x_RH = x_RH if x_RH.stride(1) == 1 else x_RH.contiguous()
    rows, hidden = x_RH.shape
    device = x_RH.device
    tokens, frames = table.position_V.shape[0], table.follows_F.shape[0]
    novelty_R = torch.zeros(rows, device=device, dtype=torch.float32)
    similarity_R = torch.ones_like(novelty_R)
    dot_SV = torch.empty(spec.slices, tokens, device=device, dtype=torch.float32)
    norm_SV = torch.empty_like(dot_SV)
    sum_FH = torch.empty(frames, hidden, device=device, dtype=torch.float32)
    before_V = torch.where(table.previous_V < 0, -1, table.position_V[table.previous_V.clamp(min=0)])
    first_F = table.first_F
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
    return novelty_R, similarity_R, sum_FH
