"""What a cut knows: its lengths, which nodes stand behind it, and the value that each of them has there."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from segmo.compat.operators import UNKNOWN_SIZE, FakeTensorMode
from segmo.passes.analyse import Merge
from segmo.passes.cut.known import KnownCalls
from segmo.passes.graph import concrete, example
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.sizes import hint_tensor
from segmo.passes.video_count import count


def lost(detail: str, node: Node | None = None) -> DoesNotApply:
    """The cut cannot be followed past ``node``."""
    return DoesNotApply(Miss.of("cannot-follow", detail, node))


class CutState:
    """The state of one cut.

    Args:
        graph: rewritten in place.
        index: (B, K) positions of the kept tokens.
        old, new: N and K in the traced call.
        merge: where the video enters.

    Attributes:
        size: K, a node or a number.
        symbol: N as it was traced, symbolic where it is.
        after: nodes behind the cut.
        values: what a node's value is behind the cut, as fake tensors of concrete size.
        unknown: stands in for sizes that only the data tell.
    """

    def __init__(self, graph: Graph, index: Node, old: int, new: int, merge: Merge) -> None:
        self.graph = graph
        self.index = index
        self.old, self.new = old, new
        self.size: Node | int = new
        self.after: set[Node] = set()
        self.values: dict[Node, Any] = {}
        video = example(merge.node)
        self.symbol = video.shape[1]
        self.batch = int(concrete(video.shape[0]))
        self.unknown = 1 if merge.counted is None else count(merge.counted, video.shape[-1])
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.known = KnownCalls(graph)
        self._olds: dict[Node, tuple[Any, Any]] = {}  # a node's traced value, and what it was

    def old_value(self, node: Node) -> Any:
        """What a node's value was in the traced call, with concrete sizes."""
        traced = example(node)
        if node not in self._olds or self._olds[node][0] is not traced:
            self._olds[node] = (traced, pytree.tree_map(self._concrete, traced))
        return self._olds[node][1]

    def _concrete(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            like = (*map(concrete, value.shape), *map(concrete, value.stride()), value.dtype, value.device)
            return self.known.once(like, lambda: self._made(value))
        known = concrete(value)
        return self.unknown if known is None and isinstance(value, torch.SymInt) else known

    def _made(self, value: Tensor) -> Tensor:
        with self.mode:
            return hint_tensor(value, self.unknown)

    def value(self, node: Node) -> Any:
        """A node's value behind the cut, or its old one if nothing in it has changed."""
        if node not in self.values:
            self.values[node] = self.old_value(node)
        return self.values[node]

    def old_shape(self, node: Node) -> list[int]:
        """A tensor's sizes in the traced call."""
        sizes: list[int] = [self._concrete(size) for size in example(node).shape]
        return sizes

    def changed_dims(self, node: Node) -> list[int]:
        """Dimensions of a node's tensor that have another size than in the traced call."""
        if node not in self.values:
            return []
        value, old = self.values[node], example(node)
        if not isinstance(value, Tensor) or not isinstance(old, Tensor) or value.dim() != old.dim():
            return []
        return [d for d, size in enumerate(self.old_shape(node)) if value.shape[d] != size]

    def empty(self, like: Tensor, size: list[int]) -> Tensor:
        """A fake tensor of another size."""
        with self.mode:
            return torch.empty(size, dtype=like.dtype, device=like.device)

    def execute(self, node: Node) -> None:
        """Runs a node on the values of its inputs."""
        args, kwargs = map_arg((node.args, node.kwargs), self.value)
        try:
            self.values[node] = self.known.value(node, args, kwargs, self._run)
        except DoesNotApply:
            raise
        except UNKNOWN_SIZE:  # which the data alone tell
            self.values[node] = self.old_value(node)
        except Exception as error:  # any op may refuse the new size in its own way
            raise lost(f"{type(error).__name__}: {error}", node) from error

    def _run(self, node: Node, args: Any, kwargs: Any) -> Any:
        if node.op not in ("call_method", "call_function"):
            raise lost(f"{node.op} nodes are not expected here", node)
        target: Any = getattr(args[0], str(node.target)) if node.op == "call_method" else node.target
        with self.mode:
            return target(*args[1:] if node.op == "call_method" else args, **kwargs)
