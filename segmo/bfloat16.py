"""Which dtype to compute in on this processor."""

from __future__ import annotations

import torch

# Instructions that multiply bfloat16, by torch's names for them: Intel's and AMD's, Intel's tiles, Arm's.
_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def multiplies_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself.

    Where it does not, a matrix product in bfloat16 takes many times as long as in float32, not half as long.
    """
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in _INSTRUCTIONS)
