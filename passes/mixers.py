"""Calls that carry one token's values to another token by their nature, other than attention.

Where some tokens are dropped for good these simply run on those that are left. Where tokens are only elsewhere (on
other ranks) or not needed (all rows but the last), they would give something else, and whoever cuts so must refuse
them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

_CONVOLUTIONS = (torch.conv1d, torch.nn.functional.conv1d)
_MIXERS: frozenset[Any] = frozenset({
    *_CONVOLUTIONS, torch.cumsum, torch.cumprod, torch.flip, torch.roll, torch.diff,
    "cumsum", "cumsum_", "cumprod", "flip", "roll", "diff", "unfold",
})  # fmt: skip


def is_recurrent(node: Node) -> bool:
    """Whether a call is (a part of) a layer that hands a state from token to token: linear attention, Mamba, a short
    convolution.
    """
    return getattr(node.target, "namespace", "") == "segmo_layers" or node.target in _CONVOLUTIONS


def mixes_tokens(node: Node) -> bool:
    """Whether a call is one of a convolution, a scan, or a shift along the prompt."""
    target: Any = node.target
    namespace = getattr(target, "namespace", "")
    return target in _MIXERS or namespace == "segmo_layers"
