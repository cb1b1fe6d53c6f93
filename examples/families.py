"""Every model family that SegMo knows, through the same three lines: build, compile, generate.

    python examples/families.py

The models are the real transformers classes at a narrow width with random weights, so what they answer means nothing;
with a checkpoint, ``narrow_model`` is ``from_pretrained(path)`` and ``synthetic_prompt`` is its processor.
"""

from __future__ import annotations

from typing import Any

import segmo
from segmo.families import FAMILIES
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import synthetic_prompt


def narrow_model(family: str, layers: int) -> Any:
    """A model of a family as its config class makes it, narrow, in eval mode."""
    return build(shrink(load_config(family, layers)))


def main(frames: int = 16, layers: int = 2, tokens: int = 4) -> dict[str, tuple[int, int]]:
    """Generates with each family; the video's tokens and how many of them were kept, by family."""
    kept = {}
    for family in FAMILIES:
        model = narrow_model(family, layers)
        segmo.compile(model, keep=0.25)
        ids = model.generate(**synthetic_prompt(model, frames), max_new_tokens=tokens, do_sample=False)
        counts = segmo.last_report().to_dict()["tokens"]
        kept[family] = counts["video"], counts["kept"]
        print(f"{family}: {counts['kept']} of {counts['video']} video tokens kept, answer {ids[0, -tokens:].tolist()}")
    return kept


if __name__ == "__main__":
    main()
