"""Following one frame's pixels through a recorded graph: exact on operators it knows, and it never flags too little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from segmo.passes.frame_dependence import frame_dependence
from segmo.passes.reasons import DoesNotApply
from segmo.upstream.record import record

FRAMES, ROWS, WIDTH = 3, 4, 8
OWNER = torch.arange(FRAMES).repeat_interleave(ROWS)
PIXELS = torch.randn(FRAMES * ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def depends(call: Callable[[Tensor], Tensor]) -> Tensor:
    """(frames, rows of the output) bool."""
    found = frame_dependence(record(lambda x: (call(x),), PIXELS), OWNER, FRAMES)
    return torch.stack([rows[0] for rows in found])


def _windows(x: Tensor) -> Tensor:
    parts = x.view(1, -1, 2, WIDTH // 2).transpose(1, 2).split(ROWS, dim=2)
    out = [functional.scaled_dot_product_attention(part, part, part) for part in parts]
    return torch.cat(out, 2).transpose(1, 2).reshape(-1, WIDTH)


def _across(x: Tensor) -> Tensor:
    heads = x.view(1, 1, -1, WIDTH)
    return functional.scaled_dot_product_attention(heads, heads, heads)[0, 0]


def _added(x: Tensor, places: Tensor) -> Tensor:
    """Rows are summed where they go, and the sums are read from the memory that they were written to."""
    sums = x.new_zeros(FRAMES, WIDTH)
    sums.index_add_(0, places, x)
    return sums.repeat_interleave(ROWS, 0)


WEIGHT = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
ORDER = torch.randperm(FRAMES * ROWS, generator=torch.Generator().manual_seed(2))
ALONE: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: functional.linear(x, WEIGHT, WEIGHT[0]),
    "norm": lambda x: functional.layer_norm(x, (WIDTH,), WEIGHT[0], WEIGHT[1]),
    "gelu": lambda x: functional.gelu(x) * 2 + x.pow(2).mean(-1, keepdim=True).rsqrt(),
    "attention": _windows,
    "there and back": lambda x: _windows(x)[ORDER][ORDER.argsort()],
    "softmax": lambda x: x.softmax(-1) @ WEIGHT,
    "convolution": lambda x: functional.conv2d(x.view(-1, 2, 2, 2), torch.ones(4, 2, 2, 2)).view(-1, 4),
    "pooling": lambda x: functional.interpolate(x.view(-1, 2, 2, 2), size=(1, 1), mode="bilinear").flatten(1),
    "added up at places": lambda x: _added(x, OWNER),
    "in place on its own": lambda x: x * torch.zeros(WIDTH).add_(3),
}
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": _across,
    "mean": lambda x: x - x.mean(0),
    "added up across frames": lambda x: _added(x, OWNER.roll(1)),
    "next frame": lambda x: x + x.roll(ROWS, 0),
    "softmax over rows": lambda x: x.softmax(0),
    "product over rows": lambda x: (x @ x.T) @ x,
    "permutation": lambda x: _windows(x[ORDER]),
    "group norm": lambda x: functional.group_norm(x[None], 1)[0],
}


@pytest.mark.parametrize("name", ALONE)
def test_rows_that_depend_on_their_own_frame_alone(name: str) -> None:
    found = depends(ALONE[name])
    assert torch.equal(found, torch.arange(FRAMES)[:, None] == OWNER)


@pytest.mark.parametrize("name", MIXING)
def test_frames_that_mix_are_found(name: str) -> None:
    assert bool((depends(MIXING[name]) & (torch.arange(FRAMES)[:, None] != OWNER)).any())


@given(st.sampled_from([*ALONE.values(), *MIXING.values()]), st.integers(0, FRAMES - 1), st.integers(0, 2**16))
def test_what_is_not_flagged_does_not_change(call: Callable[[Tensor], Tensor], frame: int, seed: int) -> None:
    """Other pixels in one frame leave every row that is not flagged for it as it was."""
    other = PIXELS.clone()
    other[frame == OWNER] = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))
    same = torch.isclose(call(PIXELS), call(other), rtol=1e-5, atol=1e-6).all(1)
    assert bool(same[~depends(call)[frame]].all())


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda x: x.sort(1).values, "unknown-operator"),
        (lambda x: torch.zeros_like(x).copy_(x), "unknown-operator"),
        (lambda x: x if x.sum() > 0 else -x, "pixels-decide"),
        (lambda x: x[x.argmax(0)], "unknown-operator"),
        (lambda x: x[x[:, 0] > 0], "pixels-decide"),
    ],
)
def test_what_is_not_known_is_not_guessed(call: Callable[[Tensor], Tensor], code: str) -> None:
    with pytest.raises(DoesNotApply) as found:
        depends(call)
    assert found.value.miss.code == code
