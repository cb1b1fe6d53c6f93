"""The prompt that is being answered, for the vision encoder's side, which a model hands the pixels only.

Legend: B batch, N prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.runtime.encoded import VideoRows
from segmo.runtime.layout import roles
from segmo.runtime.question import ChatTokens, question_tokens


@dataclass(frozen=True)
class Prompt:
    """Token ids (B, N), and the attention mask (B, N) if there is one."""

    ids: Tensor
    mask: Tensor | None

    def question(self, row: int, video_token: int, videos: VideoRows, chat: ChatTokens) -> Tensor:
        """Token ids of a row's question, (Q,), as the decoder's graph tells it.

        Args:
            row: of the batch.
            video_token: id of the placeholder.
            videos: how the frames of this row's videos lie in its video tokens.
            chat: what is known of the model's chat template.
        """
        ids_BN = self.ids[row : row + 1]
        owner_V = videos.owner()
        video_BN = ids_BN == video_token
        start_BN, between_BN = torch.zeros_like(video_BN), torch.zeros_like(video_BN)
        place_V = video_BN[0].nonzero()[:, 0]
        first_V = torch.nn.functional.pad(owner_V[1:] != owner_V[:-1], (1, 0), value=True) & (owner_V >= 0)
        start_BN[0, place_V[first_V.to(place_V.device)]] = True
        for start in videos.starts()[1:]:
            between_BN[0, int(place_V[start - 1]) + 1 : int(place_V[start])] = True
        frame_BN, cell_BN = roles(video_BN, start_BN, between_BN)
        valid_BN = None if self.mask is None else self.mask[row : row + 1].bool()
        return ids_BN[question_tokens(ids_BN, frame_BN, cell_BN, valid_BN, chat)]


_PROMPT: ContextVar[Prompt | None] = ContextVar("segmo_prompt", default=None)


@contextmanager
def prompt_known(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, :func:`current_prompt` is the prompt of these arguments of ``generate`` or of a call.

    Arguments without token ids, as in the calls that ``generate`` makes, change nothing.
    """
    ids = inputs.get("input_ids", inputs.get("inputs"))
    if not isinstance(ids, Tensor) or ids.dim() != 2 or _PROMPT.get() is not None:
        yield
        return
    token = _PROMPT.set(Prompt(ids, inputs.get("attention_mask")))
    try:
        yield
    finally:
        _PROMPT.reset(token)


def current_prompt() -> Prompt | None:
    """The prompt of the running call, None outside of one."""
    return _PROMPT.get()
