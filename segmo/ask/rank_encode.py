"""The vision encoder over ranks: each encodes an even share of a clip's frames, and all get the features of all.

Legend: F frames, T video tokens, V video tokens of the whole clip, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segmo.ask.checkpoint import Checkpoint
from segmo.ask.encode import Encoded, Progress, encode_frames, features_of, frame_count, trailing
from segmo.ask.features import Features
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.distributed.vision import frame_share, gather_rows
from segmo.video import Clip


def encode(
    loaded: Checkpoint,
    inputs: Mapping[str, Any],
    clip: Clip,
    question: str,
    progress: Progress = lambda done, total: None,
    ranks: Ranks | None = None,
) -> Features:
    """The vision encoder's work on a whole clip.

    Args:
        loaded: the model.
        inputs: of :func:`segmo.ask.encode.process` for the same clip and question.
        clip: for its facts.
        question: as for :func:`segmo.ask.encode.process`.
        progress: called with (parts done, parts in all).
        ranks: each does a share of the frames, and all must call this; None for this process alone.
    """
    return features_of(loaded, inputs, encode_on_ranks(loaded, inputs, ranks or Ranks(None), progress), clip, question)


def encode_on_ranks(
    loaded: Checkpoint, inputs: Mapping[str, Any], ranks: Ranks, progress: Progress = lambda done, total: None
) -> Encoded:
    """:func:`segmo.ask.encode.encode_frames` of all frames, the same on every rank; all ranks must call it.

    Args:
        loaded: the same model on every rank.
        inputs: of the processor, the same on every rank.
        ranks: that share the frames.
        progress: called with (parts done, parts in all) of this rank's share.

    Raises:
        RankError: another rank died, hung or holds another video.
    """
    if ranks.world == 1:
        return encode_frames(loaded, inputs, None, progress)
    frames = frame_count(inputs)
    shares = [frame_share(frames, rank, ranks.world) for rank in range(ranks.world)]
    start, end = shares[ranks.rank]
    own = range(start, end) if end > start else range(1)  # without a frame it learns the features' width from the first
    mine = encode_frames(loaded, inputs, own, progress)
    end_tokens = trailing(loaded)
    cells = (mine.pooled.shape[-2] - end_tokens) // len(own)
    counts = [(last - first) * cells for first, last in shares]

    def whole(part: Tensor) -> Tensor:
        return gather_rows(part.flatten(0, -2), counts, ranks)

    body, end_rows = torch.split(mine.pooled, [len(own) * cells, end_tokens], dim=-2)
    pooled = torch.cat([whole(body), end_rows.flatten(0, -2)])
    return Encoded(pooled.view(*mine.pooled.shape[:-2], *pooled.shape), tuple(map(whole, mine.deepstack)))
