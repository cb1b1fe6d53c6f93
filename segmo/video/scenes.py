"""Scenes by PySceneDetect's ``AdaptiveDetector``, in two steps, so that the first can run in pieces.

The first step compares neighbouring frames, downscaled as PySceneDetect does it (:mod:`segmo.video.compare`). It is
nearly all of the work, needs a few frames at a time, and gives the same numbers wherever a file is cut into pieces. The
second step is the detector's own: a rolling average over those numbers and a shortest length of a scene. It runs once,
over the whole file, on the frames that it could find a cut at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect.scene_manager import compute_downscale_factor

from segmo.errors import OptionError
from segmo.video.pixels import THREADS

_TICKS = 90_000  # a second in whole numbers, as in MPEG


@dataclass(frozen=True)
class SceneOptions:
    """What counts as a cut; names and defaults are those of PySceneDetect's ``AdaptiveDetector``.

    Attributes:
        adaptive_threshold: how many times the change of its neighbours a change must be.
        min_content_val: the least change, 0 to 255: the mean over hue, saturation and brightness.
        min_scene_len: frames between two cuts, at least.
        window_width: neighbours on each side.
    """

    adaptive_threshold: float = 3.0
    min_content_val: float = 15.0
    min_scene_len: int = 15
    window_width: int = 2

    def __post_init__(self) -> None:
        if not (self.adaptive_threshold > 0 and self.min_content_val >= 0):
            raise OptionError(f"thresholds of scenes are positive numbers, got {self}")
        if self.min_scene_len < 0 or self.window_width < 1:
            raise OptionError(f"a scene has no negative length and a window at least one neighbour, got {self}")


class Small:
    """Downscales frames as PySceneDetect's ``SceneManager`` does, to about 256 pixels of the longer side.

    Args:
        size: (width, height) of the first frame of the file, to whose small size all others are brought; that of the
            first one seen when None.
    """

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self._size = None if size is None else _small_size(*size)
        self._convert: Any = av.video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        """Hue, saturation and brightness of a frame, (height, width, 3) uint8."""
        if self._size is None:  # later frames of another size are brought to the first one's
            self._size = _small_size(frame.width, frame.height)
        pixels = self._convert.reformat(frame, format="bgr24", **THREADS).to_ndarray()
        if (pixels.shape[1], pixels.shape[0]) != self._size:
            pixels = cv2.resize(pixels, self._size, interpolation=cv2.INTER_LINEAR)
        small: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2HSV)
        return small


def _small_size(width: int, height: int) -> tuple[int, int]:
    factor = compute_downscale_factor(max(width, height))
    return max(1, round(width / factor)), max(1, round(height / factor))


def change(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> float:
    """PySceneDetect's content value of two small frames, 0 to 255."""
    sums = cv2.sumElems(cv2.absdiff(before, after))
    pixels = float(before.shape[0] * before.shape[1])
    return sum(total / pixels for total in sums[:3]) / 3.0


def find_cuts(
    times: Sequence[float], changes: Sequence[float], rate: float, options: SceneOptions
) -> Iterator[tuple[int, float]]:
    """Where scenes after the first start, by the detector itself.

    Args:
        times: seconds at which each frame is shown.
        changes: :func:`change` from the frame before; 0 for the first. Of frames that are neither a cut nor next to one
            it may be any smaller than ``min_content_val``.
        rate: frames per second of the file.
        options: of the detector.

    Yields:
        (number of the frame, seconds).
    """
    from scenedetect import FrameTimecode
    from scenedetect.common import Timecode
    from scenedetect.detectors import AdaptiveDetector

    detector = AdaptiveDetector(
        options.adaptive_threshold, options.min_scene_len, options.window_width, options.min_content_val
    )
    # What it would compute from pictures is handed in instead.
    detector._calculate_frame_score = lambda timecode, frame_img: frame_img
    fps, base = Fraction(rate).limit_denominator(100_000), Fraction(1, _TICKS)
    window = options.window_width
    fed = _judged(np.asarray(changes), options)
    for place, number in enumerate(fed):
        timecode = FrameTimecode(Timecode(round(times[number] * _TICKS), base), fps)
        for _ in detector.process_frame(timecode, changes[number]):
            cut = fed[place - window]  # a frame is judged once its neighbours on both sides are known
            yield cut, times[cut]


def _judged(changes: NDArray[np.float64], options: SceneOptions) -> list[int]:
    """Frames that the detector must be given: those that change enough to be a cut, and their neighbours.

    The others are most of a film. Without them a frame that changes enough still has its own neighbours around it, and
    one that does not is no cut whatever stands around it. The first frame is where the first scene starts.
    """
    window = options.window_width
    enough = np.flatnonzero(changes >= options.min_content_val)
    around = (enough[:, None] + np.arange(-window, window + 1)).flatten()
    inside = around[(around >= 0) & (around < len(changes))]
    judged: list[int] = np.unique(np.concatenate([[0], inside])).astype(int).tolist()
    return judged
