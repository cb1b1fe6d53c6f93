"""Runs generated kernels in Triton's interpreter, in a process of its own.

Triton decides when it is imported whether kernels are interpreted, so ``TRITON_INTERPRET=1`` can neither be
set in the process that runs the other tests nor be taken back. One child per test process serves all calls.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest


def _prepare() -> None:
    """Runs in the child: one thread, and bf16 products of numbers instead of bit patterns.

    Triton 3.8's interpreter keeps bf16 as uint16 and hands that to numpy's matmul as it is. Widening to fp32
    is exact, and fp32 sums of bf16 products are what the matrix units compute.
    """
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    torch.set_num_threads(1)
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    multiply = builder.create_dot

    def widen(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return handle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widen(a), widen(b), *rest)

    builder.create_dot = create_dot


@functools.cache
def _child() -> ProcessPoolExecutor:
    pytest.importorskip("triton", reason="Triton ships with torch on Linux only")
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare)
    with interpreting_children():
        pool.submit(os.getpid).result()  # starts the child
    return pool


@contextmanager
def interpreting_children() -> Iterator[None]:
    """Processes that are started meanwhile interpret kernels: they inherit ``TRITON_INTERPRET=1``."""
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before


def interpret(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """``function(*arguments, **keywords)`` where kernels are interpreted. Everything must be picklable."""
    return _child().submit(function, *arguments, **keywords).result()


def end_child() -> None:
    """Ends the process, if one was started; a test process that pytest-xdist ends would leave it behind."""
    if _child.cache_info().currsize:
        _child().shutdown()
