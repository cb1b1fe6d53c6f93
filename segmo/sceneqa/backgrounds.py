"""Backgrounds: a colour and a texture, both of which have a name. Scale, phase and shade differ every time.

A quarter of the pairs of colour and texture is held out: training never shows them, so a question about one
is answered from its two words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (1.0, 0.1, 0.1),
    "orange": (1.0, 0.5, 0.0),
    "yellow": (0.9, 0.9, 0.1),
    "green": (0.1, 0.85, 0.15),
    "cyan": (0.1, 0.85, 0.9),
    "blue": (0.15, 0.25, 1.0),
    "purple": (0.75, 0.1, 0.95),
    "grey": (0.65, 0.65, 0.65),
}
TEXTURES = ("stripes", "pillars", "slants", "checks", "dots", "rings", "grid", "plain")
PAIRS = tuple((colour, texture) for colour in COLOURS for texture in TEXTURES)
HELD_OUT = tuple(pair for pair in range(len(PAIRS)) if (pair // len(TEXTURES) + pair % len(TEXTURES)) % 4 == 0)


def _field(texture: str, y: NDArray[np.float32], x: NDArray[np.float32], wave: float) -> NDArray[np.float32]:
    """The texture's brightness in [-1, 1]; ``y`` and ``x`` in pixels, ``wave`` radians per pixel."""
    down, across = np.sin(wave * y), np.sin(wave * x)
    match texture:
        case "stripes":
            value = down
        case "pillars":
            value = across
        case "slants":
            value = np.sin(wave * 0.75 * (x + y))
        case "checks":
            value = np.sign(down * across)
        case "dots":
            value = np.where(down * across > 0.35, 1.0, -1.0)
        case "rings":
            value = np.sin(wave * np.hypot(y % 60 - 24, x % 60 - 30))
        case "grid":
            value = np.where(np.maximum(down, across) > 0.8, 1.0, -1.0)
        case _:
            value = np.zeros_like(x)
    return np.asarray(value, dtype=np.float32)


def draw_texture(
    texture: str, tint: tuple[float, float, float], height: int, width: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """One instance of a texture, (height, width, 3) float32 in [0, 1]; never bright, so white ink shows.

    Args:
        tint: red, green and blue in [0, 1].
        rng: draws scale, phase, shade and contrast.
    """
    wave, top, left = rng.uniform(0.65, 0.95), rng.uniform(0, 12), rng.uniform(0, 12)
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) + np.float32(top),
        np.arange(width, dtype=np.float32) + np.float32(left),
        indexing="ij",
    )
    shade = rng.uniform(0.32, 0.42) * (1 + rng.uniform(0.3, 0.5) * _field(texture, y, x, wave))
    shifted = np.clip(np.array(tint) + rng.uniform(-0.06, 0.06, 3), 0, 1)
    return np.asarray(shade[..., None] * shifted, dtype=np.float32).clip(0, 0.8)


def draw_background(pair: int, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """One instance of a background, an index into ``PAIRS``; see :func:`draw_texture`."""
    colour, texture = PAIRS[pair]
    return draw_texture(texture, COLOURS[colour], height, width, rng)
