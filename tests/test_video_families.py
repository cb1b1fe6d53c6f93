"""The tiny models of all Video LLM families are what other tests take them for: they run, and read their video."""

from __future__ import annotations

import pytest
import torch
from video_families import FAMILIES, build, prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_depend_on_the_video(family: str) -> None:
    model = build(family)
    with torch.no_grad():
        first, second = (model(**prompt(family, 3, seed)).logits[0, -1] for seed in (0, 0))
        inputs = prompt(family, 3)
        name = "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"
        inputs[name] = inputs[name].flip(-1) + 0.5
        other = model(**inputs).logits[0, -1]
    assert torch.equal(first, second)
    assert torch.isfinite(first).all()
    assert not torch.allclose(first, other, rtol=1e-3, atol=1e-3)
