"""Prompts: a synthetic one whose scenes hold still, a real video for a narrow model, or for a model with weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError
from segmo.families import family_of
from segmo.inspection.anything import any_prompt
from segmo.inspection.models import AS_IMAGES, END, IMAGE, PIXELS, SIDE, START, TAGGED, VIDEO, is_narrow

if TYPE_CHECKING:
    from torch import Generator, Tensor

_WORDS = (10, 90)  # ids that no special token has
_SCENE = 4  # frames that hold still
SHOWN = (320, 180)  # pixels of the frames that are kept of a video for a narrow model, to show them


def synthetic_prompt(model: Any, frames: int, question: int = 8) -> dict[str, Any]:
    """Inputs of ``generate``, the same on every call.

    Args:
        model: as ``segmo.inspection.models.build`` makes it.
        frames: frames (Qwen: pairs of frames, which the model merges) of the video.
        question: tokens of the question.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    if not is_narrow(model.config):
        return any_prompt(
            model,
            _still(torch.randn(frames, 3, 64, 64, generator=generator, dtype=torch.float32)),
            question,
            _words(model),
        )
    side, pairs = SIDE * PIXELS, _frames_per_step(model)
    pixels = _still(torch.randn(frames, 3, side, side, generator=generator, dtype=torch.float32))
    return _prompt(model, pixels.repeat_interleave(pairs, 0), question, generator)


def video_prompt(model: Any, file: Path, fps: float, question: int = 8) -> tuple[dict[str, Any], Any]:
    """Inputs of ``generate`` with the frames of a video, and the frames as they are to be shown.

    The narrow model sees frames of ``SIDE * PIXELS`` pixels a side through random weights: what is alike stays alike,
    so scenes and repeated tokens are those of the video, while relevance means nothing.

    Args:
        model: as ``segmo.inspection.models.build`` makes it.
        file, fps: see :func:`segmo.video.read`.
        question: tokens of the question, which are made up.

    Raises:
        OptionError: reading video needs the extra ``video``.
    """
    import torch

    pictures = _read(file, fps, SHOWN).frames
    return prompt_of(model, torch.from_numpy(pictures), question), pictures


def prompt_of(model: Any, pictures: Tensor, question: int = 8) -> dict[str, Any]:
    """Inputs of ``generate`` of a narrow model for frames of any size, (frames, height, width, 3) uint8."""
    import torch

    pixels = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    if not is_narrow(model.config):
        return any_prompt(model, pixels, question, _words(model))
    if len(pixels) % _frames_per_step(model):  # Qwen merges pairs
        pixels = torch.cat([pixels, pixels[-1:]])
    small = torch.nn.functional.interpolate(pixels, (SIDE * PIXELS, SIDE * PIXELS), mode="area")
    return _prompt(model, small, question, torch.Generator().manual_seed(0))


def checkpoint_prompt(folder: Path, file: Path, question: str, fps: float) -> tuple[Any, dict[str, Any], Any]:
    """Model with its weights, inputs of ``generate`` made by its own processor, and the frames.

    Raises:
        OptionError: reading video needs the extra ``video``, or the folder holds no weights.
    """
    from transformers import AutoProcessor

    from segmo.pretrained import load_model

    load: Any = AutoProcessor.from_pretrained  # it has no types
    try:
        model = load_model(folder, local_files_only=True)
        processor = load(folder, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise OptionError(f"{folder} holds no model and processor that transformers can load: {error}") from error
    video = _read(file, fps, None)
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    metadata = {
        "total_num_frames": len(video.frames),
        "fps": fps,
        "frames_indices": list(range(len(video.frames))),
    }
    inputs = processor(
        text=[text], videos=[video.frames], video_metadata=[metadata], do_sample_frames=False, return_tensors="pt"
    )
    return model, dict(inputs), video.frames


def _words(model: Any) -> Callable[[int], list[int]]:
    """Makes ids of text, which are no special tokens of the model."""
    import torch

    generator = torch.Generator().manual_seed(0)
    config = model.config
    parts = (config, config.get_text_config())
    named = {value for part in parts for value in vars(part).values() if isinstance(value, int)}
    free = torch.tensor([id_ for id_ in range(*_WORDS) if id_ not in named])
    return lambda count: free[torch.randint(len(free), (count,), generator=generator)].tolist()


def _read(file: Path, fps: float, size: tuple[int, int] | None) -> Any:
    try:
        from segmo.video import read
    except ImportError as error:
        raise OptionError(f"reading {file} needs PyAV: pip install 'segmo[video]' ({error})") from error
    return read(file, fps, size, scenes=None)


def _frames_per_step(model: Any) -> int:
    """Frames that the model merges into one: two for Qwen, one where frames stand alone."""
    return int(getattr(model.config.vision_config, "temporal_patch_size", 1))


def _prompt(model: Any, pixels: Tensor, question: int, generator: Generator) -> dict[str, Any]:
    """Some text, the video, and a question.

    Args:
        pixels: (frames, 3, SIDE * PIXELS, SIDE * PIXELS).
    """
    import torch

    def words(count: int) -> list[int]:
        return torch.randint(*_WORDS, (count,), generator=generator).tolist()

    family = family_of(model)
    frames, cells = len(pixels) // _frames_per_step(model), (SIDE // 2) ** 2
    token = IMAGE if model.config.model_type in AS_IMAGES else VIDEO
    row = words(4)
    if family is not None and not family.mrope:
        row += [VIDEO] * (frames * cells + family.trailing)
    elif model.config.model_type in TAGGED:
        for _ in range(frames):
            row += [*words(3), START, *[token] * cells, END]
    else:
        row += [START, *[token] * (frames * cells), END]
    ids = torch.tensor([row + words(question)])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family is not None and not family.mrope:
        inputs["pixel_values_videos"] = pixels[None]
        return inputs
    inputs["pixel_values_videos"] = _patches(pixels, frames)
    inputs["video_grid_thw"] = torch.tensor([[frames, SIDE, SIDE]])
    taken = inspect.signature(model.forward).parameters
    more = {
        "mm_token_type_ids": torch.where(ids == token, 2, 0),
        "video_second_per_grid": torch.ones(1, dtype=torch.float32),
    }
    return inputs | {name: value for name, value in more.items() if name in taken}


def _patches(pixels: Tensor, frames: int) -> Tensor:
    """Qwen's order of patches, (patches, values): two by two that are merged lie side by side, frames of a pair inside.

    As transformers' video processors cut them (``Qwen2VLVideoProcessor``).
    """
    side = SIDE // 2
    cut = pixels.reshape(frames, -1, 3, side, 2, PIXELS, side, 2, PIXELS)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(frames * SIDE * SIDE, -1)


def _still(noise: Any) -> Any:
    """Frames that repeat for a scene, with a little noise on top."""
    import torch

    return noise[torch.arange(len(noise)) // _SCENE * _SCENE] + 0.05 * noise
