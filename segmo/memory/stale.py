"""What a memory on disk depends on. One that was made under other conditions is refused by name, never read."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch
from torch import Tensor

from segmo.errors import CacheError
from segmo.families import Family
from segmo.memory.known import text_inside
from segmo.memory.positions import Positions

FORMAT = 3  # raised whenever the same video and options would give another memory, between releases
_NO_MATTER = ("transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype", "use_cache")
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a weight


def identity(model: Any, family: Family) -> dict[str, Any]:
    """All that keys and values of a video come from, beside the video and the options."""
    version = sys.modules["segmo"].__version__  # the package shows this module, so it is not imported here
    return {
        "program": f"SegMo {version} (format {FORMAT})",
        "family": family.model_type,
        "dtype": str(model.dtype),
        "config": hashlib.sha256(json.dumps(_config(model), sort_keys=True, default=str).encode()).hexdigest(),
        "weights": weights(model),
        "layout": layout(model, family),
    }


def check(saved: dict[str, Any], here: dict[str, Any], where: str) -> None:
    """Refuses a memory that was made otherwise.

    Raises:
        CacheError: it names what differs.
    """
    told = {
        "program": f"it was written by {{}}, and this is {here['program']}",
        "family": "it was made by a model of the family {}",
        "dtype": "it was made in {}",
        "config": "it was made by a model with another config",
        "weights": "it was made by a model with other weights",
        "layout": "transformers lays positions out otherwise than when it was made",
    }
    for name, why in told.items():
        if saved.get(name) != here[name]:
            raise CacheError(f"{where} is stale: {why.format(saved.get(name))}; watch the video again")


def weights(model: Any) -> str:
    """Changes with any one weight: the sum of every tensor's bits and of its first values' places.

    Raises:
        CacheError: a weight is not in memory, so that it cannot be read.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        for part in _stored(tensor.detach()):
            if part.is_meta:
                raise CacheError(
                    f"the model's weight {name} is on the device 'meta' (offloaded, or never loaded), so a memory on "
                    "disk cannot be told to be the model's; load the model without offloading"
                )
            found.update(f"{name} {tuple(part.shape)} {part.dtype} {_sum(part)}\n".encode())
    found.update(_adapters(model).encode())
    return found.hexdigest()


def _stored(tensor: Tensor) -> list[Tensor]:
    """The tensors that one is stored in: itself, or for quantised weights their numbers and scales."""
    flatten = getattr(tensor, "__tensor_flatten__", None)  # what torch.compile asks wrappers of tensors for
    return [tensor] if flatten is None else [part for name in flatten()[0] for part in _stored(getattr(tensor, name))]


def _sum(tensor: Tensor) -> tuple[int, int]:
    words = tensor.contiguous().flatten().view(_WORDS[tensor.element_size()])
    head = words[:4096].to(torch.int64)
    return int(words.sum(dtype=torch.int64)), int((head * torch.arange(1, len(head) + 1, device=head.device)).sum())


def layout(model: Any, family: Family) -> str:
    """The positions that a small prompt gets: text, a video, further frames of it, text."""
    if not family.mrope:
        return "1-D"
    merge = model.config.vision_config.spatial_merge_size
    positions = Positions(model, True, {})
    found = [positions.begin(3)]
    for frames in (5, 2):
        video = torch.ones(frames * 6, dtype=torch.bool)
        if text_inside(family):
            video = torch.tensor([False, False, *[True] * 6]).repeat(frames)
        found.append(positions.add(video, (frames, 2 * merge, 3 * merge)))
    return hashlib.sha256(str([*(x.tolist() for x in found), positions.next]).encode()).hexdigest()


def _config(model: Any) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in _NO_MATTER}
        return value

    return plain(model.config.to_dict())


def versions(model: Any) -> int:
    """Changes when a weight is written in place, another one stands in its place, or adapters are switched; cheap."""
    stored = (part for parameter in model.parameters() for part in _stored(parameter))
    return hash((tuple((part.data_ptr(), part._version) for part in stored), _adapters(model)))


def _adapters(model: Any) -> str:
    """Which of PEFT's adapters count, and how much; nothing without any."""
    names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    layers = (module for module in model.modules() if hasattr(module, "merged_adapters"))
    return ";".join(str([getattr(layer, name, None) for name in names]) for layer in layers)
