"""How SegMo's operators are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import CustomOpDef


def operator(name: str) -> Callable[[Callable[..., Any]], CustomOpDef]:
    """Makes a function the operator ``torch.ops.segmo.NAME``, which changes none of its arguments."""
    return torch.library.custom_op(f"segmo::{name}", mutates_args=())
