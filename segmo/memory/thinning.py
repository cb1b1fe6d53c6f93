"""Which tokens of a memory stay when it is thinned, whatever will be asked: the newest ones, and some of every scene.

Legend: T tokens, K of them that stay, V video tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from segmo.memory.block import Block, columns
from segmo.memory.choose import dense_scenes, keep_tokens, novelty_inside, scene_of, with_something_new
from segmo.memory.places import Keeper

RECENT = 0.5  # of a limited memory, for segments that are whole
SLACK = 0.125  # of a limited memory, which is freed at a time


def thinned(block: Block, starts: Sequence[int], total: int) -> Block:
    """All text and ``total`` video tokens of a block, by novelty; but never less than a token of each scene.

    Args:
        starts: first frame of each scene of the video.
    """
    return block.only(_newest(columns([block]), block.features, starts, total))


def thin_old(blocks: Sequence[Block], keeper: Keeper, starts: Sequence[int], limit: int) -> list[Block]:
    """Segments that are over, brought below a limit in bytes: recent ones stay whole, old ones are thinned together.

    A token of each scene stays, also where there is no room for it. All ranks call it together.
    """
    recent, size = len(blocks), 0
    while recent > 0 and size + blocks[recent - 1].all_bytes <= RECENT * limit:
        recent -= 1
        size += blocks[recent].all_bytes
    old, known = blocks[:recent], columns(blocks[:recent])
    features = torch.cat([block.features.to(keeper.device) for block in old])
    each = sum(block.all_bytes for block in old) / len(known["ids"])
    room = (1 - SLACK) * limit - size
    text = len(known["ids"]) - len(features)
    index = _newest(known, features, starts, int(room / each) - text)
    return [*keeper.thinned(old, _without_lone_text(index, known["frame"], known["cell"])), *blocks[recent:]]


def _newest(known: Mapping[str, Tensor], features_VH: Tensor, starts: Sequence[int], total: int) -> Tensor:
    """Places of what :func:`thinned` leaves of tokens with these columns and features, ascending, (K,)."""
    frame, cell = known["frame"], known["cell"]
    scene, scenes = dense_scenes(scene_of(frame, torch.tensor(starts)), cell)
    total = min(max(total, len(scenes)), len(features_VH))
    novelty = novelty_inside(features_VH, known["novelty"], frame, cell, scene)
    novelty = with_something_new(novelty, scene, len(scenes))
    return keep_tokens(novelty, frame, cell, scene, torch.zeros(len(scenes), dtype=torch.float32), total, 0.0)


def _without_lone_text(index_K: Tensor, frame_T: Tensor, cell_T: Tensor) -> Tensor:
    """Places without the text of frames of which nothing is left."""
    frame_K, video_K = frame_T[index_K], cell_T[index_K] >= 0
    return index_K[video_K | torch.isin(frame_K, frame_K[video_K])]
