"""What happens in a video: scenes of very different lengths, a digit in most of them, flashes in the long
ones.

Times are in frames of the language model: one temporal patch, two pictures, one second. A cut never falls
inside one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, PAIRS, TEXTURES
from segmo.sceneqa.glyphs import SHAPES

SHORT_SHARE = 0.6  # of the scenes last one to three frames
DIGIT_SHARE = 0.9  # of the scenes show a digit
BRIEF_SHARE = 0.4  # of the digits in long scenes are seen for one to four frames only
MOVING_SHARE = 0.3  # of the digits in long scenes move
FLASH_SHARE = 0.75  # of the scenes of at least FLASH_FROM frames have a flash
FLASH_FROM, LONG = 3, 5  # frames
HELD_OUT_WEIGHT = 3.0  # outside training, a held-out background is this many times as likely as another
ALIKE_SHARE = 0.5  # of the training videos have few colours or few textures, so that more scenes look alike
FEW, SOME = 4, 6  # of each in such a video, or the other way round


@dataclass(frozen=True)
class Scene:
    """One scene.

    Attributes:
        pair: background, an index into ``PAIRS``.
        start, length: in frames.
        digit: 0 to 9, or -1 for none.
        seen: frames in which the digit is visible, (first, last + 1), counted from the scene's start.
        moving: the digit moves while it is visible.
        shape: index into ``SHAPES`` of what flashes, or -1.
        flash: the frame of the flash, counted from the scene's start.
    """

    pair: int
    start: int
    length: int
    digit: int
    seen: tuple[int, int]
    moving: bool
    shape: int
    flash: int


def _lengths(scenes: int, frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Lengths of the scenes, in a random order, that add up to ``frames``."""
    short = min(round(SHORT_SHARE * scenes), scenes - 1)
    lengths = np.ones(scenes, dtype=np.int64)
    lengths[:short] += rng.integers(0, 3, short)
    while lengths.sum() > frames:
        lengths[int(lengths.argmax())] -= 1
    share = rng.dirichlet(np.full(scenes - short, 1.5))
    lengths[short:] += rng.multinomial(frames - int(lengths.sum()), share)
    return rng.permutation(lengths)


def _digits(scenes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A digit for each scene (-1: none). How often a digit is shown is as likely to be 0, 1, 2 or 3."""
    shown = np.flatnonzero(rng.random(scenes) < DIGIT_SHARE)
    often = np.repeat(rng.permutation(10), rng.integers(0, 4, 10))
    spare = np.repeat(rng.permutation(10), 3)  # for long videos, which show some digits more often
    digits = np.full(scenes, -1, dtype=np.int64)
    digits[shown] = rng.permutation(np.concatenate([often, spare])[: len(shown)])
    return digits


def _scene(pair: int, start: int, length: int, digit: int, rng: np.random.Generator) -> Scene:
    seen, moving, shape, flash = (0, length), False, -1, 0
    if length >= LONG:
        if rng.random() < BRIEF_SHARE:
            span = int(rng.integers(1, 5))
            first = int(rng.integers(0, length - span + 1))
            seen = (first, first + span)
        moving = bool(rng.random() < MOVING_SHARE)
    if length >= FLASH_FROM and rng.random() < FLASH_SHARE:
        shape, flash = int(rng.integers(len(SHAPES))), int(rng.integers(1, length))
    return Scene(pair, start, length, digit, seen if digit >= 0 else (0, 0), moving, shape, flash)


def _alike(scenes: int, weight: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """``weight`` of backgrounds with but a few colours or a few textures, if that leaves one for each scene."""
    counts = (FEW, SOME) if rng.random() < 0.5 else (SOME, FEW)
    shown = [rng.permutation(size) < count for size, count in zip((len(COLOURS), len(TEXTURES)), counts, strict=True)]
    few = weight * np.outer(*shown).ravel()
    return few if np.count_nonzero(few) >= scenes else weight


def write_script(scenes: int, frames: int, training: bool, rng: np.random.Generator) -> tuple[Scene, ...]:
    """A random video of ``scenes`` scenes and ``frames`` frames, no background twice.

    Args:
        scenes: at most the number of backgrounds, 48 in training and 64 outside.
        frames: at least ``scenes``.
        training: leave out the held-out backgrounds, and often show many that share a colour or a texture; otherwise
            prefer the held-out ones.
    """
    weight = np.ones(len(PAIRS))
    weight[list(HELD_OUT)] = 0.0 if training else HELD_OUT_WEIGHT
    if training and rng.random() < ALIKE_SHARE:
        weight = _alike(scenes, weight, rng)
    pairs = rng.choice(len(PAIRS), scenes, replace=False, p=weight / weight.sum())
    lengths = _lengths(scenes, frames, rng)
    starts = np.cumsum(lengths) - lengths
    digits = _digits(scenes, rng)
    return tuple(
        _scene(int(pair), int(start), int(length), int(digit), rng)
        for pair, start, length, digit in zip(pairs, starts, lengths, digits, strict=True)
    )
