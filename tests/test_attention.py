"""Segment attention: the rule itself, and every implementation against it.

Legend: B batch, A query heads, G key/value heads, K tokens, D head size.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import PAD, Heads, Layout, batch_tensors, batches, heads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from segmo.runtime.attention import chunks, flash, reference
from segmo.runtime.schedule import RowSchedule, attention_schedule, pack, unpack, visible_pairs

IMPLEMENTATIONS = [
    pytest.param(flash.segment_attention, id="flash"),
    pytest.param(reference.segment_attention, id="reference"),
]
# ||out - exact|| / ||exact||: a few roundings of the dtype.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


def exact_attention(q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, visible_BKK: Tensor, scale: float) -> Tensor:
    """Attention in fp64 as it is written in books; rows that see nothing are zero."""
    ratio = q_BAKD.shape[1] // k_BGKD.shape[1]
    k, v = (x.double().repeat_interleave(ratio, 1) for x in (k_BGKD, v_BGKD))
    logits = torch.einsum("baid,bajd->baij", q_BAKD.double(), k) * scale
    logits = logits.masked_fill(~visible_BKK[:, None], -torch.inf)
    return torch.einsum("baij,bajd->baid", logits.softmax(-1).nan_to_num(0), v)


def check_attention(
    attention: object, rows: list[Layout], inputs: tuple[Tensor, Tensor, Tensor], visible: Tensor
) -> None:
    q, k, v = inputs
    scale = q.shape[-1] ** -0.5
    out = attention(q, k, v, attention_schedule(*batch_tensors(rows)), scale)  # type: ignore[operator]
    exact = exact_attention(q, k, v, visible, scale)
    assert out.dtype == q.dtype
    assert out.shape == exact.shape
    error = torch.linalg.vector_norm(out.double() - exact) / torch.linalg.vector_norm(exact)
    assert error <= TOLERANCE[q.dtype]
    padding = torch.tensor([[role == PAD for role in row.roles] for row in rows])
    assert not out.transpose(1, 2)[padding].any()


@given(rows=batches())
def test_dense_mask_is_the_contract(rows: list[Layout]) -> None:
    schedule = unpack(attention_schedule(*batch_tensors(rows)))
    for layout, row in zip(rows, schedule, strict=True):
        assert torch.equal(reference.dense_mask(row, len(layout.roles)), layout.visible())


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@given(rows=batches(), shape=heads())
def test_equals_the_rule_in_fp64(attention: object, rows: list[Layout], shape: Heads) -> None:
    inputs = shape.tensors(len(rows), len(rows[0].roles))
    check_attention(attention, rows, inputs, torch.stack([row.visible() for row in rows]))


@given(rows=batches(), shape=heads())
def test_flash_equals_the_rule_where_every_prefix_is_long(rows: list[Layout], shape: Heads) -> None:
    inputs = shape.tensors(len(rows), len(rows[0].roles))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "MASKED_KEYS", 0)
        check_attention(flash.segment_attention, rows, inputs, torch.stack([row.visible() for row in rows]))


@given(rows=batches(max_segments=3, max_size=150, max_rows=2), shape=heads())
def test_flash_equals_the_rule_over_several_of_its_blocks(rows: list[Layout], shape: Heads) -> None:
    inputs = shape.tensors(len(rows), len(rows[0].roles))
    check_attention(flash.segment_attention, rows, inputs, torch.stack([row.visible() for row in rows]))


def full_causal(rows: list[Layout]) -> Tensor:
    valid = torch.tensor([[role != PAD for role in row.roles] for row in rows])
    return torch.ones(valid.shape[1], valid.shape[1]).tril().bool() & valid[:, None] & valid[:, :, None]


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@given(rows=batches(context=True), shape=heads())
def test_all_context_is_full_attention(attention: object, rows: list[Layout], shape: Heads) -> None:
    check_attention(attention, rows, shape.tensors(len(rows), len(rows[0].roles)), full_causal(rows))


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
@given(rows=batches(max_segments=1), shape=heads())
def test_one_segment_is_full_attention(attention: object, rows: list[Layout], shape: Heads) -> None:
    check_attention(attention, rows, shape.tensors(len(rows), len(rows[0].roles)), full_causal(rows))


@given(sizes=st.lists(st.integers(0, 3 * flash.SHARED_ROWS), min_size=2, max_size=12), sink=st.integers(0, 5))
def test_flash_shares_blocks_among_small_segments_only(sizes: list[int], sink: int) -> None:
    ends = tuple(sink + sum(sizes[: number + 1]) for number in range(len(sizes)))
    blocks = list(flash._segment_blocks(RowSchedule(0, sink, ends, ends[-1] + 3, ())))
    assert tuple(end for _, block in blocks for end in block) == ends
    assert [start for start, _ in blocks] == [sink, *(block[-1] for _, block in blocks[:-1])]
    rows = [block[-1] - start for start, block in blocks]
    assert all(count <= flash.SHARED_ROWS for count, (_, block) in zip(rows, blocks, strict=True) if len(block) > 1)
    assert all(one + two > flash.SHARED_ROWS for one, two in itertools.pairwise(rows)), "fewer blocks would do"


@pytest.mark.parametrize("attention", IMPLEMENTATIONS)
def test_a_row_of_nothing_but_padding_is_zero(attention: object) -> None:
    q, k, v = Heads(2, 2, 16, torch.float32, 0).tensors(1, 6)
    valid = torch.zeros(1, 6, dtype=torch.bool)
    schedule = attention_schedule(torch.tensor([[-1, 0, 0, 1, 1, -2]]), None, valid)
    assert not attention(q, k, v, schedule, 0.25).any()  # type: ignore[operator]


@given(rows=batches(), shape=heads((torch.float32,)))
def test_keys_that_are_hidden_never_matter(rows: list[Layout], shape: Heads) -> None:
    """Changes a segment's tokens; nothing that may not see them changes by a single bit."""
    q, k, v = shape.tensors(len(rows), len(rows[0].roles))
    schedule = attention_schedule(*batch_tensors(rows))
    visible = torch.stack([row.visible() for row in rows])
    before = flash.segment_attention(q, k, v, schedule, 0.1)
    token = len(rows[0].roles) // 2
    k, v = k.clone(), v.clone()
    k[:, :, token] += 3
    v[:, :, token] = 7
    after = flash.segment_attention(q, k, v, schedule, 0.1)
    blind = ~visible[:, :, token]
    assert torch.equal(before.transpose(1, 2)[blind], after.transpose(1, 2)[blind])


def test_inputs_may_be_laid_out_in_any_way() -> None:
    rows = [Layout(("sink", 0, 0, 0, 1, 1, 2, "query"), (False, True, *[False] * 6))]
    q, k, v = Heads(2, 3, 16, torch.float32, 1).tensors(1, 8)
    strided = tuple(torch.cat([x, x], dim=-1)[..., ::2] for x in (q, k, v))
    visible = rows[0].visible()[None]
    for inputs in ((q, k, v), tuple(x.contiguous() for x in (q, k, v)), strided):
        check_attention(flash.segment_attention, rows, inputs, visible)  # type: ignore[arg-type]


@given(
    rows=st.integers(1, 450),
    before=st.integers(0, 300),
    shape=heads(),
    threads=st.sampled_from([1, 2, 64]),
    masked=st.sampled_from([0, 100, chunks.MASKED_KEYS]),
)
def test_chunks_equal_the_rule_on_any_number_of_threads(
    rows: int, before: int, shape: Heads, threads: int, masked: int
) -> None:
    """By one call and by two, with heads as rows and without."""
    _, k, v = shape.tensors(1, before + rows)
    q = shape.tensors(1, rows)[0]
    visible = torch.ones(before + rows, before + rows, dtype=torch.bool).tril()[before:]
    out = torch.empty_like(q)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        patch.setattr(chunks, "MASKED_KEYS", masked)
        by_group = [x.unflatten(1, (k.shape[1], -1))[0] for x in (q, out)]
        chunks._staircase.cache_clear()  # its width is that of MASKED_KEYS
        chunks.attend(by_group[0], (k[0], v[0]), 0.2, by_group[1])
    chunks._staircase.cache_clear()
    exact = exact_attention(q, k, v, visible[None], 0.2)
    error = torch.linalg.vector_norm(out.double() - exact) / torch.linalg.vector_norm(exact)
    assert error <= TOLERANCE[shape.dtype]


class Products(TorchDispatchMode):
    """Counts the pairs of rows and keys that torch's flash kernel is given."""

    pairs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            q, k = args[:2]
            self.pairs += q.shape[:3].numel() * k.shape[2]
        return func(*args, **(kwargs or {}))


def test_little_more_is_computed_than_is_visible() -> None:
    """Of a prefill with context, whatever a segment's length; torch's causal kernel would compute each square whole."""
    ends = list(itertools.accumulate((412, 1213, 284, 378, 332, 408, 710, 363, 70, 40, 20), initial=4))[1:]
    context = tuple(at for end in ends for at in range(end - 100, end))
    schedule = pack([RowSchedule(0, 4, tuple(ends), ends[-1] + 33, tuple(sorted(set(context))))])
    q, k, v = Heads(2, 7, 16, torch.float32, 0).tensors(1, ends[-1] + 33)
    with Products() as products:
        flash.segment_attention(q, k, v, schedule, 0.25)
    assert products.pairs <= 1.15 * 14 * visible_pairs(schedule)


@given(split=st.integers(1, 19), shape=heads())
def test_merge_is_attention_over_the_union(split: int, shape: Heads) -> None:
    q, k, v = shape.tensors(1, 20)
    k, v = (x.repeat_interleave(shape.ratio, 1) for x in (k, v))
    parts = []
    for keys in (slice(0, split), slice(split, 20)):
        logits = q.float() @ k[:, :, keys].float().mT
        parts += [(logits.softmax(-1) @ v[:, :, keys].float()).to(shape.dtype), logits.logsumexp(-1)]
    exact = exact_attention(q, k, v, torch.ones(1, 20, 20, dtype=torch.bool), 1.0)
    merged = chunks.merge(*parts)
    assert merged.dtype == shape.dtype
    error = torch.linalg.vector_norm(merged.double() - exact) / torch.linalg.vector_norm(exact)
    assert error <= TOLERANCE[shape.dtype]


@given(gap=st.floats(-1e4, 1e4))
def test_merge_holds_for_any_distance_of_logsumexps(gap: float) -> None:
    ones, lse = torch.ones(1, 4), torch.zeros(1)
    merged = chunks.merge(ones, lse, 3 * ones, lse + gap)
    assert torch.isfinite(merged).all()
    assert 1 <= float(merged.min()) <= float(merged.max()) <= 3
