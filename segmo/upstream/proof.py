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

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Graph

from segmo.errors import PromptError
from segmo.passes.frame_dependence import frame_dependence, mixed, moved
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.runtime.encoded import VideoRows
from segmo.upstream.record import record
from segmo.upstream.shapes import Grid, PaddedPictures
from segmo.upstream.tower import Tower
from segmo.upstream.video_call import VideoCall

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
    trial = _trial(tower, call)
    graph = record(lambda pixels: tower(pixels, trial.beside), trial.pixels)
    tower.settle(trial)
    _check_rows(graph, trial)
    try:
        none_empty = isinstance(tower.shape, PaddedPictures)
        depends = frame_dependence(graph, trial.pixel_rows.owner(), sum(trial.pixel_rows.frames), none_empty)
    except DoesNotApply as found:
        return found.miss, tower.outputs
    return mixed(depends, trial.token_rows.owner()) or _place(tower, trial), tower.outputs


def _trial(tower: Tower, call: VideoCall) -> VideoCall:
    """A small call like ``call``: two videos, of two sizes where the encoder reads patches of any picture."""
    trial = call.like(FRAMES if isinstance(tower.shape, Grid) else (FRAMES[1], FRAMES[1]))
    if isinstance(tower.shape, Grid):
        trial = _other_sizes(trial, tower.shape)
    generator = torch.Generator().manual_seed(SEED)
    return replace(
        trial, pixels=torch.randn(trial.pixels.shape, generator=generator, dtype=torch.float32).to(trial.pixels)
    )


def _other_sizes(trial: VideoCall, shape: Grid) -> VideoCall:
    per_video, frames = trial.beside.per_video, trial.beside.frames
    side = int(per_video[shape.SIDES][0]) if shape.side is None else shape.side
    grid = torch.tensor([[0, 2 * side, 6 * side], [0, 2 * side, 2 * side]]).to(per_video[shape.GRID])
    rows = tuple(shape.temporal * size for size in grid[:, 1:].prod(1).tolist())
    pixels = trial.pixels[:1].expand(sum(f * r for f, r in zip(frames, rows, strict=True)), *trial.pixels.shape[1:])
    beside = replace(trial.beside, per_video={**per_video, shape.GRID: grid})
    return VideoCall(pixels, beside, VideoRows(frames, rows), VideoRows(frames, (12, 4)))


def _check_rows(graph: Graph, trial: VideoCall) -> None:
    """A prompt whose tokens are not as many as the encoder's features is told before anything is left out of it.

    Raises:
        PromptError: they are not.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    found = [len(node.meta["example_value"]) for node in output.args[0]]
    if any(count != trial.token_rows.total for count in found):
        raise PromptError(
            f"the prompt has {trial.token_rows.rows[0]} video tokens for a frame, and the encoder gives {found[0]} "
            f"features for {sum(trial.token_rows.frames)} frames; leave the processor's placeholders be"
        )


@torch.no_grad()
def _place(tower: Tower, trial: VideoCall) -> Miss | None:
    """Whether features stay the same when other frames are left out."""
    left = [LEFT[0] if frames == FRAMES[0] else LEFT[1] for frames in trial.beside.frames]
    whole = tower(trial.pixels, trial.beside)
    part = tower(trial.pixels[trial.pixel_rows.of(left).to(trial.pixels.device)], trial.beside.of(left))
    rows = trial.token_rows.of(left).to(trial.pixels.device)
    worst = max(_error(b, a[rows]) for a, b in zip(whole, part, strict=True))
    return moved(worst, CLOSE.get(whole[0].dtype, CLOSE_HALF))


def _error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||."""
    return float((out.float() - reference.float()).norm() / reference.float().norm().clamp(min=1e-12))
