"""The video of the last prefill: frames with their kept tokens, and a curve of what each frame keeps.

Legend: F frames of the model (for Qwen each is two sampled frames).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from segmo.report.prefill import Prefill
from segmo.report.storyboard import Scene, choose_frames

if TYPE_CHECKING:
    from PIL import Image

MOST_FRAMES = 240
DIM, BLANK = (20, 26, 32, 185), (226, 231, 235, 255)  # what lies over dropped tokens, with and without a picture


@dataclass(frozen=True)
class Frame:
    """One frame that is drawn.

    Attributes:
        number, scene: from 0.
        tokens, kept: video tokens.
        picture: the thumbnail as a data URI, empty where no frames were handed in.
        mask: one pixel per token as a data URI, see-through where the token is kept.
        ratio: width over height.
    """

    number: int
    scene: int
    tokens: int
    kept: int
    picture: str
    mask: str
    ratio: float


@dataclass(frozen=True)
class Curve:
    """Something of each frame, as the points of an SVG path over a box of 1000 x 100."""

    path: str


def kept_of(prefill: Prefill) -> NDArray[np.bool_]:
    """Whether each prompt token of row 0 is a video token that was kept, (N,)."""
    kept = torch.zeros(prefill.frame.shape[1], dtype=torch.bool)
    kept[prefill.kept()] = True
    return (kept & (prefill.cell[0] >= 0)).numpy()


def frames(prefill: Prefill, scenes: Sequence[Scene]) -> list[Frame]:
    """The frames to draw: all, or ``MOST_FRAMES`` that stand for the scenes."""
    frame_N, cell_N = prefill.frame[0].numpy(), prefill.cell[0].numpy()
    kept_N, video_N = kept_of(prefill), cell_N >= 0
    total = int(frame_N[video_N].max()) + 1
    found = []
    for number in choose_frames(scenes, MOST_FRAMES):
        at = np.flatnonzero(video_N & (frame_N == number))
        rows, columns = _grid(prefill, at)
        picture, ratio = _picture(prefill, number, total)
        found.append(
            Frame(
                number,
                int(prefill.scene[0, at[0]]),
                len(at),
                int(kept_N[at].sum()),
                picture,
                _mask(kept_N[at], rows, columns, DIM if picture else BLANK),
                ratio or columns / rows,
            )
        )
    return found


def _grid(prefill: Prefill, at: NDArray[np.intp]) -> tuple[int, int]:
    """Rows and columns of a frame's tokens: from M-RoPE ids, else as square as it goes."""
    if prefill.positions is not None:
        axes = prefill.positions[-2:, 0, torch.from_numpy(at).to(prefill.positions.device)].cpu().numpy()
        rows, columns = (int(axis.max() - axis.min()) + 1 for axis in axes)
        if rows * columns == len(at):
            return rows, columns
    side = max(1, int(len(at) ** 0.5))
    return -(-len(at) // side), side


def _picture(prefill: Prefill, number: int, total: int) -> tuple[str, float]:
    """A frame's thumbnail and its shape; the first of the sampled frames that the model merges into one."""
    shown = prefill.shown
    if shown is None or shown.frames is None:
        return "", 0.0
    from PIL import Image

    place = number * len(shown.frames) // total
    image = Image.fromarray(shown.frames[place])
    return _uri(image, "JPEG", quality=72), shown.size[0] / shown.size[1]


def _mask(kept: NDArray[np.bool_], rows: int, columns: int, over: tuple[int, int, int, int]) -> str:
    from PIL import Image

    pixels = np.zeros((rows * columns, 4), dtype=np.uint8)
    pixels[: len(kept)][~kept] = over
    return _uri(Image.fromarray(pixels.reshape(rows, columns, 4)).quantize(4), "PNG")


def _uri(image: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def curves(prefill: Prefill) -> dict[str, Curve]:
    """Share kept and mean novelty of each frame."""
    cell_N = prefill.cell[0]
    video_N = cell_N >= 0
    frame_V = prefill.frame[0, video_N]
    count_F = torch.bincount(frame_V).clamp(min=1)
    kept_F = torch.bincount(frame_V, weights=torch.from_numpy(kept_of(prefill))[video_N].double()) / count_F
    novelty_F = torch.bincount(frame_V, weights=prefill.novelty[0, video_N].double()) / count_F
    novelty_F = novelty_F / novelty_F.max().clamp(min=1e-9)
    return {"kept": Curve(_steps(kept_F.tolist(), filled=True)), "novelty": Curve(_steps(novelty_F.tolist()))}


def _steps(values: list[float], filled: bool = False) -> str:
    """A stair over the frames, one step a frame; neighbours of equal height share a step."""
    wide = 1000 / len(values)
    path: list[str] = ["M0 100"] if filled else []
    last: float | None = None
    for at, value in enumerate(values):
        high = round(100 - 96 * min(max(value, 0.0), 1.0), 1)
        if high != last:
            path.append(f"{'M' if not path else 'L'}{at * wide:.2f} {last if last is not None and path else high}")
            path.append(f"V{high}")
            last = high
    path.append("H1000" + (" V100 Z" if filled else ""))
    return "".join(path)
