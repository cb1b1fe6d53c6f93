"""The generated kernels of a report's graphs: source, and what the compiler made of it for the targets asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from segmo.errors import KernelError
from segmo.runtime.attention.choice import Choice
from segmo.runtime.kernels.configs import attention_spec
from segmo.runtime.kernels.inventory import Entry, summary
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import AttentionSpec, dtype_name

OTHERWISE = "sm_90"  # whose source is shown where attention does not run on a GPU
FUNCTIONS = ("segment_attention_kernel", "merge_splits_kernel")


@dataclass(frozen=True)
class Source:
    """One generated kernel.

    Attributes:
        target, hash: what it was generated for, and the hash of its source.
        text: the source.
        ran: whether this is what the model runs on.
        reason: why there is no source, empty if there is.
    """

    target: str
    hash: str
    text: str
    ran: bool
    reason: str


@dataclass(frozen=True)
class Kernels:
    """The attention of one shape.

    Attributes:
        choice: what the graph runs on.
        source: the generated kernel for it.
        rows: what the compiler made of it, as :func:`segmo.runtime.kernels.inventory.summary` says it.
    """

    choice: Choice
    source: Source
    rows: tuple[dict[str, Any], ...]


def kernels(choices: Iterable[Choice], targets: Sequence[str]) -> list[Kernels]:
    """One entry per implementation and shape; compiles for ``targets`` only.

    Raises:
        KernelError: a target that is not known.
    """
    return [Kernels(choice, _source(choice), tuple(_rows(choice, targets))) for choice in dict.fromkeys(choices)]


def _source(choice: Choice) -> Source:
    ran = choice.implementation.startswith("triton@")
    target = OTHERWISE
    try:
        if ran:
            from segmo.runtime.kernels.device import architecture

            target = architecture(choice.shape.device)
        kernel = render(_spec(choice, target))
    except KernelError as error:
        return Source(target, "", "", ran, str(error))
    return Source(target, kernel.hash, kernel.source, ran, "")


def _spec(choice: Choice, target: str) -> AttentionSpec:
    shape = choice.shape
    dtype, repeats = dtype_name(shape.dtype), shape.heads // shape.groups
    if choice.implementation.startswith("triton@") and shape.device.type == "cuda":
        from segmo.runtime.kernels.tuned import tuned_attention_spec

        return tuned_attention_spec(target, shape.device, shape.head_size, dtype, repeats)
    return attention_spec(target, shape.head_size, dtype, repeats)


def _rows(choice: Choice, targets: Sequence[str]) -> Iterable[dict[str, Any]]:
    for target in targets:
        spec = _spec(choice, target)
        for function in FUNCTIONS:
            entry = Entry("segment_attention", function, spec, spec.head_size, spec.dtype)
            yield summary(entry, target)
