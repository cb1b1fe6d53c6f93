"""A synthetic prompt for a narrow model: some text, a video whose scenes hold still, a question."""

from __future__ import annotations

from typing import Any

from segmo.families import family_of
from segmo.inspection.models import END, PIXELS, SIDE, START, VIDEO

_WORDS = (10, 90)  # ids that no special token has
_SCENE = 4  # frames that hold still


def synthetic_prompt(model: Any, frames: int, question: int = 8) -> dict[str, Any]:
    """Inputs of ``generate``, the same on every call.

    Args:
        model: as ``segmo.inspection.models.build`` makes it.
        frames: frames (Qwen: pairs of frames, which the model merges) of the video.
        question: tokens of the question.
    """
    import torch

    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(*_WORDS, (count,), generator=generator).tolist()

    family = family_of(model)
    cells = (SIDE // 2) ** 2
    row = words(4)
    if family is not None and not family.mrope:
        row += [VIDEO] * (frames * cells + family.trailing)
    elif model.config.model_type == "qwen3_vl":  # a timestamp in front of every frame
        for _ in range(frames):
            row += [*words(3), START, *[VIDEO] * cells, END]
    else:
        row += [START, *[VIDEO] * (frames * cells), END]
    ids = torch.tensor([row + words(question)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family is not None and not family.mrope:
        side = SIDE * PIXELS
        inputs["pixel_values_videos"] = _still(torch.randn(frames, 3, side, side, generator=generator))[None]
        return inputs
    size = 3 * model.config.vision_config.temporal_patch_size * PIXELS**2
    pixels = _still(torch.randn(frames, SIDE * SIDE * size, generator=generator))
    inputs["pixel_values_videos"] = pixels.reshape(-1, size)
    inputs["video_grid_thw"] = torch.tensor([[frames, SIDE, SIDE]])
    inputs["mm_token_type_ids"] = torch.where(ids == VIDEO, 2, 0)
    return inputs


def _still(noise: Any) -> Any:
    """Frames that repeat for a scene, with a little noise on top."""
    import torch

    return noise[torch.arange(len(noise)) // _SCENE * _SCENE] + 0.05 * noise
