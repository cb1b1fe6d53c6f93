"""Rows through the decoder behind keys that they may see: how a memory is watched.

What tokens of one segment may see is everything in front of them that is not hidden (sinks, context, their own
segment so far), and among themselves what a causal mask says. So they are a chunk of a prefill behind a cache that
holds nothing else, and the decoder runs as its authors wrote it, with whatever attention it was loaded with. No mask
over the prompt is ever built, and the rows of one segment cost the same after an hour as after a minute.

Legend: T rows, V video tokens among them, P keys of the past, L decoder layers, G key/value heads, D head size, H
hidden size, R rows of position ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from segmo.compat.cache_name import cache_name
from segmo.errors import CacheError

ROWS = 4096  # rows of a forward, at most


@dataclass(frozen=True)
class Rows:
    """Tokens of a part of the video, in front of the decoder."""

    ids: Tensor
    frame: Tensor
    cell: Tensor
    novelty: Tensor
    position: Tensor
    features: Tensor
    deepstack: list[Tensor]

    def only(self, start: int, end: int) -> Rows:
        """The tokens from ``start`` to ``end``."""
        before, inside = (int((self.cell[a:b] >= 0).sum()) for a, b in ((0, start), (start, end)))
        rows, video = slice(start, end), slice(before, before + inside)
        return Rows(
            self.ids[rows],
            self.frame[rows],
            self.cell[rows],
            self.novelty[rows],
            self.position[:, rows],
            self.features[video],
            [layer[video] for layer in self.deepstack],
        )


def decoder_of(model: Any) -> Any:
    """The language model inside a Video LLM."""
    return model.base_model.language_model


class AnswerCache(DynamicCache):
    """A cache that a question is answered behind, token by token."""

    def activate_past_recording(self) -> None:
        """Assisted decoding begins so, with a call that holds the whole prompt, whatever the cache holds already.

        Raises:
            CacheError: always.
        """
        raise CacheError(
            "assisted decoding reads the whole prompt again, and of a memory's prompt only what stands behind the "
            "video can be read: leave out assistant_model and prompt_lookup_num_tokens"
        )


def cache_of_layers(layers: Sequence[Any]) -> AnswerCache:
    """A cache of these layers."""
    cache = AnswerCache()
    cache.layers += layers
    return cache


class Enough(Exception):
    """What a forward is run for is there; what comes behind it would be read by nobody, and is not computed."""


class _LastLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # of transformers
    """The last layer's keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Takes them and ends the forward."""
        super().update(key_states, value_states, *args, **kwargs)
        raise Enough


def _past_cache(decoder: Any, past: tuple[Tensor, Tensor] | None) -> DynamicCache:
    """A cache that holds a past. A decoder with hooks runs whole: what they do behind a module must not be left out."""
    hooked = any(module._forward_hooks or hasattr(module, "_hf_hook") for module in decoder.modules())
    plain: Any = DynamicLayer  # its constructor has no types
    last: Any = DynamicLayer if hooked else _LastLayer
    layers = [*(plain() for _ in range(decoder.config.num_hidden_layers - 1)), last()]
    if past is not None and past[0].shape[2]:
        for layer, key, value in zip(layers, *past, strict=True):
            DynamicLayer.update(layer, key[None], value[None])
    return cache_of_layers(layers)


@torch.no_grad()
def run_rows(
    model: Any,
    embeds_TH: Tensor,
    position_RT: Tensor,
    past: tuple[Tensor, Tensor] | None,
    video_T: Tensor,
    deepstack: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Keys and values (L, G, T, D) of rows that see a past and, causally, each other.

    Args:
        model: of a known family.
        embeds_TH: token embeddings, video features in their places.
        position_RT: position ids, (3, T) with M-RoPE and (1, T) without.
        past: keys and values (L, G, P, D) of what all of the rows see; None for nothing.
        video_T: True at video tokens, (T,) bool.
        deepstack: features (V, H) that are added behind the first layers at video tokens.
    """
    device, total = embeds_TH.device, embeds_TH.shape[0]
    before = 0 if past is None else past[0].shape[2]
    decoder = decoder_of(model)
    cache: Any = _past_cache(decoder, past)
    done = 0
    for start in range(0, total, ROWS):
        rows = slice(start, min(start + ROWS, total))
        video = video_T[rows].to(device)
        count = int(video.sum())
        extra: dict[str, Any] = {}
        if deepstack and count:
            extra["visual_pos_masks"] = video[None]
            extra["deepstack_visual_embeds"] = [layer[done : done + count] for layer in deepstack]
        done += count
        run_decoder(decoder, embeds_TH[rows], position_RT[:, rows], cache, **extra)
    keys = torch.stack([layer.keys[0, :, before:] for layer in cache.layers])
    values = torch.stack([layer.values[0, :, before:] for layer in cache.layers])
    return keys, values


def run_decoder(decoder: Any, embeds_TH: Tensor, position_RT: Tensor, cache: DynamicCache, **extra: Any) -> None:
    """A forward behind a cache, for what is found on the way; up to where that raises :class:`Enough`."""
    position = position_RT.to(embeds_TH.device)
    with suppress(Enough):
        decoder(
            inputs_embeds=embeds_TH[None],
            position_ids=position if position.shape[0] == 1 else position[:, None],
            **{cache_name(decoder): cache},
            use_cache=True,
            **extra,
        )
