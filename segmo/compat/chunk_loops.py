"""The loops over chunks in transformers' linear attention and state-space layers, as one call each in a graph.

Where their kernels (fla, mamba-ssm) are not installed, transformers runs such a layer chunk by chunk in Python, which a
trace unrolls: hundreds of nodes, and a number of chunks that holds for one length. In a trace each of these functions
becomes one opaque operator, which calls the very same function when the graph runs (with the kernels, if there are
any). Under recorded gradients the trace is as it was, because the operator has none.

What such a function does is known by the names of its arguments: they are those of the kernels that it stands for.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

WHAT = "transformers' chunked functions of linear attention (delta rule, KDA) and Mamba-2"
VERSIONS = "transformers 5.20 to 5.24"

_DELTA = {"query", "key", "value", "g", "beta", "chunk_size", "initial_state", "output_final_state"}
_SCAN = {"hidden_states", "dt", "A", "B", "C", "chunk_size", "initial_states", "return_final_states"}


def make_loops_opaque() -> int:
    """Registers every such function of the modules that are imported by now. Returns how many are registered."""
    return sum(_register(function) for function in _functions())


def _functions() -> Iterator[Callable[..., Any]]:
    for name, module in list(sys.modules.items()):
        if name.rpartition(".")[2].startswith("modeling_"):
            for value in list(vars(module).values()):
                if isinstance(value, FunctionType) and value.__module__ == name:
                    yield value


@functools.cache
def _register(function: Callable[..., Any]) -> bool:
    try:
        takes = set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    traced = _traced_delta if takes >= _DELTA else _traced_scan if takes >= _SCAN else None
    if traced is None:
        return False
    name, plain = f"{function.__module__}:{function.__qualname__}", inspect.unwrap(function)
    substitute: Any = torch.compiler.substitute_in_graph(function, skip_signature_check=True)
    substitute(traced(name, plain))
    return True


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    module, _, qualified = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), qualified)
    return found


def _packed(more: dict[str, Any]) -> bool:
    """Whether several sequences share a row, which only a kernel can keep apart."""
    return more.get("cu_seqlens") is not None or more.get("seq_idx") is not None


# Delta rules


@torch.library.custom_op("segmo_layers::delta_rule", mutates_args=())
def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor,
    initial_state: Tensor | None, normalise: bool, function: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A chunked delta rule over queries, keys (B, N, G, D) and values (B, N, A, E): (B, N, A, E) and the last state."""
    out, state = _function(function)(
        query, key, value, g=g, beta=beta, initial_state=initial_state, output_final_state=True,
        use_qk_l2norm_in_kernel=normalise,
    )  # fmt: skip
    return out.contiguous(), state.contiguous()


@delta_rule.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor,
    initial_state: Tensor | None, normalise: bool, function: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, heads, width = value.shape
    state = value.new_empty((batch, heads, key.shape[3], width), dtype=torch.float32)
    return query.new_empty(value.shape), state


def _traced_delta(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def traced(
        query: Any, key: Any, value: Any, g: Any, beta: Any, chunk_size: int = 64, initial_state: Any = None,
        output_final_state: bool = False, use_qk_l2norm_in_kernel: bool = False, **more: Any,
    ) -> Any:  # fmt: skip
        if torch.is_grad_enabled() or _packed(more):
            return plain(
                query, key, value, g=g, beta=beta, chunk_size=chunk_size, initial_state=initial_state,
                output_final_state=output_final_state, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, **more,
            )  # fmt: skip
        out, state = torch.ops.segmo_layers.delta_rule(
            query, key, value, g, beta, initial_state, use_qk_l2norm_in_kernel, name
        )
        return out, state if output_final_state else None

    return traced


# Mamba-2


@torch.library.custom_op("segmo_layers::scan", mutates_args=())
def scan(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int, d: Tensor | None, dt_bias: Tensor | None,
    initial_states: Tensor | None, dt_softplus: bool, dt_limit: list[float], function: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Mamba-2's chunked scan over x (B, N, A, D) with states of width S: (B, N, A, D) and the last state."""
    out, state = _function(function)(
        x, dt, a, b, c, chunk_size=chunk_size, D=d, z=None, dt_bias=dt_bias, initial_states=initial_states,
        dt_softplus=dt_softplus, dt_limit=tuple(dt_limit), return_final_states=True,
    )  # fmt: skip
    return out.contiguous(), state.contiguous()


@scan.register_fake
def _(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, chunk_size: int, d: Tensor | None, dt_bias: Tensor | None,
    initial_states: Tensor | None, dt_softplus: bool, dt_limit: list[float], function: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    batch, _, heads, width = x.shape
    dtype = torch.float32 if _is_plain(function) else x.dtype
    state = x.new_empty((batch, heads, width, b.shape[3]), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=dtype), state


def _is_plain(name: str) -> bool:
    """Whether transformers' own code runs, which gives its result in fp32."""
    try:
        import_module("mamba_ssm")
    except ImportError:
        return True
    return False


def _traced_scan(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def traced(
        hidden_states: Any, dt: Any, A: Any, B: Any, C: Any, chunk_size: int, D: Any = None,
        dt_bias: Any = None, initial_states: Any = None, dt_softplus: bool = False, dt_limit: Any = (0.0, float("inf")),
        return_final_states: bool = False, **more: Any,
    ) -> Any:  # fmt: skip
        if torch.is_grad_enabled() or _packed(more):
            return plain(
                hidden_states, dt, A, B, C, chunk_size=chunk_size, D=D, dt_bias=dt_bias, initial_states=initial_states,
                dt_softplus=dt_softplus, dt_limit=dt_limit, return_final_states=return_final_states, **more,
            )  # fmt: skip
        out, state = torch.ops.segmo_layers.scan(
            hidden_states, dt, A, B, C, chunk_size, D, dt_bias, initial_states, dt_softplus, list(dt_limit), name
        )
        return (out, state) if return_final_states else out

    return traced


def fits() -> str | None:
    """Functions are found by their arguments, so that another kind is left alone; Dynamo must take a substitute."""
    has = hasattr(torch.compiler, "substitute_in_graph")
    return None if has else "torch.compiler has no substitute_in_graph"
