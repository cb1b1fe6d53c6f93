"""Shows that a vision encoder treats every frame by itself, or finds out why that cannot be said.

Two things are needed for "encode, then leave frames out" to equal "leave frames out, then encode":

1. the features of a frame depend on no other frame's pixels: followed through the encoder's graph
   (:mod:`segmo.passes.frame_dependence`), certain for the graph that was recorded;
2. they do not depend on the frame's place or on how many there are (an encoder may add a temporal position): the
   recorded input is encoded once more with frames left out, and the features compared.

Both look at a small input: several frames, two videos. An encoder that joins only frames further apart than those would
not be found out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.passes.frame_dependence import frame_dependence, mixed, moved
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.upstream.record import record
from segmo.upstream.tower import Tower, VideoCall

SEED = 0
FRAMES = (6, 3)  # of the two videos that are tried
LEFT = (torch.tensor([1, 4, 5]), torch.tensor([0, 2]))  # frames that stay when some are left out
CLOSE = {torch.float32: 1e-4, torch.float64: 1e-6}  # relative error of another order of the same sums
CLOSE_HALF = 3e-2


def prove_independence(tower: Tower, call: VideoCall) -> tuple[Miss | None, int]:
    """Why frames cannot be left out of an encoder, None if they can; and how many arrays of features it gives.

    Args:
        tower: the encoder.
        call: a call of it, for the dtype, the device and the size of a row of pixels.
    """
    tower.extra = call.extra
    trial = _trial(tower, call)
    graph = record(lambda pixels: tower(pixels, trial.grid), trial.pixels)
    try:
        depends = frame_dependence(graph, trial.pixel_rows.owner(), sum(trial.pixel_rows.frames))
    except DoesNotApply as found:
        return found.miss, tower.outputs
    return mixed(depends, trial.token_rows.owner()) or _place(tower, trial), tower.outputs


def _trial(tower: Tower, call: VideoCall) -> VideoCall:
    """A small call like ``call``: two videos, of two sizes where the encoder reads patches."""
    if tower.patches:
        side = int(tower.model.config.vision_config.spatial_merge_size)
        grid = torch.tensor([[FRAMES[0], 2 * side, 6 * side], [FRAMES[1], 2 * side, 2 * side]])
    else:
        grid = torch.tensor([[FRAMES[1], 1, 1]] * 2)
    rows = int(grid.prod(1).sum())
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(rows, *call.pixels.shape[1:], generator=generator)
    return tower.call(pixels.to(call.pixels), grid.to(call.grid.device), call.extra)


@torch.no_grad()
def _place(tower: Tower, trial: VideoCall) -> Miss | None:
    """Whether features stay the same when other frames are left out."""
    left = list(LEFT) if tower.patches else [LEFT[1], LEFT[1]]
    few = trial.grid.clone()
    few[:, 0] = torch.tensor([len(frames) for frames in left])
    whole = tower(trial.pixels, trial.grid)
    part = tower(trial.pixels[trial.pixel_rows.of(left).to(trial.pixels.device)], few)
    rows = trial.token_rows.of(left).to(trial.pixels.device)
    worst = max(_error(b, a[rows]) for a, b in zip(whole, part, strict=True))
    return moved(worst, CLOSE.get(whole[0].dtype, CLOSE_HALF))


def _error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-12))
