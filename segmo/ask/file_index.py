"""What is known of a file without its pictures: when frames are shown, how they look, where scenes start.

With it frames are chosen for a further question, and only the pictures that are wanted are decoded.

Legend: F sampled frames, T frames of the language model, D size of a description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.video import Clip, fetch
from segmo.video.given import Source
from segmo.video.times import Index


@dataclass(frozen=True)
class FileIndex:
    """A clip that may lack its pictures.

    Attributes:
        clip: with black pictures, which take no memory, unless ``decoded``.
        looks: what each frame looks like, (T, D) fp32, by :func:`segmo.upstream.clips.looks_of`.
        decoded: the clip holds its pictures.
    """

    clip: Clip
    looks: Tensor
    decoded: bool

    def pictures(self, numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Sampled pictures by their numbers, ascending, (count, height, width, 3) uint8; decoded if need be."""
        if self.decoded:
            return self.clip.frames[numbers]
        height, width = self.clip.frames.shape[1:3]
        return fetch(self.clip.source, self.clip.seconds[numbers].tolist(), (width, height), index=self.clip.index)

    def without_pictures(self) -> FileIndex:
        """The same in little memory."""
        return replace(self, clip=replace(self.clip, frames=_black(self.clip.frames.shape)), decoded=False)

    def to_disk(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name, and the rest as JSON."""
        clip, index = self.clip, self.clip.index
        assert index is not None  # it was read from the file
        rest = {
            "shape": clip.frames.shape,
            "fps": clip.fps,
            "duration": clip.duration,
            "cuts": clip.cuts,
            "cut_frames": clip.cut_frames,
            "notes": clip.notes,
            "index": {name: value for name, value in vars(index).items() if name not in ("times", "keyframes")},
        }
        arrays = {"seconds": clip.seconds, "times": index.times, "keyframes": index.keyframes}
        return {"looks": self.looks, **{n: torch.from_numpy(array) for n, array in arrays.items()}}, json.dumps(rest)

    @classmethod
    def from_disk(cls, source: Source, tensors: Mapping[str, Tensor], rest: str) -> FileIndex:
        """The inverse of :meth:`to_disk`, for a video with the same bytes."""
        known = json.loads(rest)
        index: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in known["index"].items()
        }
        clip = Clip(
            Path(str(source)),
            _black(tuple(known["shape"])),
            tensors["seconds"].numpy(),
            known["fps"],
            known["duration"],
            tuple(known["cuts"]),
            tuple(known["cut_frames"]),
            tuple(known["notes"]),
            index=Index(times=tensors["times"].numpy(), keyframes=tensors["keyframes"].numpy(), **index),
            source=source,
        )
        return cls(clip, tensors["looks"], decoded=False)


def _black(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.broadcast_to(np.zeros((), np.uint8), shape)
