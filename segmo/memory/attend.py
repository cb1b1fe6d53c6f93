"""Relevance from the keys themselves: what a question pays attention to among everything that is held.

The question's rows run through the decoder behind all keys of the memory, as they would answer. While they do, every
attention of the decoder passes by here, with the queries and the keys that it was called with; nothing of the model is
changed for it. Where one layer is asked for, the forward ends there, and no later layer's keys are read.

Legend: T tokens held, R rows of the question, L decoder layers, A query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from segmo.errors import OptionError
from segmo.memory.moves import Moves, late_layers
from segmo.memory.rows import Enough, cache_of_layers, decoder_of, run_decoder
from segmo.memory.seen import Asked, Seen
from segmo.runtime.asking import attention_paid
from segmo.runtime.distributed.ranks import Ranks


class _Listener(TorchFunctionMode):
    """Adds up what attention layers pay to the keys in front of the rows.

    Args:
        layer: the only one that is listened to, and the last one that runs; None for every layer.
        rows: those that ask, among the rows that run.
        held: T.
    """

    def __init__(self, layer: int | None, rows: Tensor, held: int) -> None:
        super().__init__()
        self.layer, self.rows, self.held = layer, rows, held
        self.paid: list[Tensor] = []
        self.passed = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is scaled_dot_product_attention:
            number, self.passed = self.passed, self.passed + 1
            if self.layer in (None, number):
                self._note(args[0], args[1], given.get("scale"))
            if self.layer == number:
                raise Enough
        return func(*args, **given)

    def _note(self, q_BAND: Tensor, k_BGND: Tensor, scale: float | None) -> None:
        q_ARD, keys = q_BAND[0][:, self.rows], k_BGND.shape[2]
        last_R = keys - q_BAND.shape[2] + self.rows
        hidden_RN = torch.arange(keys, device=q_ARD.device) > last_R[:, None]
        paid_N = attention_paid(q_ARD, k_BGND[0], hidden_RN, scale or q_ARD.shape[-1] ** -0.5)
        self.paid.append(paid_N[: self.held] / (q_ARD.shape[0] * len(self.rows)))


@torch.no_grad()
def attention_paid_to(model: Any, whole: Seen, asked: Asked, behind: int, layer: int | None, ranks: Ranks) -> Tensor:
    """Attention that a question pays to each token held, mean over heads and rows, (1, T) or, of all layers, (L, T).

    Its rows are the question's own, as far as its words are found among the ids, and the one that gives the answer.

    Args:
        model: that watched.
        whole: every token that is held.
        asked: the question.
        behind: position of the first token behind the video.
        layer: of the decoder; None for all.
        ranks: that keep the memory.

    Raises:
        OptionError: the decoder has no such layer, or runs with another attention than sdpa.
    """
    decoder = decoder_of(model)
    layers = decoder.config.num_hidden_layers
    if layer is not None and layer >= layers:
        raise OptionError(f"layer={layer}: this model's decoder has the layers 0 to {layers - 1}")
    used = decoder.config._attn_implementation
    if used != "sdpa":
        raise OptionError(
            f'scorer="attention" listens to scaled_dot_product_attention, and this model uses {used!r}: load '
            'it with attn_implementation="sdpa", or take scorer="embedding"'
        )
    embed = model.get_input_embeddings()
    device = embed.weight.device
    embeds = embed(torch.tensor(asked.ids, device=device)).detach()
    first = behind + len(asked.before)
    position = torch.arange(first, first + len(asked.ids)).expand(len(whole.known["position"]), -1)
    moves = Moves([whole], asked.said, device, ranks, layers if layer is None else layer + 1)
    listener = _Listener(layer, rows_of_words(asked.words, asked.ids).to(device), len(whole))
    with listener:
        run_decoder(decoder, embeds, position, cache_of_layers(late_layers(moves, embeds)))
    return torch.stack(listener.paid)


def rows_of_words(words: Sequence[int], ids: Sequence[int]) -> Tensor:
    """Places of a question's words among ids, and the last one; all places where they are not found in one piece."""
    count, wanted = len(words), list(words)
    start = next((at for at in range(len(ids) - count + 1) if list(ids[at : at + count]) == wanted), 0)
    found = range(start, start + count) if list(ids[start : start + count]) == wanted else range(len(ids))
    return torch.tensor(sorted({*found, len(ids) - 1}))
