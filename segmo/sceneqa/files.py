"""SceneQA's videos as real files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.task import Sample


def write_sample(sample: Sample, path: Path, crf: int | None = 18) -> Path:
    """Writes a video as an H.264 mp4 of two pictures a second, 48 x 32 pixels.

    Args:
        sample: from :func:`segmo.sceneqa.task.make_sample`.
        path: the file to write.
        crf: quality, lower is better, in the usual YUV 4:2:0; None for no loss at all (RGB).
    """
    codec, pix_fmt = ("libx264", "yuv420p") if crf is not None else ("libx264rgb", "rgb24")
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=PICTURES, options={"crf": str(crf or 0), "preset": "veryfast"})
        stream.height, stream.width = sample.pictures.shape[1:3]
        stream.pix_fmt = pix_fmt
        for number, pixels in enumerate(sample.pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, PICTURES)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
