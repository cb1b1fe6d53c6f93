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


@dataclass(frozen=True)
class Prompt:
    """Token ids (B, N), and the attention mask (B, N) if there is one."""

    ids: Tensor
    mask: Tensor | None

    def question(self, row: int, video_token: int) -> Tensor:
        """Token ids of a row behind its last video token, (Q,)."""
        ids = self.ids[row]
        valid = torch.ones_like(ids, dtype=torch.bool) if self.mask is None else self.mask[row].bool()
        places = (ids == video_token).nonzero()[:, 0]
        behind = torch.arange(ids.shape[0], device=ids.device) > (places[-1] if places.numel() else -1)
        return ids[valid & behind]


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
