"""A memory as a cache for ``generate``: it has seen the whole video, and holds what one question sees of it.

``model.generate(**inputs, past_key_values=memory.cache(question))`` feeds the tokens behind the video. ``generate``
encodes a video that is among the inputs and hands it to the prefill, whose rows hold no video token any more; and it
continues the positions of the last prompt that the model has seen, which was another one. So a hook in front of the
model's forward takes out what belongs to the watched video, and counts positions from where the video ends.

Legend: T tokens that come, N tokens of the prompt up to the end of the video, K of them held, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segmo.compat.cache_name import cache_of
from segmo.compat.generation import arguments
from segmo.compat.masks import ask_cut_caches
from segmo.errors import CacheError
from segmo.memory.moves import Late, LateLayer
from segmo.memory.rows import AnswerCache
from segmo.memory.watcher import Watcher
from segmo.runtime.cache import CutLayer

# Arguments that belong to the watched video.
_VIDEO = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts", "mm_encoder_outputs", "mm_token_type_ids")


class MemoryLayer(Late, CutLayer):  # type: ignore[no-untyped-call]  # of transformers
    """A layer of a :class:`MemoryCache`."""


class MemoryCache(AnswerCache):
    """Keys and values that one question sees of a video.

    Args:
        layers: what the question sees, of each layer of the decoder.
        at: where it stands in the prompt, (1 or L, K).
        watcher: what was watched.
        video_token: id of the video placeholder.

    Attributes:
        seen: N.
        first: position of the first token behind the video.
        rows: of position ids: 3 with M-RoPE, 1 without.
    """

    def __init__(self, layers: Sequence[LateLayer], at: Tensor, watcher: Watcher, video_token: int) -> None:
        super().__init__()
        self.seen, self.first, self.rows = watcher.length, watcher.behind, watcher.positions.rows
        self.video_token, self.video_tokens = video_token, watcher.video_tokens
        rows = at.expand(len(layers), -1)[:, None].to(layers[0].device)
        self.layers += [MemoryLayer(layer, self.seen, row) for layer, row in zip(layers, rows, strict=True)]

    def inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the model's forward, for tokens behind the video.

        Raises:
            CacheError: they hold another video or an image, padding in front, or a mask of another length.
        """
        ids, embeds = given.get("input_ids"), given.get("inputs_embeds")
        batch, count = (ids if ids is not None else embeds).shape[:2]  # type: ignore[union-attr]  # one of them is there
        if given.get("pixel_values") is not None or (ids is not None and bool((ids == self.video_token).any())):
            raise CacheError(
                "a memory's cache takes text behind its video; these tokens hold an image or a video. If it is the "
                "video that was watched, its prompt must hold the memory's tokens up to the end of the video"
            )
        mask = given.get("attention_mask")
        here = self.get_seq_length()
        if here == self.seen:
            self._check_prompt(arguments())
        if isinstance(mask, Tensor) and mask.dim() == 2:
            if mask.shape[1] != here + count:
                raise CacheError(
                    f"the attention mask has {mask.shape[1]} columns; the memory's prompt has {here} tokens and "
                    f"{count} come now. Hand in the ids of the whole prompt, the watched video's tokens among them"
                )
            if not bool(mask[:, : self.seen].all()):
                raise CacheError(
                    "the prompts are padded on the left, where the memory's video stands; ask them one at a time, or "
                    "use memory.ask with a list of questions"
                )
        start = self.first + here - self.seen
        device = (ids if ids is not None else embeds).device  # type: ignore[union-attr]
        position = torch.arange(start, start + count, device=device).expand(self.rows, batch, -1)
        kept = {name: value for name, value in given.items() if name not in _VIDEO}
        return {**kept, "position_ids": position if self.rows > 1 else position[0]}

    def _check_prompt(self, given: dict[str, Any]) -> None:
        """``generate`` takes a prompt's first N tokens for those of the memory, whatever they are."""
        ids = given.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            return
        found_B = (ids[:, : self.seen] == self.video_token).sum(1).tolist()
        found = next((found for found in found_B if found != self.video_tokens), None)
        if found is not None:
            raise CacheError(
                f"the prompt has {found} video tokens where the memory has {self.video_tokens}: it is of another "
                "video, or of a part of this one. Hand in the processor's ids for all that was watched"
            )


def behind_the_video(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A hook in front of a model's forward, which changes calls with a :class:`MemoryCache` alone."""
    cache = cache_of(kwargs)
    if not isinstance(cache, MemoryCache):
        return None
    return args, cache.inputs(kwargs)


def expect_memories(model: Any) -> None:
    """Lets a model take a :class:`MemoryCache`.

    Raises:
        CacheError: transformers makes masks in another way than is known.
    """
    if not ask_cut_caches():
        raise CacheError("this version of transformers makes attention masks in a way that SegMo does not know")
    if behind_the_video not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(behind_the_video, with_kwargs=True)
