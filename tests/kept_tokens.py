"""The reference of the cut for any family: the model run eagerly, with its decoder called on the kept tokens only.

Nothing of SegMo's graph is used: a hook in front of the decoder cuts every tensor of the call along its token
dimension, and the model's own code does the rest. A sliding window is one of the prompt's positions: such a layer
gets the mask that it makes for the whole prompt, at the kept tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from segmo.compat.cache_name import NAMES, cache_name, cache_of


def decoder(model: Any) -> torch.nn.Module:
    """The part of a Video LLM that reads embeddings and holds the layers."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("language_model", "text_model") or (
            name == "model" and hasattr(module, "layers")
        ):
            return module  # type: ignore[no-any-return]
    raise AssertionError(f"no decoder in {type(model).__name__}")


@contextmanager
def kept_tokens_only(model: Any, index_K: Tensor, video_N: Tensor) -> Iterator[None]:
    """Inside, a prompt's prefill reaches the decoder with the tokens at ``index_K`` alone.

    Args:
        model: run eagerly; one prompt a call.
        index_K: positions of the kept tokens.
        video_N: True at video tokens; features with a row for each of them are cut to the kept ones.
    """
    length, rows = len(video_N), int(video_N.sum())
    own, local = set(decoder(model).modules()), layers_of_kind(model, "sliding")
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    whole: dict[int, Tensor] = {}  # masks of the whole prompt, by layer
    recording = False
    kept_rows = (video_N.long().cumsum(0) - 1)[index_K][video_N[index_K]]

    def cut(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if "deepstack" in name and value.shape[0] == rows:
            return value[kept_rows]
        for dim in range(value.dim()):
            if value.shape[dim] == length:
                value = value.index_select(dim, index_K)
        return value

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal recording
        if recording or kwargs["inputs_embeds"].shape[1] != length:
            return args, kwargs
        if local:
            recording = True
            module(*args, **{**kwargs, cache_name(module): copy.deepcopy(cache_of(kwargs))})
            recording = False
        if kwargs.get("position_ids") is None:  # the decoder would count the tokens that it gets
            kwargs["position_ids"] = torch.arange(length)[None]
        shorter = {
            name: value if name in NAMES else pytree.tree_map(lambda leaf, name=name: cut(name, leaf), value)
            for name, value in kwargs.items()
        }
        return args, shorter

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        if module in own and module.layer_idx in local:
            if recording:
                whole[module.layer_idx] = attention_mask
            else:
                attention_mask = whole[module.layer_idx][..., index_K[:, None], index_K]
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    handle = decoder(model).register_forward_pre_hook(before, with_kwargs=True)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
    try:
        yield
    finally:
        handle.remove()
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)


def cached(cache: Any) -> dict[str, Tensor]:
    """Every tensor that a cache holds, by layer and name."""
    found: dict[str, Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, Tensor) and value.numel() and value.is_floating_point():
            found[name] = value
        elif isinstance(value, (list, tuple)):
            for at, item in enumerate(value):
                collect(f"{name}[{at}]", item)
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}[{key}]", item)

    for number, layer in enumerate(cache.layers):
        for name, value in vars(layer).items():
            collect(f"layer {number} {name}", value)
    return found


def layers_of_kind(model: Any, kind: str) -> set[int]:
    """Numbers of the decoder's layers of a kind ("full", "sliding", ...), from the config."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return {number for number, name in enumerate(kinds) if name.startswith(kind)}


@contextmanager
def dense_attention(model: Any, mask_NN: Tensor) -> Iterator[None]:
    """Inside, the decoder's layers with full attention see what the mask says; other layers run as they are."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    own, full = set(decoder(model).modules()), layers_of_kind(model, "full")

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        if module in own and module.layer_idx in full and query.shape[2] == len(mask_NN):
            attention_mask = mask_NN[None, None]
            kwargs["is_causal"] = False
        return sdpa(module, query, key, value, attention_mask, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)
