"""What vLLM must answer: transformers, eager, on the kept tokens at the positions of the whole prompt.

Legend: N prompt tokens, K kept ones, V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def positions_of(
    ids: Sequence[int], grids: Sequence[tuple[int, int, int]], media: set[int], rule: str = "grid"
) -> Tensor:
    """M-RoPE positions of a Qwen2-VL prompt, (3, N).

    Args:
        ids: with a placeholder for every token.
        grids: time, height and width of each image and video in tokens, in order.
        media: ids of the placeholders.
        rule: where the text behind a video stands: behind the video's "largest" position, or its "grid" in a frame.
    """
    rows: list[tuple[int, int, int]] = []
    following, left = 0, list(grids)
    while len(rows) < len(ids):
        if ids[len(rows)] not in media:
            rows.append((following,) * 3)
            following += 1
            continue
        frames, height, width = left.pop(0)
        cells = [(t, h, w) for t in range(frames) for h in range(height) for w in range(width)]
        rows += [(following + t, following + h, following + w) for t, h, w in cells]
        following += max(height, width) if rule == "grid" else max(frames, height, width)
    return torch.tensor(rows).T


@torch.no_grad()
def next_logprobs(
    model: Any, embeds_NH: Tensor, positions_3N: Tensor, kept_K: Sequence[int], generated: Sequence[int]
) -> Tensor:
    """Log-probabilities of each of the tokens that follow, (T, vocabulary), the right ones being fed.

    Args:
        kept_K: positions of the prompt's tokens that are kept, ascending.
        generated: tokens that follow the prompt, the last of which is not fed.
    """
    following = int(positions_3N.max()) + 1
    more_HT = model.get_input_embeddings()(torch.tensor(list(generated[:-1]), dtype=torch.long))
    more_3T = torch.arange(following, following + len(more_HT)).expand(3, -1)
    embeds = torch.cat([embeds_NH[list(kept_K)], more_HT])[None]
    positions = torch.cat([positions_3N[:, list(kept_K)], more_3T], dim=1)[:, None]
    hidden = model.model.language_model(inputs_embeds=embeds, position_ids=positions, use_cache=False)[0]
    rows: Tensor = model.lm_head(hidden[0, len(kept_K) - 1 :]).float().log_softmax(-1)
    return rows


def largest_difference(output: Any, expected: Tensor) -> float:
    """The largest difference between log-probabilities that vLLM gave and those expected of the same tokens."""
    found = output.outputs[0].logprobs
    return max(
        abs(entry.logprob - float(expected[at, token])) for at, row in enumerate(found) for token, entry in row.items()
    )
