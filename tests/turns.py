"""Conversations of several turns: prompts for later turns, and the reference with the dropped keys hidden.

The reference is the unmodified model, eager, called as a user calls it, with a full cache of its own: a mask alone
hides the dropped keys. Nothing of SegMo runs in it.

Legend: B batch, N prompt tokens of the turn that was cut, L tokens so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from eager_reference import decoder, dense_mask
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from segmo.report.prefill import Prefill

TEXT = ("input_ids", "attention_mask", "mm_token_type_ids")


def ask(model: Any, inputs: dict[str, Any], **more: Any) -> Any:
    """``generate``, with the logits of each new token."""
    given = {"max_new_tokens": 4, "do_sample": False, **more}
    return model.generate(**inputs, **given, return_dict_in_generate=True, output_logits=True)


def next_turn(inputs: dict[str, Tensor], so_far: Tensor, new: Tensor, pads: int = 0) -> dict[str, Tensor]:
    """All ids so far and a new question, without the video: what a user hands in for a later turn.

    Args:
        inputs: of the turn before.
        so_far: (B, L) ids.
        new: (B, Q) ids.
        pads: this many of the first row's new tokens are padding.
    """
    ids = torch.cat([so_far, new], dim=1)
    rows, added = ids.shape[0], ids.shape[1] - inputs["input_ids"].shape[1]
    mask = torch.ones(rows, added, dtype=torch.long)
    start = added - new.shape[1]
    mask[0, start : start + pads] = 0
    later = {"input_ids": ids, "attention_mask": torch.cat([inputs["attention_mask"], mask], dim=1)}
    if "mm_token_type_ids" in inputs:
        nothing = torch.zeros(rows, added, dtype=torch.long)
        later["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], nothing], dim=1)
    return later


def words(count: int, rows: int = 1, seed: int = 0) -> Tensor:
    """Random text, (rows, count)."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randint(10, 90, (rows, count), generator=generator)


@contextmanager
def dropped_hidden(model: Any, prefill: Prefill, first_layer: int = 0) -> Iterator[None]:
    """Inside, the tokens that a prefill dropped are hidden from every later row of this model, which runs eagerly.

    Args:
        prefill: what SegMo kept, and its segments if there are any.
        first_layer: the layer from which the prefill's own rows do not see them either (``scorer="attention"``).
    """
    index = prefill.index
    assert index is not None
    rows, length = prefill.frame.shape
    kept = torch.zeros(rows, length, dtype=torch.bool).scatter_(1, index, True)
    inside = torch.ones(rows, length, length, dtype=torch.bool).tril() & kept[:, None]
    if prefill.segment is not None:
        for row in range(rows):
            context = None if prefill.context is None else prefill.context[row]
            inside[row][index[row][:, None], index[row]] = dense_mask(prefill.segment[row], context)
    layers = {id(layer.self_attn): number for number, layer in enumerate(decoder(model).layers)}
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
        if id(module) not in layers:
            return sdpa(module, query, key, value, attention_mask, **kwargs)
        new, held = query.shape[2], key.shape[2]
        seen = torch.ones(new, held, dtype=torch.bool).tril(held - new)[None, None]
        if attention_mask is not None:
            seen = seen & attention_mask
        seen = seen.expand(rows, -1, -1, -1).clone()
        if new < held:
            seen[..., :length] &= kept[:, None, None]
        elif layers[id(module)] >= first_layer:
            seen[..., :length, :length] &= inside[:, None]
            seen |= torch.eye(new, held, dtype=torch.bool)  # a dropped row has to see something; nobody reads it
        return sdpa(module, query, key, value, seen, **{**kwargs, "is_causal": False})

    ALL_ATTENTION_FUNCTIONS.register("sdpa", attention)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa)


def assert_same(found: Any, expected: Any) -> None:
    """Two answers of ``generate``: the same tokens, and the same logits for each of them to rounding."""
    assert torch.equal(found.sequences, expected.sequences)
    assert len(found.logits) == len(expected.logits)
    for mine, other in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)
