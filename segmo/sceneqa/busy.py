"""The harder videos: many tokens a frame, several small things in it, a camera that wanders, and no rest.

A glyph fills one token's cell. Beside its digit a scene has one or two marks, which nobody asks about and which are
neither digits nor shapes. The background drifts by parts of a cell, so that no cell shows twice what it showed; and
through all scenes flies a striped bee, in front of the background and behind everything else, which is new in every
picture and means nothing. Questions and their words are those of the easier sets.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmo.sceneqa.backgrounds import draw_background
from segmo.sceneqa.glyphs import SIDE, Digits, shape_alpha
from segmo.sceneqa.render import DARK, INK, PICTURES, add_noise
from segmo.sceneqa.script import Scene

CELL = 16  # pixels of a token's side
EDGE = (CELL - SIDE) // 2  # pixels around a glyph in its cell
DRIFT = (0.3, 1.0)  # pixels that the camera moves in a picture, each way
ROOM = 24  # pixels that it moves at most before it turns
SPEED = (2.0, 5.0)  # pixels that the bee moves in a picture, each way
HOP = 4  # frames that a moving digit stays in a cell


@dataclass(frozen=True)
class BusyScene(Scene):
    """A scene with more in it.

    Attributes:
        marks: indices of its marks, one or two.
        mark_cells: where they stand.
        flash_cell: where the shape flashes.
        path: cell of the digit in each frame; as long as the scene, shown or not.
        drift: pixels that the camera moves in a picture, down and across.
    """

    marks: tuple[int, ...]
    mark_cells: tuple[int, ...]
    flash_cell: int
    path: tuple[int, ...]
    drift: tuple[float, float]


@functools.cache
def mark_alpha() -> NDArray[np.float32]:
    """The four marks, (4, SIDE, SIDE) float32 in [0, 1]: a bar, a corner, a bow and two dots."""
    grid = (np.arange(SIDE * 4) + 0.5) / (SIDE * 2) - 1  # four samples to a pixel's side
    y, x = np.meshgrid(grid, grid, indexing="ij")
    forms = (
        (np.abs(y) < 0.25) & (np.abs(x) < 0.9),
        (np.maximum(np.abs(x), np.abs(y)) < 0.85) & ((x < -0.45) | (y > 0.45)),
        (np.abs(y) < np.abs(x)) & (np.abs(x) < 0.85),
        np.hypot(np.abs(x) - 0.5, y) < 0.35,
    )
    fine = np.stack(forms).astype(np.float32)
    return np.asarray(fine.reshape(len(forms), SIDE, 4, SIDE, 4).mean(axis=(2, 4)))


def mark_value(mark: int) -> float:
    """Brightness of a mark: two are white like digits and two dark like shapes."""
    return INK if mark % 2 else DARK


def _walk(start: int, taken: set[int], length: int, size: tuple[int, int], rng: np.random.Generator) -> list[int]:
    """Cells of a thing that goes on to a free neighbour every ``HOP`` frames."""
    rows, columns = size
    path, at = [], start
    for frame in range(length):
        if frame and frame % HOP == 0:
            row, column = divmod(at, columns)
            near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            free = [r * columns + c for r, c in near if 0 <= r < rows and 0 <= c < columns]
            free = [cell for cell in free if cell not in taken]
            at = free[int(rng.integers(len(free)))] if free else at
        path.append(at)
    return path


def fill_scenes(script: Sequence[Scene], size: tuple[int, int], rng: np.random.Generator) -> tuple[BusyScene, ...]:
    """The same scenes with marks, cells and a drift.

    Args:
        size: tokens of a frame, rows and columns.
    """
    found = []
    for scene in script:
        marks = rng.permutation(len(mark_alpha()))[: int(rng.integers(1, 3))].tolist()
        digit, flash, *rest = rng.permutation(size[0] * size[1])[: 2 + len(marks)].tolist()
        length = scene.length if scene.moving else 1
        path = _walk(digit, {flash, *rest}, length, size, rng)
        drift = rng.uniform(*DRIFT, 2) * rng.choice([-1, 1], 2)
        path += [path[-1]] * (scene.length - length)
        way = (float(drift[0]), float(drift[1]))
        more: dict[str, Any] = {
            "marks": tuple(marks),
            "mark_cells": tuple(rest),
            "flash_cell": flash,
            "path": tuple(path),
            "drift": way,
        }
        found.append(BusyScene(**vars(scene), **more))
    return tuple(found)


def _back_and_forth(way: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.int64]:
    """Where something is after ``way`` pixels that turns round at 0 and at ``room``."""
    way = way % (2 * room)
    return np.asarray(np.where(way > room, 2 * room - way, way)).astype(np.int64)


@functools.cache
def bee() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Alpha and brightness of the bee, (SIDE, SIDE) each."""
    y, x = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE), indexing="ij")
    alpha = (np.hypot(x, 1.4 * y) < 1).astype(np.float32)
    return alpha, np.where(np.floor((x + 1) * 3) % 2 == 0, INK, DARK).astype(np.float32)


def lay(
    picture: NDArray[np.float32], alpha: NDArray[np.float32], top: int, left: int, value: float | NDArray[np.float32]
) -> None:
    """One glyph over a picture: alpha and brightness, (SIDE, SIDE) each, and its top left corner."""
    spot = picture[top : top + SIDE, left : left + SIDE]
    spot += alpha[..., None] * (np.asarray(value, dtype=np.float32)[..., None] - spot)


def _stand(
    pictures: NDArray[np.float32], alpha: NDArray[np.float32], cells: Sequence[int], value: float, columns: int
) -> None:
    """One glyph in a cell of each frame; ``pictures`` are ``PICTURES`` to a frame."""
    for number, picture in enumerate(pictures):
        row, column = divmod(cells[number // PICTURES], columns)
        lay(picture, alpha, row * CELL + EDGE, column * CELL + EDGE, value)


def render_busy(
    script: Sequence[BusyScene], size: tuple[int, int], digits: Digits, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """All pictures of a video, (2 * frames, CELL * rows, CELL * columns, 3) uint8 RGB."""
    rows, columns = size
    height, width = CELL * rows, CELL * columns
    total = (script[-1].start + script[-1].length) * PICTURES
    pictures = np.empty((total, height, width, 3), dtype=np.float32)
    speed = rng.uniform(*SPEED, 2) * rng.choice([-1, 1], 2)
    room = np.array([height - SIDE, width - SIDE], dtype=np.float64)
    flight = _back_and_forth(rng.uniform(0, room) + np.arange(total)[:, None] * speed, room)
    for scene in script:
        first, count = scene.start * PICTURES, scene.length * PICTURES
        part = pictures[first : first + count]
        whole = draw_background(scene.pair, height + ROOM, width + ROOM, rng)
        camera = _back_and_forth(np.arange(count)[:, None] * np.array(scene.drift), np.array([ROOM, ROOM]))
        for number, (top, left) in enumerate(camera.tolist()):
            part[number] = whole[top : top + height, left : left + width]
            down, across = flight[first + number].tolist()
            lay(part[number], bee()[0], down, across, bee()[1])
        for mark, cell in zip(scene.marks, scene.mark_cells, strict=True):
            _stand(part, mark_alpha()[mark], [cell] * scene.length, mark_value(mark), columns)
        if scene.digit >= 0:
            glyph = digits.alpha[rng.choice(digits.by_label[scene.digit])]
            seen = slice(*(frame * PICTURES for frame in scene.seen))
            _stand(part[seen], glyph[rng.integers(len(glyph))], scene.path[slice(*scene.seen)], INK, columns)
        if scene.shape >= 0:
            flash = part[scene.flash * PICTURES : (scene.flash + 1) * PICTURES]
            _stand(flash, shape_alpha()[scene.shape], [scene.flash_cell], DARK, columns)
    return add_noise(pictures, rng)
