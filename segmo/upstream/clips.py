"""The frames of a video file that a question is about, chosen before a processor sees them (``segmo run --frames``).

Source: SegMo (CVPR 2026): scenes of the video, one representative frame of each scored against the question, and a
budget of frames for each scene from relevance and novelty. The prompt is then one of the chosen frames alone; to keep
the places that the whole video would give them, use ``segmo.compile(model, frames=...)`` instead.

Legend: F sampled pictures, T frames of the language model (one or two pictures each), S scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.families import family_of
from segmo.runtime.frame_budget import choose_frames, representative
from segmo.upstream.image_text import ImageTextScorer
from segmo.upstream.scores import GRID, words_and_scenes
from segmo.upstream.tower import Tower
from segmo.video import Clip

Pictures = NDArray[np.uint8]


class Scorer(Protocol):
    """Scores frames against a question in two steps, so that the first serves all questions about a video."""

    def encode_frames(self, frames: Sequence[Pictures]) -> Tensor:
        """Features of frames, each of one or more pictures (pictures, height, width, 3): (S, ...)."""

    def score_features(self, features: Tensor, question: str) -> Tensor:
        """Relevance of each frame to the question, (S,) fp32 on the CPU; 0 for all without a question."""


@dataclass(frozen=True)
class ClipFrames:
    """Chooses frames of a clip; called with the clip and the question, it gives their pictures' numbers, ascending.

    Attributes:
        wanted: frames of the language model to keep, at least one.
        scorer: relevance of frames to a question.
        pictures: pictures that make one frame (2 for Qwen-VL, 1 for LLaVA-OneVision).
        balance: weight of relevance against novelty.
    """

    wanted: int
    scorer: Scorer
    pictures: int = 1
    balance: float = 0.5

    def __call__(self, clip: Clip, question: str) -> NDArray[np.int64]:
        looks = looks_of(clip.frames, self.pictures)
        shown = [clip.frames[numbers] for numbers in self.heads(clip, looks)]
        features = self.scorer.encode_frames(shown)
        return self.choose(clip, looks, self.scorer.score_features(features, question))

    def heads(self, clip: Clip, looks: Tensor) -> list[NDArray[np.int64]]:
        """The pictures of the frame that stands for each scene."""
        return [self._pictures_of([frame], clip) for frame in representative(looks, self._scenes(clip)).tolist()]

    def choose(self, clip: Clip, looks: Tensor, relevance_S: Tensor) -> NDArray[np.int64]:
        """The pictures of the frames to keep, ascending.

        Args:
            clip: only its times and scenes are read.
            looks: of all its frames, by :func:`looks_of`.
            relevance_S: of each frame of :meth:`heads`.
        """
        kept = choose_frames(looks, self._scenes(clip), relevance_S, self.wanted, self.balance)
        return self._pictures_of(kept.tolist(), clip)

    def _scenes(self, clip: Clip) -> Tensor:
        """Scene of each frame, counted from 0 without the scenes that lie between two frames, (T,) int64."""
        return torch.from_numpy(np.unique(clip.scene_F[:: self.pictures], return_inverse=True)[1])

    def _pictures_of(self, frames: Sequence[int], clip: Clip) -> NDArray[np.int64]:
        numbers = (np.asarray(frames)[:, None] * self.pictures + np.arange(self.pictures)).flatten()
        found: NDArray[np.int64] = numbers[numbers < len(clip.frames)].astype(np.int64)
        return found


def looks_of(frames_FHWC: Pictures, pictures: int) -> Tensor:
    """What each frame looks like: its pictures' colours on a coarse grid, 0 to 1, (T, D) fp32."""
    found = []
    for start in range(0, len(frames_FHWC), pictures):
        part = torch.from_numpy(frames_FHWC[start : start + pictures]).permute(0, 3, 1, 2).float().mean(0)
        found.append(torch.nn.functional.adaptive_avg_pool2d(part, GRID).flatten() / 255)
    return torch.stack(found)


class OwnScorer:
    """Relevance by the Video LLM's own vision encoder and word embeddings, where no image-text model is given.

    Args:
        model: a Video LLM of a known family.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        family = family_of(model)
        assert family is not None
        self.processor = processor
        self.tower = Tower(model, family)
        self.device = model.device

    @torch.no_grad()
    def encode_frames(self, frames: Sequence[Pictures]) -> Tensor:
        """Features of each frame's tokens, (S, cells, H)."""
        size = max(len(part) for part in frames)  # the last frame of a video may have fewer pictures
        pictures = np.concatenate([np.concatenate([part, part[-1:]])[:size] for part in frames])
        made = self.processor.video_processor(videos=[pictures], do_sample_frames=False, return_tensors="pt")
        wanted = self.tower.signature.parameters
        call = self.tower.read((), {n: made[n].to(self.device) for n in made if n in wanted}, None)
        assert call is not None  # it was asked for videos
        features_RH = self.tower(call.pixels, call.beside)[0]
        cells = len(features_RH) // sum(call.beside.frames)
        return torch.unflatten(features_RH[: len(frames) * cells], 0, (len(frames), cells))

    @torch.no_grad()
    def score_features(self, features: Tensor, question: str) -> Tensor:
        """The scorer ``embedding`` on one frame for each scene; 0 for all without a question."""
        if not question.strip():
            return torch.zeros(len(features), dtype=torch.float32)
        ids = self.processor.tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        return words_and_scenes(self.tower.embed(ids.to(self.device)), features.to(self.device))


def pictures_per_frame(processor: Any) -> int:
    """Pictures that a model's processor joins into one frame."""
    return int(getattr(processor.video_processor, "temporal_patch_size", None) or 1)


# Inputs that say how many seconds lie between two frames of the model; processors count them from the rate alone.
_STEPS = ("second_per_grid_ts", "video_second_per_grid")


def with_times(inputs: MutableMapping[str, Any], clips: Sequence[Clip], pictures: int) -> None:
    """Puts the steps of the clips' own frames into a processor's inputs, where the model is told any.

    A clip may be a part or a choice of a film's frames.

    Args:
        inputs: of a processor; changed.
        clips: as they were shown to it, in order.
        pictures: that make one frame of the language model.
    """
    steps = [clip.grid_seconds(pictures) for clip in clips]
    for name in _STEPS:
        if name in inputs:
            inputs[name] = torch.tensor(steps) if isinstance(inputs[name], Tensor) else steps


def moved(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """A processor's inputs on a model's device, pixels in its dtype."""

    def place(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(model.device, model.dtype if name.startswith("pixel_values") else value.dtype)

    return {name: place(name, value) for name, value in inputs.items()}


def frame_choice(model: Any, processor: Any, frames: int, relevance: Path | None, balance: float) -> ClipFrames:
    """The rule of ``segmo run --frames``.

    Args:
        model, processor: of the Video LLM.
        frames: frames of the language model to keep.
        relevance: folder of a CLIP or SigLIP model; the Video LLM scores by itself when None.
        balance: weight of relevance against novelty.

    Raises:
        OptionError: the folder holds no such model.
    """
    scorer: Scorer = OwnScorer(model, processor) if relevance is None else ImageTextScorer.load(relevance, model.device)
    return ClipFrames(frames, scorer, pictures_per_frame(processor), balance)
