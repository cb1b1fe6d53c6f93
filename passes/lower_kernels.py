"""``lower-kernels``: which implementation each inserted operator runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import Node

import segmo.runtime.distributed.ops  # noqa: F401  # registers torch.ops.segmo
from segmo.passes.base import Outcome, Rewrite, Tier
from segmo.passes.fuse_selection import find_selection, fuse
from segmo.passes.graph import example
from segmo.passes.reasons import Miss
from segmo.passes.scene_nodes import OPS, merge_of
from segmo.runtime import lowering as lowerings
from segmo.runtime.attention import choice
from segmo.runtime.distributed.kernels import rank_kernels
from segmo.runtime.ops import question_kernel, scan_kernel
from segmo.runtime.token_ops import selection_kernel

Choice = tuple[str, str]  # implementation, and the reason for it


def _segment_attention(lowering: str, q: Any, k: Any, v: Any) -> Choice:
    return choice.choose(lowering, _shape(q, k, v))


def _shape(q: Any, k: Any, v: Any) -> choice.Shape:
    return choice.Shape(q.device, q.dtype, max(int(q.shape[3]), int(v.shape[3])), int(q.shape[1]), int(k.shape[1]))


def _sizes_of(node: Node) -> tuple[Any, ...]:
    """Heads and head sizes of a node's first tensors."""
    tensors = [example(arg) for arg in node.args[:3] if isinstance(arg, Node)]
    return tuple((x.shape[1], x.shape[3]) for x in tensors if isinstance(x, torch.Tensor) and x.dim() == 4)


def _over_ranks(lowering: str, q: Any, k: Any, v: Any) -> Choice:
    shape = (q.device, q.dtype, max(int(q.shape[3]), int(v.shape[3])), int(q.shape[1]), int(k.shape[1]))
    return lowerings.choose(lowering, q.device, q.dtype, lambda: rank_kernels(*shape))


def _scan(lowering: str, embeds: Any, *_: Any) -> Choice:
    return lowerings.choose(lowering, embeds.device, embeds.dtype, lambda: scan_kernel(embeds))


def _question(lowering: str, q: Any, k: Any, *_: Any) -> Choice:
    return lowerings.choose(lowering, q.device, q.dtype, lambda: question_kernel(q, k))


# Operators whose last argument names the implementation, chosen by the first three.
_CHOICES: dict[str, Callable[..., Choice]] = {
    "segment_attention": _segment_attention,
    "rank_attention": _over_ranks,
    "rank_decode_attention": _over_ranks,
    "scan_video": _scan,
    "rank_scan_video": _scan,
    "scene_novelty": _scan,
    "rank_scene_novelty": _scan,
    "attention_relevance": _question,
}


@dataclass(frozen=True)
class LowerKernels:
    """Picks generated Triton kernels on a GPU; on the CPU flash attention with a logsumexp merge, and torch
    for the rest; the dense-mask reference on request.

    On a GPU the selection and the gathers that follow it become one node, which is one launch. Exact: all
    implementations equal the reference to rounding.

    Trap avoided: the choice, with the hash of a generated kernel's source, is an argument of the op, so no
    cache of compiled code can hold another one.
    """

    name: ClassVar[str] = "lower-kernels"
    tier: ClassVar[Tier] = Tier.EXACT

    lowering: str = "auto"

    def run(self, rewrite: Rewrite) -> Outcome:
        """See :class:`segmo.passes.base.Pass`."""
        matches = sum(self._lower(rewrite, name) for name in _CHOICES) + self._select(rewrite)
        if not matches:
            return Outcome(misses=(rewrite.facts.miss or Miss.of("no-segments"),))
        return Outcome(matches=matches)

    def _lower(self, rewrite: Rewrite, name: str) -> int:
        """Sets the implementation of one operator's nodes; how many have another one than before."""
        target = getattr(OPS, name).default
        nodes: list[Node] = [node for node in rewrite.graph.nodes if node.target is target]
        if not nodes:
            return 0
        kinds: dict[tuple[Any, ...], list[Node]] = {}
        for node in nodes:
            kinds.setdefault(_sizes_of(node), []).append(node)
        return sum(self._lower_alike(rewrite, name, alike) for alike in kinds.values())

    def _lower_alike(self, rewrite: Rewrite, name: str, nodes: list[Node]) -> int:
        """The same for nodes whose arguments have the same sizes; a decoder may have layers of several head sizes."""
        tensors = [example(arg) for arg in nodes[0].args[:3] if isinstance(arg, Node)]
        implementation, reason = _CHOICES[name](self.lowering, *tensors)
        if implementation != lowerings.TORCH:
            for node in nodes:
                node.args = (*node.args[:-1], implementation)
        if name == "segment_attention":
            rewrite.choices.append(choice.Choice(implementation, reason, _shape(*tensors)))
        self._note(rewrite, "" if name == "segment_attention" else f"{name}: ", implementation, reason)
        return len(nodes) if implementation != lowerings.TORCH else 0

    def _select(self, rewrite: Rewrite) -> int:
        """Fuses the selection with its gathers where there is a kernel that does both."""
        if not any(node.target is OPS.select_tokens.default for node in rewrite.graph.nodes):
            return 0
        found = find_selection(rewrite)
        if found is None:
            self._note(rewrite, "select_tokens: ", lowerings.TORCH, "what it reads changes in place before its use")
            return 0
        embeds = example(merge_of(rewrite).node)
        implementation, reason = lowerings.choose(
            self.lowering, embeds.device, embeds.dtype, lambda: selection_kernel(embeds.device, list(found.payloads))
        )
        if not lowerings.is_generated(implementation):
            self._note(rewrite, "select_tokens: ", implementation, reason)
            return 0
        self._note(rewrite, f"select_tokens with {len(found.gathers)} gathers: ", implementation, reason)
        return fuse(rewrite, found, implementation)

    def _note(self, rewrite: Rewrite, what: str, implementation: str, reason: str) -> None:
        rewrite.notes.append(f"lower-kernels: {what}{implementation}, because {reason}")
