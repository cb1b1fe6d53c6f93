"""A prompt for a model of any family, made from its code and config alone: what its encoder takes is found by trying.

The arguments of the encoder say which kind of pixels it wants, whole frames or patches with a grid, with their places
or with their sizes. What it then gives says how many tokens a frame has.

Legend: F frames, C channels, P pixels of a patch's side.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError, in_one_line
from segmo.families import family_for

if TYPE_CHECKING:
    from torch import Tensor

Inputs = dict[str, Any]
Tried = tuple[Inputs, int]  # arguments of the encoder, and frames that it makes of them
Words = Callable[[int], list[int]]

_BLOCK = 2  # tokens of a frame's side, where that can be chosen
_UNTAGGED = ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_omni_moe", "ernie4_5_vl_moe")  # one run with M-RoPE
_UNDER_IMAGES = (
    "glm4v",
    "glm4v_moe",
    "glm46v",
    "glmga",
    "glm5_next",
    "nemotron_h_omni",
)  # a video takes the image token's place


def any_prompt(model: Any, pictures: Tensor, question: int, words: Words) -> Inputs:
    """Inputs of ``generate``: some text, the video, and a question.

    Args:
        model: of any family that takes video.
        pictures: (F, 3, height, width) of any size.
        question: tokens of the question.
        words: makes so many ids of text.

    Raises:
        OptionError: the encoder takes none of the kinds of pixels that are known.
    """
    import torch

    inputs, frames, tokens = _encoded(model, pictures)
    cells, config = max(1, tokens // frames), model.config
    token, kind = _placeholder(config)
    opens, closes = (_mark(config, name) for name in ("start", "end"))
    around = [_one(config, f"video_{name}_token_id") for name in ("start", "end")]
    lead, tail = ([] if mark is None or [mark] in (opens, closes) else [mark] for mark in around)
    name = config.model_type.removesuffix("_thinker")
    tags = name not in _UNTAGGED and tokens == cells * frames
    video: list[int] = []
    form = words(2)  # that tags end in: a time or a number is followed by the same words in front of every frame
    for _ in range(frames if tags else 0):
        video += [*words(1), *form, *opens, *[token] * cells, *closes]
    row = [*words(4), *lead, *(video if tags else [*opens, *[token] * tokens, *closes]), *tail, *words(question)]
    ids = torch.tensor([row])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    taken = inspect.signature(model.forward).parameters
    more = {
        "mm_token_type_ids": torch.where(ids == token, kind, 0),
        "video_second_per_grid": torch.ones(1, dtype=torch.float32),
    }
    return inputs | {name: value for name, value in more.items() if name in taken and name not in inputs}


def _placeholder(config: Any) -> tuple[int, int]:
    """Token of a video, and what kind of token it is said to be: 2 for a video's, 1 for an image's."""
    if getattr(config, "image_patch_id", None) is not None:  # Molmo2
        return int(config.image_patch_id), 1
    of_video = [_one(config, name) for name in ("video_token_id", "video_token_index")]
    of_image = [_one(config, name) for name in ("image_token_id", "image_token_index")]
    own = family_for(config).video_argument and config.model_type not in _UNDER_IMAGES
    found = [token for token in ((*of_video, *of_image) if own else (*of_image, *of_video)) if token is not None]
    if not found:
        raise OptionError(f"the config of {config.model_type} names no token that stands for a video")
    return found[0], 2


def _mark(config: Any, which: str) -> list[int]:
    names = (f"image_{which}_token_id", f"vision_{which}_token_id")
    found = [mark for name in names if (mark := _one(config, name)) is not None]
    return found[:1]


def _one(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _encoded(model: Any, pictures: Tensor) -> tuple[Inputs, int, int]:
    """Arguments of the encoder, frames that it makes of them, and tokens of these frames."""
    import torch

    base, refused = _mended(model).base_model, list[str]()
    width = model.config.get_text_config().hidden_size
    for name in ("get_video_features", "get_image_features"):
        encode = getattr(base, name, None)
        if encode is None:
            continue
        taken = set(inspect.signature(encode).parameters)
        for inputs, frames in _kinds(model.config, pictures, taken):
            try:
                with torch.no_grad():
                    out = encode(**inputs, return_dict=True)
            except Exception as error:  # noqa: BLE001  # encoders refuse pixels of another kind in many ways
                refused.append(in_one_line(error))
                continue
            features = getattr(out, "pooler_output", out)
            parts = [features] if isinstance(features, torch.Tensor) else list(features)
            tokens = sum(part.numel() for part in parts) // width
            if tokens >= frames:
                return _as_called(model, inputs), frames, tokens
    raise OptionError(
        f"no synthetic video fits the vision encoder of {type(model).__name__} "
        f"({refused[0] if refused else 'it has none'}); inspect a folder with weights and a processor: "
        "--weights --video FILE"
    )


def _as_called(model: Any, inputs: Inputs) -> Inputs:
    """The encoder's arguments as the model itself is called: one encoder may see images and videos (PerceptionLM)."""
    if "pixel_values" in inputs and "pixel_values_videos" in inspect.signature(model.forward).parameters:
        return {"pixel_values_videos": inputs["pixel_values"]}
    return inputs


def _mended(model: Any) -> Any:
    """The model; Nemotron-H-Omni's own code joins a video's features by ``torch.cat``, which takes no single tensor."""
    import torch

    encode = getattr(model, "get_video_features", None)
    if model.config.model_type != "nemotron_h_omni" or encode is None:
        return model

    @functools.wraps(encode)
    def tuple_of_features(*args: Any, **kwargs: Any) -> Any:
        out = encode(*args, **kwargs)
        if isinstance(out.pooler_output, torch.Tensor):
            out.pooler_output = tuple(out.pooler_output)
        return out

    model.get_video_features = tuple_of_features
    return model


def _kinds(config: Any, pictures: Tensor, taken: set[str]) -> Iterator[Tried]:
    """Pixels of every kind that goes with the names of an encoder's arguments, the likeliest first."""
    vision = config.vision_config
    patch = _side(getattr(vision, "patch_size", None)) or 16
    pixels = "pixel_values_videos" if "pixel_values_videos" in taken else "pixel_values"
    if "video_grid_thw" in taken:
        yield from _with_grid(vision, pictures, patch, pixels, taken)
    elif "video_position_ids" in taken:
        yield from _with_places(vision, pictures, patch, pixels, taken)
    elif "target_sizes_videos" in taken:
        yield _packed(pictures, patch)
    elif "video_token_pooling" in taken:
        yield _pooled(vision, pictures, patch)
    else:
        yield from _whole(vision, pictures, pixels)


def _whole(vision: Any, pictures: Tensor, pixels: str) -> Iterator[Tried]:
    frames, joined = len(pictures), int(getattr(vision, "video_temporal_patch_size", None) or 1)
    size = _side(getattr(vision, "image_size", None)) or 224
    shown = _resized(pictures.repeat_interleave(joined, 0), size, size)
    if joined > 1:  # as channels, from transformers 5.24 on
        yield {pixels: shown.view(1, frames, -1, size, size)}, frames
    yield {pixels: shown[None]}, frames
    yield {pixels: shown}, frames


def _with_grid(vision: Any, pictures: Tensor, patch: int, pixels: str, taken: set[str]) -> Iterator[Tried]:
    import torch

    frames = len(pictures)
    merge = int(getattr(vision, "spatial_merge_size", None) or getattr(vision, "merge_size", None) or 2)
    joined = int(getattr(vision, "temporal_merge_size", None) or 1)
    more = {"video_merge_sizes": torch.tensor([merge])} if "video_merge_sizes" in taken else {}
    side = merge * _BLOCK
    for spans in dict.fromkeys((int(getattr(vision, "temporal_patch_size", None) or 1), 1, 2)):
        shown = _resized(pictures.repeat_interleave(joined, 0), side * patch, side * patch)
        grid = torch.tensor([[len(shown), side, side]])
        cut = _patches(shown, side, patch, merge)  # (frames, patches, 3, patch, patch)
        flat = cut[:, :, :, None].expand(-1, -1, -1, spans, -1, -1).flatten(0, 1)
        yield {pixels: flat.flatten(1), "video_grid_thw": grid, **more}, frames
        if spans == 1:
            yield (
                {pixels: flat[:, :, 0], "video_grid_thw": torch.tensor([[1, side, side]] * len(shown)), **more},
                frames,
            )


def _with_places(vision: Any, pictures: Tensor, patch: int, pixels: str, taken: set[str]) -> Iterator[Tried]:
    import torch

    more = {"num_frames_per_video": torch.tensor([len(pictures)])} if "num_frames_per_video" in taken else {}
    pool = int(getattr(vision, "pooling_kernel_size", None) or 1)
    for merged in (False, True):
        # The encoder pools patches into tokens, or gets patches that are a token's pixels.
        side, size = (_BLOCK, patch * pool) if merged else (_BLOCK * pool, patch)
        place = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(1, -1, 2)
        shown = _patches(_resized(pictures, side * size, side * size), side, size, 1).flatten(2)
        yield {pixels: shown, "video_position_ids": place.repeat(len(shown), 1, 1), **more}, len(shown)


def _packed(pictures: Tensor, patch: int) -> Tried:
    import torch

    frames, side = len(pictures), 4 * _BLOCK
    cut = _patches(_resized(pictures, side * patch, side * patch), side, patch, 1)
    row = cut.flatten(0, 1).permute(1, 2, 0, 3).reshape(1, cut.shape[2], patch, -1)
    return {"pixel_values_videos": row, "target_sizes_videos": torch.tensor([[side, side]] * frames)}, frames


def _pooled(vision: Any, pictures: Tensor, patch: int) -> Tried:
    import torch

    frames, side = len(pictures), (_side(getattr(vision, "image_size", None)) or patch * 2 * _BLOCK) // patch
    cut = _patches(_resized(pictures, side * patch, side * patch), side, patch, 1).flatten(2)
    places = torch.arange(side * side).view(side, side)[: side // 2 * 2, : side // 2 * 2]
    block = places.unfold(0, 2, 2).unfold(1, 2, 2).flatten(0, 1).flatten(1)
    pooling = (block[None] + side * side * torch.arange(frames)[:, None, None]).flatten(0, 1)
    grid = torch.tensor([[frames, side // 2, side // 2]])
    return {"pixel_values_videos": cut, "video_token_pooling": pooling, "video_grids": grid}, frames


def _resized(pictures: Tensor, height: int, width: int) -> Tensor:
    import torch

    return torch.nn.functional.interpolate(pictures, (height, width), mode="area")


def _patches(pictures: Tensor, side: int, patch: int, merge: int) -> Tensor:
    """(F, side * side, 3, patch, patch); those that are merged into a token lie side by side."""
    blocks = side // merge
    cut = pictures.reshape(len(pictures), 3, blocks, merge, patch, blocks, merge, patch)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(len(pictures), side * side, 3, patch, patch)


def _side(size: Any) -> int | None:
    return int(size[0]) if isinstance(size, (list, tuple)) else None if size is None else int(size)
