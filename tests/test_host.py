"""How often the host waits for the device in a prefill, counted on a device that there is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from far_device import FAR, Far, FarDevice, near, prefills_far_away
from models import build, prompt

import segmo
from segmo.errors import PromptError
from segmo.runtime import frame_fit as fits
from segmo.runtime.host import fetch, read, send
from segmo.runtime.video_tokens import take

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model.generate(
            **inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    return found.logits[0]


@pytest.mark.parametrize(
    ("family", "options"),
    [("qwen3_vl", {}), ("llava_onevision", {"keep": 1.0, "context": 1})],
    ids=["CAS and LSP", "LSP"],
)
def test_a_prefill_looks_at_its_device_twice(family: str, options: dict[str, Any]) -> None:
    """Once at the prompt, and once at what it chooses by; the answer is the one without the device."""
    expected = logits(segmo.compile(build(family), **options), prompt(family))
    torch.compiler.reset()
    model, inputs = segmo.compile(build(family), **options), prompt(family)
    with prefills_far_away() as runs:
        torch.testing.assert_close(logits(model, inputs), expected)
        torch.testing.assert_close(logits(model, inputs), expected)
        spoiled = {**inputs, "pixel_values_videos": torch.full_like(inputs["pixel_values_videos"], torch.nan)}
        with pytest.raises(PromptError, match="NaN or infinity"):
            logits(model, spoiled)
    assert len(runs) == 3
    for stops in runs:
        own = [stop for stop in stops if not stop.partition(" ")[2].startswith("<eval_with_key>")]
        assert [stop.split(" < ")[2].split()[1] for stop in own] == ["read_prompt", "to_host"], stops
        levels = 2 if family == "qwen3_vl" else 0  # at which the model itself looks up flagged rows, twice at each
        assert len(stops) - len(own) == 2 * levels * (stops is not runs[-1]), stops


def test_stops_are_seen() -> None:
    """The counter counts: each of these waits for a GPU, and nothing else here does."""
    x = torch.tensor([3, 0, 5])
    waiting = [
        lambda x: int(x[0]),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 2],
        lambda x: x.repeat_interleave(x),
        lambda x: x.unique(),
        lambda x: x.bincount(),
        lambda x: x.to("cpu"),
        lambda x: torch.tensor([1, 2]).to(x.device),
        lambda x: x[torch.tensor([1])],
    ]
    for call in waiting:
        with FarDevice() as device:
            device.inside = True
            call(Far(x))
        assert len(device.stops) == 1, call.__code__.co_firstlineno
    with FarDevice() as device:
        device.inside = True
        found = torch.where(Far(x) > 2, Far(x), -1).index_select(0, Far(torch.tensor([2, 0]))).clamp(min=0).sum()
        sent = send(torch.arange(3), FAR)
    assert device.stops == []
    assert int(near(found)) == 8
    assert torch.equal(near(sent), torch.arange(3))


def test_a_device_is_given_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is a dozen calls to its queue; on the host a block has to stay in a core's cache."""
    sizes: list[int] = []

    def counted(x_NH: Any, at_T: Any) -> Any:
        sizes.append(len(at_T))
        return take(x_NH, at_T)

    monkeypatch.setattr(fits, "take", counted)
    question_QH, embeds_NH, common_H = (torch.randn(shape) for shape in ((3, 8), (4000, 8), (8,)))
    at_T, frame_T = np.arange(4000), np.arange(4000) // 100
    fit_QF = fits.frame_fit(question_QH, embeds_NH, at_T, frame_T, 40, fits.Whole(4000, common_H))
    assert sizes == [500] * 8
    with FarDevice():
        far_QF = fits.frame_fit(Far(question_QH), Far(embeds_NH), at_T, frame_T, 40, fits.Whole(4000, Far(common_H)))
    assert sizes[8:] == [4000]
    torch.testing.assert_close(near(far_QF), fit_QF)
    monkeypatch.setattr(fits, "DEVICE_VALUES", 8 * 1000)
    with FarDevice():
        fits.frame_fit(Far(question_QH), Far(embeds_NH), at_T, frame_T, 40, fits.Whole(4000, Far(common_H)))
    assert sizes[9:] == [1000] * 4


def test_what_is_fetched_are_copies_of_any_dtype() -> None:
    given = [
        torch.tensor([[True], [False]]),
        torch.arange(3),
        torch.tensor(0.5),
        torch.zeros(0, 2, dtype=torch.bfloat16),
    ]
    with FarDevice() as device:
        device.inside = True
        found = fetch([Far(x) if x.dim() else x for x in given])
    assert len(device.stops) == 1
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, given, strict=True))
    found[1][0] = 7
    assert read(given[1], None)[0].tolist() == [0, 1, 2]
