"""Measures what inductor makes of a decoder layer on this processor, beside the same layer in tiles of rows.

Legend: n rows, H hidden size, I intermediate size, A query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from segmo.compat.inductor import compile_graph, fresh_cache
from segmo.errors import in_one_line
from segmo.runtime.cost.gain import Fusion, Gain, processor
from segmo.runtime.cost.measure import LAYER_ROWS, Timer
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.row_tiles import in_row_tiles

_PAIRS = 7
_ROWS = (-2,) * 4  # where they are in all that the layer reads and gives
_FEW_ROWS_CALLS = 20  # of a decode step, which is too short to be timed alone


class _Layer(nn.Module):
    """A decoder layer around its attention, in the steps that SegMo leaves of it (``reuse-buffers`` has been there)."""

    def __init__(self, shape: ModelShape, like: Tensor) -> None:
        super().__init__()
        linear = functools.partial(nn.Linear, bias=False, device=like.device, dtype=like.dtype)
        hidden, inner, self.size = shape.hidden, shape.intermediate, shape.head_size
        self.q, self.o = linear(hidden, shape.heads * self.size), linear(shape.heads * self.size, hidden)
        self.k, self.v = (linear(hidden, shape.kv_heads * self.size) for _ in range(2))
        self.gate, self.up, self.down = linear(hidden, inner), linear(hidden, inner), linear(inner, hidden)
        self.before, self.after = (nn.Parameter(like.new_ones(hidden)) for _ in range(2))
        self.requires_grad_(False)

    def forward(self, x_1nH: Tensor, attended_1nX: Tensor, cos_1nD: Tensor, sin_1nD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of the rows, and the layer's result where attention's is ``attended_1nX``."""
        normed = _norm(x_1nH, self.before)
        q, k, v = (self._heads(linear(normed)) for linear in (self.q, self.k, self.v))
        q, k = _rotate(q, cos_1nD, sin_1nD), _rotate(k, cos_1nD, sin_1nD)
        middle = self.o(attended_1nX)
        middle += x_1nH
        normed = _norm(middle, self.after)
        gate = nn.functional.silu(self.gate(normed), inplace=True)
        gate *= self.up(normed)
        out: Tensor = self.down(gate)
        out += middle
        return q, k, v, out

    def _heads(self, x_1nX: Tensor) -> Tensor:
        return x_1nX.view(*x_1nX.shape[:2], -1, self.size).transpose(1, 2)


def _norm(x_1nH: Tensor, weight_H: Tensor) -> Tensor:
    wide = x_1nH.float()
    wide *= torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    normed = wide.to(x_1nH.dtype)
    normed *= weight_H
    return normed


def _rotate(x_1AnD: Tensor, cos_1nD: Tensor, sin_1nD: Tensor) -> Tensor:
    cos, sin = cos_1nD.unsqueeze(1), sin_1nD.unsqueeze(1)
    left, right = x_1AnD.chunk(2, dim=-1)
    turned = x_1AnD * cos
    crossed = torch.cat([-right, left], dim=-1)
    crossed *= sin
    turned += crossed
    return turned


class _Inductor:
    """A backend of ``torch.compile`` that has a graph compiled as SegMo does, and notes the time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self, gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        start = time.perf_counter()
        compiled: Callable[..., Any] = compile_graph(gm, inputs, {}, on_cpu=True)
        self.seconds = time.perf_counter() - start
        return compiled


def measure_fusion(
    dtype: torch.dtype, shape: ModelShape, timer: Timer | None = None, rows: int = LAYER_ROWS, pairs: int = _PAIRS
) -> Fusion:
    """Has inductor compile a layer of this size on the CPU, twice, and times it: half a minute or so.

    Args:
        dtype: of weights and activations.
        shape: whose layer it is.
        rows: of the prefill.
        pairs: how often the two are timed in turn.
    """
    timer = timer or Timer(torch.device("cpu"))
    layer = _Layer(shape, torch.ones(1, dtype=dtype))
    failed, gains = "", []
    try:
        with torch.no_grad(), fresh_cache():
            _Inductor()(*_trivial())  # what inductor makes once for a machine is no layer's
            gains = [_gain(layer, count, timer, pairs) for count in (rows, 1)]
    except Exception as error:  # noqa: BLE001  # that it fails here is what is asked for
        failed = in_one_line(getattr(error, "inner_exception", error))  # Dynamo wraps it
    prefill, decode = gains or (None, None)
    return Fusion(prefill, decode, str(datetime.date.today()), processor(), torch.__version__, failed)


def _trivial() -> tuple[GraphModule, list[Tensor]]:
    return torch.fx.symbolic_trace(lambda x: (x + 1,)), [torch.ones(64, dtype=torch.float32)]


def _gain(layer: _Layer, rows: int, timer: Timer, pairs: int) -> Gain:
    inductor = _Inductor()
    fused: Any = torch.compile(layer, backend=inductor, dynamic=True, fullgraph=True)
    like = layer.before
    x_1nH, attended_1nX = (like.new_empty(1, rows, linear.in_features).normal_() for linear in (layer.q, layer.o))
    cos_1nD, sin_1nD = (like.new_empty(1, rows, layer.size).normal_() for _ in range(2))
    given = x_1nH, attended_1nX, cos_1nD, sin_1nD
    once = dataclasses.replace(timer, runs=1)
    calls = _FEW_ROWS_CALLS if rows == 1 else 1

    def seconds(run: Callable[..., Any], *args: Any) -> float:
        def act() -> None:
            for _ in range(calls):
                run(*args)

        return once(act)

    tiled = in_row_tiles, layer, _ROWS, _ROWS, 0  # as ``tile-rows`` has it run
    ratios = [seconds(*tiled, *given) / seconds(fused, *given) for _ in range(pairs)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    return Gain(rows, ratio, low, high, inductor.seconds)
