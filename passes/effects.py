"""Whether a call may change a tensor that it is given, and whether a graph's memory is ours to plan.

What is not known to leave its operands alone may change them.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Node

from segmo.passes.analyse import Facts
from segmo.passes.graph import example
from segmo.passes.reasons import Miss

F = torch.nn.functional
# Where a function takes "inplace", if it is not given by name.
_PLACES = {F.relu: 1, F.relu6: 1, F.silu: 1, F.mish: 1, F.hardswish: 1, F.leaky_relu: 2, F.elu: 2, F.dropout: 3}
_AUGMENTED = (name for name in dir(operator) if name[0] == "i" and hasattr(operator, f"__{name[1:]}__"))
_WRITERS = {operator.setitem, operator.delitem, setattr, delattr, *(getattr(operator, name) for name in _AUGMENTED)}


def may_write(node: Node) -> bool:
    """Whether a call may change one of its operands, or whatever else lies in the same memory."""
    target: Any = node.target
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module" or node.kwargs.get("inplace") or node.kwargs.get("out") is not None:
        return True
    if node.op == "call_method":
        return _says_so(str(target))
    if isinstance(target, torch._ops.OpOverload):
        return bool(target._schema.is_mutable)
    if isinstance(target, torch._ops.OpOverloadPacket):
        names = target.overloads()  # type: ignore[no-untyped-call]
        return any(getattr(target, name)._schema.is_mutable for name in names)
    place = _PLACES.get(target, len(node.args))
    if target in _WRITERS or (place < len(node.args) and bool(node.args[place])):
        return True
    return not _is_of_torch(target) or _says_so(target.__name__)


def not_as_it_is(facts: Facts) -> Miss | None:
    """Why a graph is not run on the CPU as it is, without gradients; None if it is: then its memory is ours to plan."""
    if facts.miss:
        return facts.miss
    if torch.is_grad_enabled():
        return Miss.of("gradients")
    embeds = example(facts.merge.node) if facts.merge else None
    other = facts.by_inductor or embeds is None or embeds.device.type != "cpu"
    return Miss.of("own-buffers") if other else None


def _says_so(name: str) -> bool:
    """PyTorch's names for what changes its operand end so; Python's own end so too, whatever they do."""
    return name.endswith("_") and name not in ("and_", "or_", "not_", "is_")


def _is_of_torch(target: Any) -> bool:
    """Whether a function is Python's or PyTorch's own, whose names tell; not one that calls others, as ``cond``."""
    if isinstance(target, torch._ops.HigherOrderOperator) or not hasattr(target, "__name__"):
        return False
    module = str(getattr(target, "__module__", None) or "torch")  # functions in C have none
    return module.partition(".")[0] in ("torch", "_operator", "builtins", "math")
