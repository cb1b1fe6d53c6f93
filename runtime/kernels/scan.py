"""Redundancy and frame descriptors by a generated Triton kernel: :func:`segmo.runtime.features.scan_video` on
a GPU.

Legend: B batch, N prompt tokens, V video tokens of the whole batch, F frames of the whole batch, H hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.features import previous_cell
from segmo.runtime.kernels.configs import scan_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import ScanSpec, dtype_name
from segmo.runtime.layout import video_starts


@dataclass(frozen=True)
class FrameTable:
    """Where the video tokens of a batch lie, frame by frame.

    Attributes:
        position_V: of each token in the flattened (B * N) prompt, int64.
        previous_V: index in this table of the same cell of the previous frame, -1 where there is none, int64.
        first_F: first token of each frame, and their number at the end, (F + 1,) int32.
        follows_F: 1 where a frame of the same video comes before, (F,) int32.
    """

    position_V: Tensor
    previous_V: Tensor
    first_F: Tensor
    follows_F: Tensor


def frame_table(frame_BN: Tensor, cell_BN: Tensor) -> FrameTable:
    """The table of a batch, from :func:`segmo.runtime.layout.video_layout`."""
    length = frame_BN.shape[1]
    position, previous, count, follows = [], [], [], []
    tokens = 0
    for row in range(frame_BN.shape[0]):
        video_V = (cell_BN[row] >= 0).nonzero()[:, 0]
        if video_V.numel() == 0:
            continue
        frame_V = frame_BN[row, video_V]
        first_F = video_starts(frame_BN[row], cell_BN[row])  # of each video of the row
        before_V = previous_cell(frame_V, cell_BN[row, video_V]).masked_fill(first_F[frame_V], -1)
        frames, sizes = torch.unique_consecutive(frame_V, return_counts=True)
        position.append(video_V + row * length)
        previous.append(torch.where(before_V < 0, -1, before_V + tokens))
        count.append(sizes)
        follows.append((~first_F[frames]).int())
        tokens += video_V.shape[0]
    empty = torch.zeros(0, dtype=torch.long, device=frame_BN.device)
    sizes = torch.cat(count) if count else empty
    return FrameTable(
        torch.cat(position) if position else empty,
        torch.cat(previous) if previous else empty,
        torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int(),
        torch.cat(follows) if follows else empty.int(),
    )


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
    batch, length, hidden = embeds_BNH.shape
    device = embeds_BNH.device
    spec = spec or spec_for(embeds_BNH)
    table = frame_table(frame_BN, cell_BN)
    novelty_BN = torch.zeros(batch, length, device=device)
    similarity_BN = torch.ones(batch, length, device=device)
    tokens, frames = table.position_V.shape[0], table.follows_F.shape[0]
    if tokens == 0:
        return novelty_BN, similarity_BN
    x_TH = embeds_BNH.reshape(batch * length, hidden)
    x_TH = x_TH if x_TH.stride(1) == 1 else x_TH.contiguous()
    kernels: Any = render(spec).load()
    launch = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    dot_SV = torch.empty(spec.slices, tokens, device=device)
    norm_SV = torch.empty_like(dot_SV)
    sum_FH = torch.empty(frames, hidden, device=device)
    before_V = torch.where(table.previous_V < 0, -1, table.position_V[table.previous_V.clamp(min=0)])
    kernels.scan_kernel[frames, spec.slices](
        x_TH,
        table.position_V,
        before_V,
        table.first_F,
        dot_SV,
        norm_SV,
        sum_FH,
        x_TH.stride(0),
        tokens,
        **launch,
    )
    kernels.finish_scan_kernel[(frames,)](
        dot_SV,
        norm_SV,
        sum_FH,
        table.position_V,
        table.previous_V,
        table.first_F,
        table.follows_F,
        novelty_BN,
        similarity_BN,
        tokens,
        **launch,
    )
    _refuse_nan(novelty_BN, frame_BN, cell_BN)
    return novelty_BN, similarity_BN


def _refuse_nan(novelty_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor) -> None:
    wrong = novelty_BN.isnan().nonzero()
    if wrong.shape[0]:
        row, token = wrong[0].tolist()
        raise PromptError(
            f"the video features hold NaN or infinity (first in frame {int(frame_BN[row, token])}, cell "
            f"{int(cell_BN[row, token])}); check the pixels and the dtype of the vision encoder"
        )
