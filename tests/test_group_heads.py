"""``group-heads``: the same numbers, and no copy of keys and values for each query head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, prompt
from packaging.version import Version
from torch import Tensor
from torch.fx import GraphModule
from torch.nn.functional import scaled_dot_product_attention as attention

import segmo
from segmo.options import Options
from segmo.passes.analyse import Facts
from segmo.passes.attentions import SDPA, find_attentions
from segmo.passes.base import Outcome, Rewrite
from segmo.passes.graph import count_ops
from segmo.passes.group_heads import GroupHeads

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


# For a torch before 2.14 transformers makes a mask for every decode step.
MASKS_STEPS = Version(torch.__version__) < Version("2.14")


def rewritten(function: Any, *inputs: Tensor | None) -> tuple[Any, Any, GraphModule, Outcome]:
    """What a function gives, what its graph gives after the pass, the graph, and what the pass says."""
    found: list[tuple[GraphModule, Outcome]] = []

    def backend(gm: GraphModule, _: Any) -> Any:
        attentions = find_attentions(gm, set(gm.graph.nodes))
        outcome = GroupHeads().run(Rewrite(gm.graph, Facts("decode", attentions), Options()))
        gm.recompile()
        found.append((gm, outcome))
        return gm.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)(*inputs)
    ((gm, outcome),) = found
    return function(*inputs), compiled, gm, outcome


def repeat(x: Tensor, times: int) -> Tensor:
    """As transformers repeats heads."""
    batch, groups, keys, size = x.shape
    return x[:, :, None, :, :].expand(batch, groups, times, keys, size).reshape(batch, groups * times, keys, size)


MASKS = ("none", "padding", "added", "heads", "rows")


@settings(max_examples=40)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    times=st.integers(2, 4),
    rows=st.sampled_from([1, 1, 2, 5]),
    keys=st.integers(2, 40),
    mask=st.sampled_from(MASKS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_the_numbers_are_the_same(
    batch: int, groups: int, times: int, rows: int, keys: int, mask: str, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    heads = groups * times
    query = torch.randn(batch, heads, rows, 8, dtype=dtype)
    key, value = (torch.randn(batch, groups, keys, 8, dtype=dtype) for _ in range(2))
    seen = torch.rand(batch, heads if mask == "heads" else 1, rows if mask == "rows" else 1, keys) < 0.7
    seen[..., 0] = True
    given_mask = None if mask == "none" else seen
    if mask == "added":
        given_mask = torch.where(seen, 0.0, -torch.inf).to(dtype)

    def call(query: Tensor, key: Tensor, value: Tensor, given_mask: Tensor | None) -> Tensor:
        return attention(query, repeat(key, times), repeat(value, times), attn_mask=given_mask, scale=0.3)

    before, after, gm, outcome = rewritten(call, query, key, value, given_mask)
    assert outcome.matches == 1
    assert "expand" not in str(gm.graph)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.01}
    torch.testing.assert_close(after, before, **close)


def test_heads_that_share_keys_without_a_copy_become_rows() -> None:
    query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 9, 8)
    before, after, gm, outcome = rewritten(lambda q, k: attention(q, k, k, enable_gqa=True), query, key)
    torch.testing.assert_close(after, before)
    assert outcome.matches == 1
    assert count_ops(gm.graph) == {".reshape": 2, "scaled_dot_product_attention": 1}


def test_a_causal_row_sees_what_it_saw() -> None:
    query, key = torch.randn(1, 4, 1, 8), torch.randn(1, 2, 9, 8)
    before, after, gm, _ = rewritten(lambda q, k: attention(q, repeat(k, 2), repeat(k, 2), is_causal=True), query, key)
    torch.testing.assert_close(after, before)
    assert "expand" not in str(gm.graph)


@pytest.mark.parametrize(
    "copy",
    [
        lambda x: x[:, None].expand(1, 2, 2, 9, 8).reshape(1, 4, 9, 8),  # the other order of heads
        lambda x: x.repeat(1, 2, 1, 1),
        lambda x: x,
    ],
    ids=["heads in turn", "repeat", "nothing"],
)
def test_other_copies_stay(copy: Any) -> None:
    heads = copy(torch.zeros(1, 2, 9, 8)).shape[1]
    before, after, _, outcome = rewritten(
        lambda q, k: attention(q, copy(k), copy(k)), torch.randn(1, heads, 1, 8), torch.randn(1, 2, 9, 8)
    )
    assert torch.equal(after, before)
    assert outcome.matches == 0
    assert [miss.code for miss in outcome.misses] == ["no-copies"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.families("qwen3_vl")
def test_a_decode_step_copies_no_keys(family: str, padded: bool) -> None:
    """With a mask, keys are repeated in every layer of the traced step; without one nothing is."""
    tokens = []
    for disable in ("group-heads", ()):
        torch._dynamo.reset()
        model, inputs = build(family), prompt(family)
        if padded:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["attention_mask"][:, 0] = 0
        segmo.compile(model, keep=0.5, segments=2, disable=disable)
        tokens.append(model.generate(**inputs, max_new_tokens=6, do_sample=False))
        decode = next(graph for graph in segmo.last_report().graphs if graph.kind == "decode")
        record = next((each for each in decode.passes if each.name == "group-heads"), None)
        if record is not None:
            layers = model.config.get_text_config().num_hidden_layers
            assert record.matches == layers
            expands = [ops.get(".expand", 0) for ops in (record.ops_before, record.ops_after)]
            assert expands[0] - expands[1] == (2 * layers if padded or MASKS_STEPS else 0)
    assert torch.equal(*tokens)


def test_its_name_is_that_of_torch() -> None:
    """What the pass looks for is what the models call."""
    assert SDPA is attention
    assert count_ops(torch.fx.symbolic_trace(lambda q: attention(q, q, q)).graph) == {"scaled_dot_product_attention": 1}
