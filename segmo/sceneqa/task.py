"""SceneQA as a fixed set: splits, difficulty, a version and a checksum. The same arguments give the same
bits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmo.errors import SegMoError
from segmo.sceneqa.busy import fill_scenes, render_busy
from segmo.sceneqa.glyphs import PARTS, load_digits
from segmo.sceneqa.questions import KINDS, Question, choose_questions
from segmo.sceneqa.render import render
from segmo.sceneqa.script import Scene, write_script

VERSION = 1  # raised whenever the same seed would give another video or question
BUSY_VERSION = 2  # of the sets with busy frames
SPLITS = tuple(PARTS)


@dataclass(frozen=True)
class Difficulty:
    """Scenes and frames (of the language model, a second each) of a video.

    Six scenes in ten last one to three seconds; the others share what is left, so more frames make longer
    still parts.

    Attributes:
        busy: rows and columns of a frame's tokens in the harder sets (:mod:`segmo.sceneqa.busy`), where the question
            stands in front of every second video; None for frames of two rows and three columns with one thing.
    """

    scenes: int
    frames: int
    busy: tuple[int, int] | None = None

    @property
    def version(self) -> int:
        """Of the generator: the sets of one version are told apart by their sizes."""
        return VERSION if self.busy is None else BUSY_VERSION

    def asks_first(self, index: int) -> bool:
        """Whether the question stands in front of video number ``index``."""
        return self.busy is not None and index % 2 == 1

    def __str__(self) -> str:
        size = "" if self.busy is None else f" of {self.busy[0]} x {self.busy[1]} tokens"
        return f"{self.scenes} scenes, {self.frames} frames{size}"


DIFFICULTIES = {
    "easy": Difficulty(8, 32),
    "standard": Difficulty(16, 128),  # the longest that training shows
    "long": Difficulty(24, 256),  # longer than any training video
    "hard": Difficulty(16, 128, (4, 6)),  # busy frames
    "harder": Difficulty(16, 64, (8, 8)),
}


@dataclass(frozen=True)
class Sample:
    """One video and what is asked about it.

    Attributes:
        index: number within the split.
        script: what happens.
        pictures: (2 * frames, 32, 48, 3) uint8 RGB, two a second; larger in the harder sets.
        questions: the chosen questions, kind by kind.
    """

    index: int
    script: tuple[Scene, ...]
    pictures: NDArray[np.uint8]
    questions: tuple[Question, ...]

    @property
    def scene_F(self) -> NDArray[np.int64]:
        """True scene of each frame of the language model."""
        return np.repeat(np.arange(len(self.script)), [scene.length for scene in self.script])


def check_split(split: str) -> None:
    """Whether SceneQA has such a split.

    Raises:
        SegMoError: it has not.
    """
    if split not in SPLITS:
        raise SegMoError(f"SceneQA has no split {split!r}; it has {', '.join(SPLITS)}")


def make_sample(split: str, difficulty: Difficulty, index: int, per_kind: int | Mapping[str, int] = 5) -> Sample:
    """Video number ``index`` of a split, with up to ``per_kind`` questions of each kind (one number, or one for each).

    Raises:
        SegMoError: there is no such split, or scikit-learn is missing.
    """
    check_split(split)
    seed = [difficulty.version, SPLITS.index(split), difficulty.scenes, difficulty.frames, index]
    seed += difficulty.busy or ()
    rng = np.random.default_rng(seed)
    script = write_script(difficulty.scenes, difficulty.frames, split == "train", rng)
    wanted = dict.fromkeys(KINDS, per_kind) if isinstance(per_kind, int) else dict(per_kind)
    questions = choose_questions(script, wanted, rng)
    digits = load_digits(split)
    if difficulty.busy is None:
        return Sample(index, script, render(script, digits, rng), tuple(questions))
    busy = fill_scenes(script, difficulty.busy, rng)
    return Sample(index, busy, render_busy(busy, difficulty.busy, digits, rng), tuple(questions))


def samples(split: str, difficulty: Difficulty, videos: int, per_kind: int | Mapping[str, int] = 5) -> Iterator[Sample]:
    """The first ``videos`` samples of a split."""
    for index in range(videos):
        yield make_sample(split, difficulty, index, per_kind)


class Checksum:
    """SHA-256 over samples in order: scripts, questions and pixels."""

    def __init__(self, version: int = VERSION) -> None:
        self._hash = hashlib.sha256(f"SceneQA {version}".encode())

    def add(self, sample: Sample) -> None:
        """Take in one sample."""
        plain = [[dataclasses.astuple(part) for part in parts] for parts in (sample.script, sample.questions)]
        self._hash.update(json.dumps(plain).encode())
        self._hash.update(sample.pictures.tobytes())

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]
