"""What appears in scenes: digits that people wrote (scikit-learn's bundled set) and six drawn shapes.

Legend: G glyphs, A turned versions of a glyph.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmo.errors import SegMoError

SIDE = 14  # pixels of a glyph's side
SHAPES = ("circle", "ring", "square", "triangle", "cross", "plus")
TURNS = (0.0, -14.0, -7.0, 7.0, 14.0)  # degrees; only training uses more than the first
# Parts of scikit-learn's 1,797 digits, in their order of writing. No digit is in two parts.
PARTS = {"train": slice(0, 1257), "validation": slice(1257, 1527), "test": slice(1527, 1797)}


@dataclass(frozen=True)
class Digits:
    """Digits of one split.

    Attributes:
        alpha: (G, A, SIDE, SIDE) float32 in [0, 1], how much of a pixel is ink.
        by_label: for each digit 0 to 9 the indices of its glyphs.
    """

    alpha: NDArray[np.float32]
    by_label: tuple[NDArray[np.int64], ...]


def _resample(images: NDArray[np.float32], degrees: float) -> NDArray[np.float32]:
    """Bilinear resampling of (G, 8, 8) images to (G, SIDE, SIDE), turned about the middle."""
    grid = (np.arange(SIDE) + 0.5) / SIDE * 9 - 5  # a little more than the image, so that no stroke is cut off
    y, x = np.meshgrid(grid, grid, indexing="ij")
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    source = np.stack([cos * y - sin * x, sin * y + cos * x]) + 4.5  # index into the image padded by one
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    source = np.clip(source, 0, 8.999)
    low = source.astype(int)
    (top, left), (down, right) = low, source - low
    return np.asarray(
        padded[:, top, left] * (1 - down) * (1 - right)
        + padded[:, top + 1, left] * down * (1 - right)
        + padded[:, top, left + 1] * (1 - down) * right
        + padded[:, top + 1, left + 1] * down * right,
        dtype=np.float32,
    )


@functools.cache
def load_digits(part: str) -> Digits:
    """The digits of one split: "train", "validation" or "test".

    Raises:
        SegMoError: scikit-learn, which brings the digits, is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load_bundled
    except ImportError as error:
        raise SegMoError("SceneQA's digits come with scikit-learn: pip install segmo[eval]") from error
    bundle = load_bundled()
    images = (bundle.images[PARTS[part]] / 16).astype(np.float32)
    labels = np.asarray(bundle.target[PARTS[part]])
    turns = TURNS if part == "train" else TURNS[:1]
    alpha = np.stack([_resample(images, degrees) for degrees in turns], axis=1)
    return Digits(np.clip(alpha * 1.3, 0, 1), tuple(np.flatnonzero(labels == digit) for digit in range(10)))


@functools.cache
def shape_alpha() -> NDArray[np.float32]:
    """The six shapes in the order of ``SHAPES``, (6, SIDE, SIDE) float32 in [0, 1]."""
    grid = (np.arange(SIDE * 4) + 0.5) / (SIDE * 2) - 1  # four samples to a pixel's side
    y, x = np.meshgrid(grid, grid, indexing="ij")
    radius, across, along = np.hypot(x, y), np.abs(x), np.abs(y)
    forms = (
        radius < 0.8,
        (radius < 0.95) & (radius > 0.55),
        np.maximum(across, along) < 0.75,
        (y < 0.75) & (y > 1.9 * across - 0.95),
        (np.abs(across - along) < 0.28) & (np.maximum(across, along) < 0.85),
        (np.minimum(across, along) < 0.2) & (np.maximum(across, along) < 0.9),
    )
    fine = np.stack(forms).astype(np.float32)
    coarse: NDArray[np.float32] = fine.reshape(len(SHAPES), SIDE, 4, SIDE, 4).mean(axis=(2, 4))
    return coarse
