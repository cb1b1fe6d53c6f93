"""Some minutes of video made of the two clips: a cut list, and the mp4 written from it.

The clips last ten and five seconds. Each shot of them is played forwards and backwards at a chosen speed for
as long as the cut list says, so that scenes last from two to forty seconds, and the long ones hardly move, as
in a film or a lecture. Nothing is random: the same cut list gives the same frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from segmo.demo.clips import CLIPS, read_clip
from segmo.errors import SegMoError

FPS = 25
SIZE = (560, 320)  # width, height of the written file


@dataclass(frozen=True)
class Shot:
    """One entry of the cut list: source frames ``start`` to ``stop`` (exclusive), played for ``seconds``.

    At ``speed`` 1 a source frame lasts as long as it did in the clip; at 0.1, ten times as long.
    """

    name: str
    clip: str
    start: int
    stop: int
    seconds: float
    speed: float

    @property
    def frames(self) -> int:
        """Frames this shot has in the written video."""
        return round(self.seconds * FPS)

    def source(self, frame: int) -> int:
        """Frame of the clip that is shot frame ``frame``: up to the end, back to the start, and so on."""
        span = self.stop - 1 - self.start
        step = int(frame * self.speed) % max(1, 2 * span)
        return self.start + min(step, 2 * span - step)


# Three minutes in thirteen shots. The ranges are the shots that the clips themselves consist of.
CUT_LIST = (
    Shot("rabbit wakes", "bigbuckbunny", 0, 60, 14.0, 0.25),
    Shot("driver", "bikes", 30, 56, 6.0, 0.3),
    Shot("street", "bikes", 137, 187, 40.0, 0.05),
    Shot("bus", "bikes", 0, 30, 3.0, 0.5),
    Shot("parked bicycle", "bikes", 200, 242, 32.0, 0.08),
    Shot("wheels", "bikes", 242, 250, 5.0, 0.2),
    Shot("traffic light", "bikes", 76, 137, 18.0, 0.3),
    Shot("taxi", "bikes", 60, 76, 2.0, 0.4),
    Shot("rabbit stretches", "bigbuckbunny", 60, 132, 24.0, 0.1),
    Shot("street again", "bikes", 137, 187, 4.0, 1.0),
    Shot("passer-by", "bikes", 187, 242, 9.0, 0.5),
    Shot("bus again", "bikes", 0, 30, 2.0, 1.0),
    Shot("traffic light again", "bikes", 110, 137, 21.0, 0.05),
)


def cut_list(seconds: float) -> tuple[Shot, ...]:
    """``CUT_LIST``, repeated or cut off so that it lasts ``seconds``.

    Raises:
        SegMoError: ``seconds`` is less than 10.
    """
    if not (math.isfinite(seconds) and seconds >= 10):
        raise SegMoError(f"the demo video lasts at least 10 seconds, got {seconds}")
    shots: list[Shot] = []
    left = float(seconds)
    while round(left * FPS) > 0:
        shot = CUT_LIST[len(shots) % len(CUT_LIST)]
        shots.append(replace(shot, seconds=min(shot.seconds, left)))
        left -= shot.seconds
    return tuple(shots)


def cut_times(shots: tuple[Shot, ...]) -> list[float]:
    """Seconds at which each shot after the first starts in the written video."""
    starts = np.cumsum([shot.frames for shot in shots[:-1]])
    return [float(start) / FPS for start in starts]


def _pictures(shots: tuple[Shot, ...], clips: dict[str, NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """The written video's frames in order, each (height, width, 3) uint8."""
    for shot in shots:
        for frame in range(shot.frames):
            yield clips[shot.clip][shot.source(frame)]


def write_video(
    shots: tuple[Shot, ...], folder: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """Write the cut list as an H.264 mp4 into ``folder``; a file of the same cut list is used again.

    Args:
        shots: the cut list.
        folder: made if missing.
        progress: called with (frames written, frames in all).

    Returns:
        The mp4's path. Its name carries a hash of the cut list, so that a changed list never meets an old
        file.
    """
    key = repr(([astuple(shot) for shot in shots], FPS, SIZE))
    path = folder / f"video-{hashlib.sha256(key.encode()).hexdigest()[:12]}.mp4"
    total = sum(shot.frames for shot in shots)
    if path.is_file():
        progress(total, total)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    width, height = SIZE
    clips = {name: read_clip(name, width, height) for name in CLIPS}
    unfinished = path.with_suffix(".part")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=FPS, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, pixels in enumerate(_pictures(shots, clips)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(stream.encode(frame))
            progress(number + 1, total)
        container.mux(stream.encode())
    unfinished.replace(path)  # a run that is interrupted leaves no half-written video behind
    return path
