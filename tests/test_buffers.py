"""What takes the place of calls that would want new memory: the same values, and the same errors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.runtime.buffers import linear_into, scatter_rows, scatter_rows_


@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 3),
)
def test_rows_are_scattered_as_elements_are(
    rows: list[list[bool]], dtype: torch.dtype, expanded: bool, more: int
) -> None:
    mask = torch.tensor(rows)[..., None]
    embeds = torch.arange(len(rows) * 5 * 4).view(len(rows), 5, 4).to(dtype)
    features = -torch.arange(4 * (int(mask.sum()) + more)).view(-1, 4).to(dtype)
    expected = embeds.masked_scatter(mask, features)
    mask = mask.expand_as(embeds) if expanded else mask
    given_embeds = embeds.clone()
    assert torch.equal(scatter_rows(given_embeds, mask, features), expected)
    assert torch.equal(given_embeds, embeds)
    assert scatter_rows_(given_embeds, mask, features) is given_embeds
    assert torch.equal(given_embeds, expected)


def test_a_mask_of_single_elements_is_taken_as_it_is() -> None:
    embeds, features = torch.zeros(1, 3, 2), torch.arange(1.0, 7.0)
    mask = torch.tensor([[[True, False], [False, True], [True, True]]])
    assert torch.equal(scatter_rows(embeds, mask, features), embeds.masked_scatter(mask, features))


def test_too_few_features_are_refused_as_by_torch() -> None:
    with pytest.raises(RuntimeError, match="Number of elements of source"):
        scatter_rows(torch.zeros(1, 3, 2), torch.ones(1, 3, 1, dtype=torch.bool), torch.zeros(2, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("buffer", [(1, 3, 4), (1, 1, 4), (1, 3, 5)])
def test_a_linear_layer_fills_a_buffer_that_fits(dtype: torch.dtype, buffer: tuple[int, ...]) -> None:
    x, weight = torch.randn(1, 3, 8).to(dtype), torch.randn(4, 8).to(dtype)
    into = torch.zeros(buffer, dtype=dtype)
    found = linear_into(x, weight, into)
    assert torch.equal(found, torch.nn.functional.linear(x, weight))
    assert (found.data_ptr() == into.data_ptr()) == (buffer == (1, 3, 4))


def test_under_autocast_a_linear_layer_takes_memory_of_its_own() -> None:
    x, weight, into = torch.randn(1, 3, 8).bfloat16(), torch.randn(4, 8), torch.zeros(1, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(linear_into(x, weight, into), torch.nn.functional.linear(x, weight))
