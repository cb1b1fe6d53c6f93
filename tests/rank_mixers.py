"""A Video LLM of no family whose layers carry tokens' values to other tokens in many ways; run by a crew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kept_tokens import cached
from test_unknown_model import Toy, build, generate, prompt
from torch import Tensor
from torch.nn import functional as F

import segmo
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.session import session_of
from segmo.runtime.partition.traffic import joined_bytes

LAYERS = 2  # of the toy
SOME = ("shift", "blocks", "index")


@torch.library.custom_op("segmo_tests::running_max", mutates_args=())
def running_max(x: Tensor) -> Tensor:
    """An operator of somebody else's, of which nobody knows what it does: the largest value so far."""
    return x.cummax(1).values


@running_max.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _blocks(x: Tensor) -> Tensor:
    """Adds the largest value of each block of five tokens, the last one filled up."""
    length = x.shape[1]
    padded = F.pad(x, (0, 0, 0, -length % 5))
    return padded.unflatten(1, (-1, 5)).amax(2).repeat_interleave(5, 1)[:, :length]


def _scores(x: Tensor) -> Tensor:
    """Attention by hand, added up without a softmax."""
    place = torch.arange(x.shape[1], device=x.device)
    scores = (x @ x.transpose(1, 2)).tanh().masked_fill(place[:, None] < place, 0.0)
    return scores.sum(-1, keepdim=True) / x.shape[-1]


def _index(x: Tensor) -> Tensor:
    """The sum of the three tokens before that are most alike."""
    place = torch.arange(x.shape[1], device=x.device)
    scores = (x @ x.transpose(1, 2)).masked_fill(place[:, None] < place, -1e4)
    chosen = scores.topk(3, dim=-1).indices
    mask = torch.zeros_like(scores).scatter(-1, chosen, 1.0)
    return (mask * (place[:, None] >= place)) @ x


MIXERS: dict[str, Callable[[Tensor], Tensor]] = {
    "shift": lambda x: F.pad(x, (0, 0, 1, -1)),
    "shift by parts": lambda x: torch.cat([x[:, :1] * 0, x[:, :-1]], 1),
    "first token": lambda x: x[:, 2:3].expand_as(x),
    "mean so far": lambda x: x.cumsum(1) / 20,
    "mean of all": lambda x: x.mean(1, keepdim=True),
    "number of tokens": lambda x: x * x.shape[1] / 50 + x.sum(1, keepdim=True) / x.shape[1],
    "convolution": lambda x: F.conv1d(x.transpose(1, 2), x.new_ones(64, 1, 3) / 3, padding=2, groups=64)[
        ..., : x.shape[1]
    ].transpose(1, 2),
    "blocks": _blocks,
    "scores": _scores,
    "index": _index,
    "unknown operator": lambda x: torch.ops.segmo_tests.running_max(x),
}


class Mixed(torch.nn.Module):
    """A layer's MLP, and what a mixer makes of its input beside it."""

    def __init__(self, mlp: torch.nn.Module, mixer: str) -> None:
        super().__init__()
        self.mlp, self.mixer = mlp, mixer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out + MIXERS[self.mixer](x) if x.shape[1] > 1 else out  # decode steps have one token


def answer(rank: int, world: int, mixer: str) -> dict[str, Any]:
    """Logits and cache of a prefill whose layers hold a mixer, and what was spread over the ranks, and received."""
    torch._dynamo.reset()
    model = build(Toy)
    for layer in model.language_model.layers:
        layer.mlp = Mixed(layer.mlp, mixer)
    inputs = prompt(9)
    group = Ranks.of().group
    traffic = None if group is None or world == 1 else session_of(group.group_name).ranks.traffic
    before = traffic.bytes_received if traffic else 0
    out = generate(segmo.compile(model, ranks="all", keep=0.7, segments=3), inputs)
    plan = segmo.last_report().plan
    prefill = next(graph for graph in segmo.last_report().graphs if graph.kind == "prefill")
    return {
        "logits": torch.stack(out.logits),
        "cache": cached(out.past_key_values),
        "spread": next(one.matches for one in prefill.passes if one.name == "shard-segments"),
        "joined": joined_bytes(plan) if plan else 0,
        "received": traffic.bytes_received - before if traffic else 0,
    }
