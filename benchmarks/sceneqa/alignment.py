"""Alignment of vision features and words, as in an encoder trained with text: a frame's features point the way of the
words for what it shows.

Legend: F frames, C tokens of a frame, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize
from transformers import PreTrainedTokenizerFast

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, TEXTURES
from segmo.sceneqa.glyphs import SHAPES
from segmo.sceneqa.questions import DIGITS

IGNORE = -100
GROUPS = {"colour": tuple(COLOURS), "texture": TEXTURES, "digit": DIGITS, "shape": SHAPES}
NEVER_SHOWN = torch.zeros(len(COLOURS), len(TEXTURES), dtype=torch.bool)
NEVER_SHOWN.view(-1)[list(HELD_OUT)] = True
GENERIC_COSINE = 0.3  # a frame shows "a digit" or "a shape" where a token's cosine with that word is above this
SCALE = 12.0  # cosines are multiplied by this before the softmax


class Alignment:
    """The loss, and how often the right word of each group is the nearest one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        ids: Any = tokenizer.convert_tokens_to_ids
        self.groups = [torch.tensor(ids(list(words))) for words in GROUPS.values()]
        self.generic = torch.tensor(ids(["digit", "shape"]))

    def loss(self, words_WH: Tensor, features_FCH: Tensor, caption_F4: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy of picking each frame's words by cosine, and the accuracy of that by group.

        Args:
            words_WH: embeddings of all words.
            features_FCH: of F frames.
            caption_F4: ids of colour, texture, digit and shape, IGNORE for none.
        """
        unit = normalize(features_FCH, dim=-1)
        unit_WH = normalize(words_WH, dim=-1)
        loss, right = features_FCH.new_zeros(()), {}
        for group, (name, ids) in enumerate(zip(GROUPS, self.groups, strict=True)):
            known = caption_F4[:, group] != IGNORE
            if not bool(known.any()):
                continue
            logits = SCALE * unit[known] @ unit_WH[ids].T  # (frames, C, words)
            # A background is in every cell, a digit or a shape in some.
            logits = logits.mean(1) if group < 2 else logits.logsumexp(1)
            if group < 2 and torch.is_grad_enabled():
                logits = self._without_held_out(logits, caption_F4[known, 1 - group], group)
            target = (caption_F4[known, group, None] == ids).long().argmax(1)
            loss = loss + cross_entropy(logits, target)
            right[name] = float((logits.argmax(1) == target).float().mean())
        for group, word in zip((2, 3), self.generic, strict=True):
            cosine = (unit @ unit_WH[word]).amax(1)
            shown = (caption_F4[:, group] != IGNORE).float()
            loss = loss + binary_cross_entropy_with_logits(SCALE * (cosine - GENERIC_COSINE), shown)
        return loss / len(self.groups), right

    def _without_held_out(self, logits: Tensor, other: Tensor, group: int) -> Tensor:
        """A pair that training never shows is no wrong answer either: otherwise a texture would be unlearnt for the
        colours it is never seen in."""
        match = other[:, None] == self.groups[1 - group]
        never = (NEVER_SHOWN if group else NEVER_SHOWN.T)[match.long().argmax(1)]
        return logits.masked_fill(never & match.any(1)[:, None], -torch.inf)
