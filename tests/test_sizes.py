"""Which sizes of a reshape follow a shortened dimension, against reshapes that really run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from segmo.passes.sizes import reshaped_dims


@given(
    before=st.lists(st.integers(1, 4), max_size=3),
    length=st.integers(2, 9),
    short=st.integers(1, 8),
    after=st.lists(st.integers(1, 9), max_size=3),
    data=st.data(),
)
def test_a_length_of_its_own_stays_apart(
    before: list[int], length: int, short: int, after: list[int], data: st.DataObject
) -> None:
    """Whatever the neighbours are regrouped to, and even if they have the length's own size."""
    assume(short < length)
    left = data.draw(st.sampled_from([before, [torch.Size(before).numel()]]))
    right = data.draw(st.sampled_from([after, [torch.Size(after).numel()], [*after, 1]]))
    old = [*before, length, *after]
    found = reshaped_dims(old, [*before, short, *after], [*left, length, *right])
    assert found == [*left, short, *right]


@given(batch=st.integers(1, 4), length=st.integers(2, 9), short=st.integers(1, 8), width=st.integers(1, 5))
def test_a_flattened_length_is_a_multiple(batch: int, length: int, short: int, width: int) -> None:
    assume(short < length)
    old, new = [batch, length, width], [batch, short, width]
    assert reshaped_dims(old, new, [batch * length, width]) == [batch * short, width]
    torch.empty(new).reshape(reshaped_dims(old, new, [batch * length * width]))


def test_a_split_length_is_refused() -> None:
    with pytest.raises(ValueError, match="split"):
        reshaped_dims([2, 12, 3], [2, 5, 3], [2, 3, 4, 3])
