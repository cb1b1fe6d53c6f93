"""Model families: what SegMo must know about a Video LLM that its graph does not say.

A family is found by its config's ``model_type``, so fine-tunes and subclasses match. ``FAMILIES`` are those that say
more than can be inferred; any other model that takes video is described by :func:`inferred`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from segmo.errors import OptionError

_Model = TypeVar("_Model", bound=object)


@dataclass(frozen=True)
class Family:
    """How one family lays out a video in its prompt.

    Attributes:
        model_type: ``config.model_type`` of the transformers classes.
        mrope: positions are M-RoPE, ``(3 or 4, B, N)``; a frame starts where height and width are back at
            their first value. None: they are if those that come in have several rows. Otherwise positions are 1-D and
            frames are counted with ``cells_per_frame``.
        cells_per_frame: tokens of one frame, from the config. Only read when ``mrope`` is false.
        trailing: video tokens after the last frame of each video (LLaVA-OneVision's newline); they join that
            frame.
        video_argument: text that the argument holding the video's features or pixels has in its name.
    """

    model_type: str
    mrope: bool | None = True
    cells_per_frame: Callable[[Any], int] | None = None
    trailing: int = 0
    video_argument: str = "video"


def _llava_onevision_cells(config: Any) -> int:
    """Each frame's patch grid is pooled by two in each direction, rounding up."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return math.ceil(side / 2) ** 2


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_vl"),
        Family("qwen2_5_vl"),
        Family("qwen3_vl"),
        Family("llava_onevision", mrope=False, cells_per_frame=_llava_onevision_cells, trailing=1),
    )
}


def inferred(config: object) -> Family:
    """What is taken for granted of a model that has no entry.

    Positions are M-RoPE where those that come in have several rows, and otherwise every run of video tokens is a frame.
    A model without a placeholder of its own for video shows it as images.
    """
    own = any(getattr(config, name, None) is not None for name in ("video_token_id", "video_token_index"))
    model_type = str(getattr(config, "model_type", "") or type(config).__name__)
    return Family(model_type, mrope=None, video_argument="video" if own else "")


def family_for(config: object) -> Family:
    """The entry of a config's family, or what is inferred for it."""
    return FAMILIES.get(getattr(config, "model_type", "")) or inferred(config)


ENCODERS = ("get_video_features", "get_image_features")


def encoder_of(base: Any, kind: str) -> Callable[..., Any] | None:
    """What encodes a model's videos ("video") or images ("image"), None where it has nothing for them.

    Args:
        base: the ``base_model`` of a transformers model, whose method it is.
        kind: of pictures. A model that takes ``pixel_values_videos`` and has one encoder for both encodes them as
            images (PerceptionLM).
    """
    found: Callable[..., Any] | None = getattr(base, f"get_{kind}_features", None)
    if found is not None or kind == "image" or "pixel_values_videos" not in inspect.signature(base.forward).parameters:
        return found
    images = getattr(base, "get_image_features", None)

    def as_images(pixel_values_videos: Any, **kwargs: Any) -> Any:
        return images(pixel_values=pixel_values_videos, **kwargs)  # type: ignore[misc]  # not None, see below

    return None if images is None else as_images


def video_encoder_name(base: Any) -> str:
    """The method of a model's ``base_model`` that frames of a video go to: the images' where there is no other."""
    return ENCODERS[0] if encoder_of(base, "video") is not None else ENCODERS[1]


_PLACEHOLDERS = ("video_token_id", "video_token_index", "image_token_id", "image_token_index")


def takes_video(model: object) -> bool:
    """Whether a model generates text from a prompt that its own vision encoder's features enter."""
    if family_of(model) is not None or description_of(model).placeholder is not None:
        return True
    can_generate = getattr(type(model), "can_generate", None)
    if can_generate is None or not can_generate():
        return False
    parts = (model, getattr(model, "base_model", None))
    config = getattr(model, "config", None)
    return any(hasattr(part, name) for part in parts for name in ENCODERS) or any(
        getattr(config, name, None) is not None for name in _PLACEHOLDERS
    )


@dataclass(frozen=True)
class Description:
    """What :func:`describe` was told of a model.

    Attributes:
        frames: of each video of a call: one number for all, one for each, or a function of the call's arguments.
        placeholder: id of the token that a video's features take the place of.
    """

    frames: int | Sequence[int] | Callable[[Mapping[str, Any]], Sequence[int]] | None = None
    placeholder: int | None = None


_TOLD = "_segmo_description"  # attribute of a model


def describe(
    model: _Model,
    *,
    frames: int | Sequence[int] | Callable[[Mapping[str, Any]], Sequence[int]] | None = None,
    placeholder: int | None = None,
) -> _Model:
    """Says of a model what SegMo cannot infer: how many frames its videos have, and which token stands for them.

    Most models need none of it. It is for models whose prompt is one row of 1-D tokens for a whole video and whose call
    does not tell the number of frames, and for models whose config names no placeholder.

    Args:
        model: a Video LLM, transformers' or the user's own; call this before :func:`segmo.compile`.
        frames: of each video of a call: one number for all, one for each, or a function of the call's arguments.
        placeholder: id of the token that a video's features take the place of.

    Returns:
        The same model.

    Raises:
        OptionError: a number that is not positive, or nothing was said.
    """
    # Whoever calls this may not run a type checker.
    told: Any = frames
    numbers: list[Any] = [told] if isinstance(told, int) else [] if told is None or callable(told) else list(told)
    token: Any = placeholder
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        raise OptionError(f"frames is {frames!r}; it must be a number of frames, one for each video, or a function")
    if token is not None and (not isinstance(token, int) or token < 0):
        raise OptionError(f"placeholder is {placeholder!r}; it must be the id of a token")
    if frames is None and placeholder is None:
        raise OptionError("say something of the model: describe(model, frames=..., placeholder=...)")
    vars(model)[_TOLD] = Description(frames, placeholder)
    return model


def description_of(model: object) -> Description:
    """What was said of a model; nothing, if nothing was."""
    found = vars(model).get(_TOLD) if hasattr(model, "__dict__") else None
    return found if isinstance(found, Description) else Description()


def family_of(model: object) -> Family | None:
    """The family of a transformers model or wrapped model, or None if it is not a known one."""
    config = getattr(model, "config", None)
    return FAMILIES.get(getattr(config, "model_type", ""))
