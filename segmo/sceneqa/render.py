"""The pixels of a script."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segmo.sceneqa.backgrounds import draw_background
from segmo.sceneqa.glyphs import SIDE, Digits, shape_alpha
from segmo.sceneqa.script import Scene

HEIGHT, WIDTH = 32, 48
PICTURES = 2  # in a frame of the language model (Qwen2-VL's temporal patch)
NOISE = 0.035  # a pixel is off by up to this much, evenly spread
# Glyphs stand on multiples of this many pixels, the small encoder's patch size: anywhere else it learns them slowly.
RASTER = 8
INK, DARK = 0.97, 0.03


def _path(moving: bool, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Top left corner of a glyph in each of ``count`` pictures, (count, 2)."""
    room = np.array([HEIGHT - SIDE, WIDTH - SIDE])
    place = rng.uniform(0, room + 1)
    if moving:
        speed = rng.uniform(0.4, 0.9, 2) * rng.choice([-1, 1], 2)
        way = (place + np.arange(count)[:, None] * speed) % (2 * room)
        way = np.where(way > room, 2 * room - way, way)  # turns round at the edges
    else:
        way = np.broadcast_to(place, (count, 2))
    corner: NDArray[np.int64] = (way / RASTER).astype(np.int64) * RASTER
    return corner


def _stamp(pictures: NDArray[np.float32], alpha: NDArray[np.float32], path: NDArray[np.int64], value: float) -> None:
    """Lay one glyph over each picture at its place."""
    for picture, (top, left) in zip(pictures, path.tolist(), strict=True):
        spot = picture[top : top + SIDE, left : left + SIDE]
        spot += alpha[..., None] * (value - spot)


def _far_corner(place: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """A place for a flash on the other side of the picture."""
    room = WIDTH - SIDE
    left = rng.uniform(0, 6) if place[1] > room / 2 else room - rng.uniform(0, 6)
    spot = np.array([rng.uniform(0, HEIGHT - SIDE), left])
    return np.array([spot // RASTER * RASTER] * PICTURES, dtype=np.int64)


def _render_scene(
    scene: Scene, digits: Digits, pictures: NDArray[np.float32], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw a scene into its pictures; the digit's top left corner in each of them, (pictures, 2)."""
    pictures[:] = draw_background(scene.pair, HEIGHT, WIDTH, rng)
    path = _path(scene.moving, len(pictures), rng)
    if scene.digit >= 0:
        glyph = digits.alpha[rng.choice(digits.by_label[scene.digit])]
        seen = slice(scene.seen[0] * PICTURES, scene.seen[1] * PICTURES)
        _stamp(pictures[seen], glyph[rng.integers(len(glyph))], path[seen], INK)
    if scene.shape >= 0:
        first = scene.flash * PICTURES
        place = _far_corner(path[first], rng)
        _stamp(pictures[first : first + PICTURES], shape_alpha()[scene.shape], place, DARK)
    return path


def add_noise(pictures: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Pictures in [0, 1], made noisy in place, as uint8."""
    pictures += (rng.random(pictures.shape, dtype=np.float32) - np.float32(0.5)) * np.float32(2 * NOISE)
    return (pictures * 255 + 0.5).clip(0, 255).astype(np.uint8)


def render_with_places(
    script: Sequence[Scene], digits: Digits, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What :func:`render` draws, and the digit's top left corner in each picture, shown or not, (2 * frames, 2)."""
    frames = script[-1].start + script[-1].length
    pictures = np.empty((frames * PICTURES, HEIGHT, WIDTH, 3), dtype=np.float32)
    places = np.empty((frames * PICTURES, 2), dtype=np.int64)
    for scene in script:
        span = slice(scene.start * PICTURES, (scene.start + scene.length) * PICTURES)
        places[span] = _render_scene(scene, digits, pictures[span], rng)
    return add_noise(pictures, rng), places


def render(script: Sequence[Scene], digits: Digits, rng: np.random.Generator) -> NDArray[np.uint8]:
    """All pictures of a video, (2 * frames, HEIGHT, WIDTH, 3) uint8 RGB."""
    return render_with_places(script, digits, rng)[0]
