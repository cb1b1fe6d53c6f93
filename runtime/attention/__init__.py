"""Implementations of segment attention. All equal :mod:`segmo.runtime.attention.reference` to rounding."""

from collections.abc import Callable

from torch import Tensor

from segmo.runtime.attention import flash, reference

IMPLEMENTATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "reference": reference.segment_attention,
    "flash": flash.segment_attention,
}
