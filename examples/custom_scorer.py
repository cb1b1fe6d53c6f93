"""Your own relevance: a number for every frame, from whatever knows what the question is about.

    python examples/custom_scorer.py

Here frames score by how red they are, which answers "when does the red light come on?" without a network. In earnest
the numbers come from an image-text model (CLIP, SigLIP), from audio, from subtitles, or from a person.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import segmo
from segmo.inspection.models import PIXELS, SIDE, build, load_config, shrink
from segmo.inspection.prompts import prompt_of

SHOT = 8  # frames of a shot; the model merges two into one


def make_video(shots: int, red: int) -> NDArray[np.uint8]:
    """Shots of still noise, one of them reddish, (frames, height, width, 3) uint8."""
    noise = np.random.default_rng(0).integers(0, 160, (shots, SIDE * PIXELS, SIDE * PIXELS, 3))
    noise[red, ..., 0] += 95
    return noise.repeat(SHOT, axis=0).astype(np.uint8)


def redness(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How much more red than green and blue a frame is, (frames,)."""
    mean = frames.mean(axis=(1, 2), dtype=np.float32)
    return mean[:, 0] - mean[:, 1:].mean(axis=1)


def main(shots: int = 4, red: int = 2, layers: int = 2) -> list[dict[str, Any]]:
    """The scenes of the report; the red one gets the largest budget."""
    frames = make_video(shots, red)
    model = build(shrink(load_config("qwen2_vl", layers)))
    inputs = prompt_of(model, torch.from_numpy(frames))

    segmo.compile(model, keep=0.25, scorer="external", balance=0.9)
    scores = redness(frames[::2])  # a frame of the model is two of the video's
    with segmo.external_scores(scores), segmo.show_prompt(frames, question="When does the red light come on?"):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)

    scenes: list[dict[str, Any]] = segmo.last_report().to_dict()["scenes"]
    for scene in scenes:
        print(
            f"frames {scene['start_frame']} to {scene['end_frame'] - 1}: relevance {scene['relevance']:.1f}, "
            f"{scene['kept']} of {scene['tokens']} tokens kept"
        )
    return scenes


if __name__ == "__main__":
    main()
