"""A Video LLM with SegMo, as a user's own script would have it: one line more, and a report.

    python examples/generate.py                               # the demo's model: random weights, real architecture
    python examples/generate.py --model PATH --video FILE --question "What happens?"

The model can be of any family that SegMo knows; here it is loaded with its processor from a local path.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import segmo
from segmo.demo.clips import clip_path
from segmo.demo.model import build_model
from segmo.demo.processor import CELL, build_processor, encode_prompt
from segmo.video import read


def load(path: Path | None) -> tuple[Any, Any]:
    """Processor and model from a path, or the demo's."""
    if path is None:
        processor = build_processor()
        return processor, build_model(processor)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(path), AutoModelForImageTextToText.from_pretrained(path, dtype="auto").eval()


def main(arguments: list[str] | None = None) -> None:
    """Answer one question about one video with a quarter of its tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--video", type=Path, default=clip_path("bikes"))
    parser.add_argument("--question", default="What is the man waiting for?")
    parser.add_argument("--keep", type=float, default=0.25)
    given = parser.parse_args(arguments)

    processor, model = load(given.model)
    cells = (14, 8)
    video = read(given.video, fps=1.0, size=(cells[0] * CELL, cells[1] * CELL))
    inputs = encode_prompt(processor, video, given.question, cells)

    segmo.compile(model, keep=given.keep)  # the one line

    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    print(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    print(segmo.last_report())


if __name__ == "__main__":
    main()
