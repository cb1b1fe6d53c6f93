"""Which implementation of segment attention a device, dtype and shape gets, and why."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from segmo.errors import CompileError, KernelError
from segmo.runtime import lowering as lowerings
from segmo.runtime.attention import flash, reference
from segmo.runtime.lowering import kernel_name

Implementation = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Shape:
    """What an implementation depends on.

    Attributes:
        device, dtype: of q, k and v.
        head_size: D; the larger one where queries and keys have another than values.
        heads, groups: query heads and key/value heads.
    """

    device: torch.device
    dtype: torch.dtype
    head_size: int
    heads: int
    groups: int


@dataclass(frozen=True)
class Choice:
    """What was chosen for a graph's attention.

    Attributes:
        implementation, reason: from :func:`choose`.
        shape: what it was chosen for.
    """

    implementation: str
    reason: str
    shape: Shape


def generated_kernel(shape: Shape) -> str:
    """``"triton@HASH"``: the generated kernel for a shape, named by the hash of its source.

    The hash covers the template, the tile sizes (tuned ones too) and the precision. The strides of keys and
    values are left out: they are found at run time.

    Raises:
        KernelError: there is no kernel for this shape, dtype or device.
    """
    from segmo.runtime.kernels.device import architecture
    from segmo.runtime.kernels.render import render
    from segmo.runtime.kernels.specs import dtype_name
    from segmo.runtime.kernels.tuned import tuned_attention_spec

    if shape.heads % shape.groups:
        raise KernelError(f"{shape.heads} query heads are not a multiple of {shape.groups} key/value heads")
    repeats = shape.heads // shape.groups
    target = architecture(shape.device)
    spec = tuned_attention_spec(target, shape.device, shape.head_size, dtype_name(shape.dtype), repeats)
    return kernel_name(render(spec))


def choose(lowering: str, shape: Shape) -> tuple[str, str]:
    """Implementation and the reason for it.

    Args:
        lowering: the user's option, see :class:`segmo.options.Options`.
        shape: of the graph's attention.

    Raises:
        CompileError: ``lowering="flash"`` or ``"triton"`` was asked for where there is none.
    """
    on_cpu = shape.device.type == "cpu"
    if lowering == "flash" and not on_cpu:
        raise CompileError(
            f"lowering='flash' is the CPU's flash attention; the model is on {shape.device}. Use lowering='auto'"
        )
    fallback = "flash" if on_cpu and lowering != "reference" else "reference"
    return lowerings.choose(lowering, shape.device, shape.dtype, lambda: generated_kernel(shape), fallback)


def _triton(expected: str, q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float) -> Tensor:
    from segmo.runtime.attention import triton

    # Arguments have one head size here, see :func:`implementation`.
    shape = Shape(q_BAKD.device, q_BAKD.dtype, q_BAKD.shape[3], q_BAKD.shape[1], k_BGKD.shape[1])
    lowerings.runs_generated(expected, lambda: generated_kernel(shape))
    return triton.segment_attention(q_BAKD, k_BGKD, v_BGKD, schedule, scale)


def implementation(name: str) -> Implementation:
    """The function behind a name that :func:`choose` gave; queries and keys may have another head size than values.

    Raises:
        KernelError: there is no such implementation.
    """
    return functools.partial(_of_one_size, _implementation(name))


def _of_one_size(
    attend: Implementation, q_BAKD: Tensor, k_BGKD: Tensor, v_BGKE: Tensor, schedule: Tensor, scale: float
) -> Tensor:
    """Attention whose kernels know one head size D, for values of size E: what is smaller is filled up with zeros.

    Zeros add nothing to a product of query and key, and give columns of zeros behind the values', which are left out.
    """
    width, values = q_BAKD.shape[3], v_BGKE.shape[3]
    if width == values:
        return attend(q_BAKD, k_BGKD, v_BGKE, schedule, scale)
    size = max(width, values)
    query, key, value = (torch.nn.functional.pad(x, (0, size - x.shape[3])) for x in (q_BAKD, k_BGKD, v_BGKE))
    return attend(query, key, value, schedule, scale)[..., :values]


def _implementation(name: str) -> Implementation:
    if lowerings.is_generated(name):
        return functools.partial(_triton, name)
    known: dict[str, Implementation] = {
        "reference": reference.segment_attention,
        "flash": flash.segment_attention,
    }
    if name not in known:
        raise KernelError(f"there is no implementation {name!r} of segment attention; known are {', '.join(known)}")
    return known[name]
