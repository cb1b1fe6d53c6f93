"""What the vision tower learns to read from: single frames, every one of another background and another glyph.

A video shows the same few things for many frames; here each frame of a batch is new, which is what reading takes.

* Digits are turned, sheared, stretched, moved by parts of a pixel and drawn with thinner or thicker strokes.
* A part of the frames has a background in a colour that has no name. Such a colour is never near one in which the
  texture is held out, so held-out pairs of colour and texture stay unseen; but what a texture looks like is then
  learnt apart from colours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from forward import USUAL, Grid, patchify
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from segmo.sceneqa.backgrounds import COLOURS, HELD_OUT, PAIRS, TEXTURES, draw_texture
from segmo.sceneqa.busy import CELL, EDGE, SPEED, bee, lay, mark_alpha, mark_value
from segmo.sceneqa.glyphs import PARTS, SHAPES, SIDE, Digits, load_digits, shape_alpha
from segmo.sceneqa.render import DARK, HEIGHT, INK, NOISE, PICTURES, RASTER, WIDTH

IGNORE = -100
VARIANTS = 40  # of each training digit
UNNAMED_SHARE = 0.4  # of the frames have a colour without a name
DIGIT_SHARE, SHAPE_SHARE = 0.85, 0.35
BEE_SHARE = 0.7  # of the busy frames
NAMED = np.array(list(COLOURS.values()))
ALLOWED = np.ones(len(PAIRS), dtype=bool)
ALLOWED[list(HELD_OUT)] = False


@dataclass(frozen=True)
class Stills:
    """Frames and what they show.

    Attributes:
        patches: (F, patches, pixels of a patch).
        caption: ids of colour, texture, digit and shape, IGNORE for none or no name, (F, 4).
    """

    patches: Tensor
    caption: Tensor


@functools.cache
def training_digits(seed: int) -> Digits:
    """The training digits in ``VARIANTS`` random shapes each."""
    from sklearn.datasets import load_digits as load_bundled

    images = torch.from_numpy(load_bundled().images[PARTS["train"]] / 16).float()
    generator = torch.Generator().manual_seed(seed)
    count = len(images) * VARIANTS

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    turn, shear = torch.deg2rad(draw(-16, 16)), draw(-0.2, 0.2)
    tall, wide = draw(1.0, 1.3), draw(1.0, 1.3)
    # Rows of an affine map from the drawn glyph to the image, in half sides.
    matrix = torch.stack(
        [
            torch.stack([wide * turn.cos(), wide * (shear - turn.sin()), draw(-0.2, 0.1)], dim=1),
            torch.stack([tall * turn.sin(), tall * turn.cos(), draw(-0.2, 0.1)], dim=1),
        ],
        dim=1,
    )
    grid = torch.nn.functional.affine_grid(matrix, [count, 1, SIDE, SIDE], align_corners=False)
    source = images.repeat_interleave(VARIANTS, dim=0)[:, None]
    drawn = torch.nn.functional.grid_sample(source, grid, align_corners=False)[:, 0]
    drawn = (drawn.clamp(min=1e-4) ** draw(0.7, 1.5)[:, None, None] * draw(1.1, 1.6)[:, None, None]).clamp(0, 1)
    alpha = drawn.unflatten(0, (len(images), VARIANTS)).numpy()
    return Digits(alpha, load_digits("train").by_label)


def _unnamed(texture: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """A colour that is nearest to one of those in which training shows the texture."""
    while True:
        tint = rng.uniform(0.05, 1.0, 3)
        tint /= max(tint.max(), 0.65)
        nearest = int(((NAMED - tint) ** 2).sum(1).argmin())
        if ALLOWED[nearest * len(TEXTURES) + texture]:
            return (float(tint[0]), float(tint[1]), float(tint[2]))


def _place(grid: Grid, rng: np.random.Generator) -> tuple[int, int]:
    """Top left corner of a glyph: on the raster, or in the middle of a cell in the harder sets."""
    if grid != USUAL:
        row, column = divmod(int(rng.integers(grid.cells)), grid.columns)
        return row * CELL + EDGE, column * CELL + EDGE
    top, left = rng.uniform(0, HEIGHT - SIDE + 1), rng.uniform(0, WIDTH - SIDE + 1)
    return int(top) // RASTER * RASTER, int(left) // RASTER * RASTER


def _draw_restless(
    pictures: NDArray[np.float32], texture: str, tint: tuple[float, float, float], rng: np.random.Generator
) -> None:
    """The background of a frame's pictures as a wandering camera sees it, and in most frames the bee."""
    height, width = pictures.shape[1:3]
    whole = draw_texture(texture, tint, height + PICTURES, width + PICTURES, rng)
    top, left, flies = *rng.integers(0, 2, 2).tolist(), bool(rng.random() < BEE_SHARE)
    place = rng.integers(0, (height - SIDE + 1, width - SIDE + 1))
    step = rng.integers(-int(SPEED[1]), int(SPEED[1]) + 1, 2)
    for number, picture in enumerate(pictures):
        picture[:] = whole[number * top :, number * left :][:height, :width]
        if flies:
            down, across = np.clip(place + number * step, 0, (height - SIDE, width - SIDE)).tolist()
            lay(picture, bee()[0], down, across, bee()[1])


def _stamp(pictures: NDArray[np.float32], alpha: NDArray[np.float32], place: tuple[int, int], value: float) -> None:
    spot = pictures[:, place[0] : place[0] + SIDE, place[1] : place[1] + SIDE]
    spot += alpha[..., None] * (value - spot)


def make_stills(
    frames: int, tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator, digits: Digits, grid: Grid = USUAL
) -> Stills:
    """``frames`` new frames of training backgrounds and of ``digits``; those of an unusual ``grid`` with marks."""
    height, width = CELL * grid.rows, CELL * grid.columns
    pictures = np.empty((frames, PICTURES, height, width, 3), dtype=np.float32)
    words = np.full((frames, 4), "", dtype=object)
    allowed = np.flatnonzero(ALLOWED)
    for frame in range(frames):
        colour, texture = PAIRS[int(rng.choice(allowed))]
        tint = COLOURS[colour]
        if rng.random() < UNNAMED_SHARE:
            colour, tint = "", _unnamed(TEXTURES.index(texture), rng)
        if grid == USUAL:
            pictures[frame] = draw_texture(texture, tint, height, width, rng)
        else:
            _draw_restless(pictures[frame], texture, tint, rng)
        words[frame, :2] = colour, texture
        place = _place(grid, rng)
        if grid != USUAL:
            for mark in rng.permutation(len(mark_alpha()))[: int(rng.integers(1, 3))].tolist():
                spot = _place(grid, rng)
                if spot != place:  # the digit is never hidden
                    _stamp(pictures[frame], mark_alpha()[mark], spot, mark_value(mark))
        if rng.random() < DIGIT_SHARE:
            digit = int(rng.integers(10))
            glyph = digits.alpha[rng.choice(digits.by_label[digit])]
            _stamp(pictures[frame], glyph[rng.integers(len(glyph))], place, INK)
            words[frame, 2] = str(digit)
        if rng.random() < SHAPE_SHARE:
            shape = int(rng.integers(len(SHAPES)))
            other = _place(grid, rng)
            if abs(other[1] - place[1]) >= 2 * RASTER or not words[frame, 2]:
                _stamp(pictures[frame], shape_alpha()[shape], other, DARK)
                words[frame, 3] = SHAPES[shape]
    pictures = pictures.reshape(-1, height, width, 3)
    pictures += (rng.random(pictures.shape, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * NOISE)
    ids = [[int(tokenizer.convert_tokens_to_ids(word)) if word else IGNORE for word in row] for row in words]
    return Stills(patchify((pictures * 255 + 0.5).clip(0, 255).astype(np.uint8)), torch.tensor(ids))
