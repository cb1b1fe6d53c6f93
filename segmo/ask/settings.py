"""What a run needs to know, beside the options of SegMo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segmo.checked import check_count, check_utf8
from segmo.errors import OptionError
from segmo.options import Options
from segmo.video import Clip, SceneOptions
from segmo.video.sample import check_rate

# Takes a clip and a question; gives the numbers of the sampled frames that are shown to the model, ascending.
ChooseFrames = Callable[[Clip, str], NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """How videos are read and questions answered.

    Attributes:
        options: of SegMo; ``report`` is the folder of the report.
        fps: frames to sample per second; the model's own rate when None.
        max_frames: at most so many frames of a video, spread over its length.
        scenes: of the scene detector.
        workers: stretches of a long file that are decoded at the same time; one per processor when None.
        new_tokens: of an answer, at most.
        compare: answer with full attention too.
        choose: picks frames before they are encoded, by the question; all frames when None. Features are then kept on
            disk for each choice by itself.
        frames: instead of ``choose``: so many frames of the language model, by scene and question
            (:class:`segmo.upstream.clips.ClipFrames`); all when None.
        relevance: folder of a CLIP or SigLIP model that scores scenes for ``frames``; the model itself when None.
    """

    options: Options = field(default_factory=Options)
    fps: float | None = None
    max_frames: int = 768
    scenes: SceneOptions = field(default_factory=SceneOptions)
    workers: int | None = None
    new_tokens: int = 64
    compare: bool = False
    choose: ChooseFrames | None = None
    frames: int | None = None
    relevance: Path | None = None

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_rate(self.fps)
        for name in ("new_tokens", "max_frames", "workers", "frames"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.frames is not None and self.choose is not None:
            raise OptionError(f"frames={self.frames}: frames are chosen by one rule alone")
        if self.relevance is not None and self.frames is None:
            raise OptionError("a model for relevance chooses frames; say how many (--frames)")


def checked_question(question: str) -> str:
    """The question without the space around it.

    Raises:
        OptionError: nothing is left.
        PromptError: it is no UTF-8 text.
    """
    if not question.strip():
        raise OptionError("the question is empty; ask something about the video")
    check_utf8("the question", question)
    return question.strip()
