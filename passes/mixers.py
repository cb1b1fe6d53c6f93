"""Calls that carry one token's values to another token by their nature, other than attention.

Where some tokens are dropped for good these simply run on those that are left. Where tokens are only elsewhere (on
other ranks) or not needed (all rows but the last), they would give something else, and whoever cuts so must refuse
them, or have them read all tokens.
"""

from __future__ import annotations

from torch.fx import Node

from segmo.passes.graph import library_of, op_name

_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "conv_transpose1d"}
_MIXERS = {
    *_CONVOLUTIONS, "cumsum", "cumprod", "cummax", "cummin", "logcumsumexp", "flip", "fliplr", "flipud", "roll", "diff",
    "unfold", "im2col", "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_max_pool1d", "interpolate", "upsample_linear1d", "fft_fft", "fft_rfft", "fft_ifft", "fft_irfft",
}  # fmt: skip
# Of the operators of other libraries it is not known whether they do.
_KNOWN_LIBRARIES = {"", "aten", "prims", "segmo", "transformers"}


def is_recurrent(node: Node) -> bool:
    """Whether a call is (a part of) a layer that hands a state from token to token: linear attention, Mamba, a short
    convolution.
    """
    return library_of(node) == "segmo_layers" or (node.op == "call_function" and _name(node) == "conv1d")


def mixes_tokens(node: Node) -> bool:
    """Whether a call is one of a convolution, a scan, or a shift along the prompt, or of a kind that is not known."""
    if node.op not in ("call_function", "call_method"):
        return False
    return _name(node) in _MIXERS or library_of(node) not in _KNOWN_LIBRARIES


def _name(node: Node) -> str:
    """Of a function or method, also one that changes its tensor in place."""
    return op_name(node).removeprefix(".").rstrip("_")
