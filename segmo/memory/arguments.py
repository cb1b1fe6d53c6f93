"""Arguments of ``generate`` for questions behind a video: what they see as a cache, and the rows behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from segmo.compat.cache_name import cache_name
from segmo.memory.conversation import Turn
from segmo.memory.moves import LateLayer
from segmo.memory.rows import cache_of_layers
from segmo.memory.seen import Seen
from segmo.memory.watcher import Watcher


def arguments(
    model: Any, watcher: Watcher, asked: Sequence[Turn], seen: Sequence[Seen], layers: Sequence[LateLayer]
) -> dict[str, Any]:
    """What ``generate`` takes for a batch of questions.

    Args:
        asked: behind the same tokens of a conversation.
        seen: what each sees of the video, equally many tokens.
        layers: of a cache with these tokens and the conversation's.
    """
    held, longest = len(seen[0]), max(len(turn.ids) for turn in asked)
    past = held + len(asked[0].before)
    ids = torch.zeros(len(asked), past + longest, dtype=torch.long)
    mask = torch.ones_like(ids)
    position = torch.zeros(watcher.positions.rows, *ids.shape, dtype=torch.long)
    for row, (turn, each) in enumerate(zip(asked, seen, strict=True)):
        pad = longest - len(turn.ids)
        ids[row, :held] = each.ids
        ids[row, held:past] = torch.tensor(turn.before, dtype=torch.long)
        ids[row, past + pad :] = torch.tensor(turn.ids)
        mask[row, past : past + pad] = 0
        first = watcher.behind + len(turn.before)
        position[:, row, past + pad :] = torch.arange(first, first + len(turn.ids))
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": mask.to(model.device),
        "position_ids": (position if len(position) > 1 else position[0]).to(model.device),
        cache_name(model): cache_of_layers(layers),
        "use_cache": True,  # without it, what stands in front would have to be read again for each token
    }
