"""How a rank merges partial attention and attends to one new token: in torch, or by generated Triton kernels.

Legend: W parts, G key/value heads, R query heads per key/value head, n rows, N keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.runtime.attention import chunks, decode, partial
from segmo.runtime.attention import merge as generated_merge
from segmo.runtime.kernels.configs import decode_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import MergeSpec, dtype_name
from segmo.runtime.lowering import kernel_name, runs_generated


def rank_kernels(device: torch.device, dtype: torch.dtype, head_size: int, heads: int, groups: int) -> str:
    """Name of the generated kernels for attention over ranks.

    Raises:
        KernelError: there are none for the dtype, head size or device.
    """
    name = dtype_name(dtype)
    merges = [MergeSpec(head_size, part, out) for part, out in ((name, "fp32"), (name, name), ("fp32", name))]
    spec = decode_spec(architecture(device), head_size, name, heads // groups)
    return kernel_name(render(spec), *map(render, merges))


@dataclass(frozen=True)
class PartKernels:
    """Operations on partial attention.

    Attributes:
        generated: by Triton kernels.
    """

    generated: bool = False

    @classmethod
    def of(cls, implementation: str, q_AND: Tensor, k_GND: Tensor) -> PartKernels:
        """Those that an operator's argument names.

        Raises:
            KernelError: they are others than those that the graph was compiled for.
        """
        shape = (q_AND.device, q_AND.dtype, q_AND.shape[2], q_AND.shape[0], k_GND.shape[0])
        return cls(runs_generated(implementation, lambda: rank_kernels(*shape)))

    def merge(self, out_WGRnD: Tensor, lse_WGRn: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Attention over the union of W disjoint key sets, in ``dtype``, and its fp32 logsumexp."""
        if self.generated:
            return generated_merge.merge_parts(out_WGRnD, lse_WGRn, dtype)
        out, lse = partial.merge_parts(out_WGRnD, lse_WGRn)
        return out.to(dtype), lse

    def merge_two(self, out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> Tensor:
        """Attention over the union of two disjoint key sets, in the dtype of ``out_a``."""
        if self.generated:
            return self.merge(torch.stack([out_a, out_b]), torch.stack([lse_a, lse_b]), out_a.dtype)[0]
        return chunks.merge(out_a, lse_a, out_b, lse_b)

    def decode(self, q_GR1D: Tensor, k_GND: Tensor, v_GND: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """One new token's attention over one piece of a cache, (G, R, 1, D), and its logsumexp (G, R, 1)."""
        if not self.generated:
            return partial.partial_attention(q_GR1D, k_GND, v_GND, scale, causal=False)
        q_1AD = q_GR1D.flatten(0, 1).transpose(0, 1)
        out, lse = decode.decode_attention(q_1AD, [decode.Piece(k_GND[None], v_GND[None])], scale)
        return out.view(q_GR1D.shape), lse.view(q_GR1D.shape[:3])
