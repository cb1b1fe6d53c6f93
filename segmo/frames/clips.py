"""The frames of a video file that a question is about, chosen before a processor sees them (``segmo run --frames``).

Source: SegMo (CVPR 2026): scenes of the video, one representative frame of each scored against the question, and a
budget of frames for each scene from relevance and novelty. The prompt is then one of the chosen frames alone; to keep
the places that the whole video would give them, use ``segmo.compile(model, frames=...)`` instead.

Legend: F sampled pictures, T frames of the language model (one or two pictures each), S scenes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmo.families import family_of
from segmo.frames.image_text import ImageTextScorer
from segmo.frames.scores import GRID, words_and_features
from segmo.frames.tower import Tower
from segmo.runtime.frames import choose_frames, representative
from segmo.video import Clip

Pictures = NDArray[np.uint8]
# Scores frames, each one or two pictures (pictures, height, width, 3), against a question: (frames,) fp32.
Scorer = Callable[[Sequence[Pictures], str], Tensor]


@dataclass(frozen=True)
class ClipFrames:
    """Chooses frames of a clip; called with the clip and the question, it gives their pictures' numbers, ascending.

    Attributes:
        wanted: frames of the language model to keep, at least one.
        score: relevance of frames to a question.
        key: what the choice depends on beside clip and question, for a cache of features.
        pictures: pictures that make one frame (2 for Qwen-VL, 1 for LLaVA-OneVision).
        balance: weight of relevance against novelty.
    """

    wanted: int
    score: Scorer
    key: str
    pictures: int = 1
    balance: float = 0.5

    def __call__(self, clip: Clip, question: str) -> NDArray[np.int64]:
        starts = np.arange(0, len(clip.frames), self.pictures)
        looks = looks_of(clip.frames, self.pictures)
        scene_T = torch.from_numpy(np.unique(clip.scene_F[starts], return_inverse=True)[1])
        middle = representative(looks, scene_T)
        shown = [clip.frames[starts[frame] : starts[frame] + self.pictures] for frame in middle.tolist()]
        kept = choose_frames(looks, scene_T, self.score(shown, question), self.wanted, self.balance)
        numbers = starts[kept.numpy()][:, None] + np.arange(self.pictures)
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
    def __call__(self, frames: Sequence[Pictures], question: str) -> Tensor:
        """The scorer ``embedding`` on one frame for each scene; 0 for all without a question."""
        if not question.strip():
            return torch.zeros(len(frames))
        size = max(len(part) for part in frames)  # the last frame of a video may have fewer pictures
        pictures = np.concatenate([np.concatenate([part, part[-1:]])[:size] for part in frames])
        pixels, grid = self._pixels(pictures)
        call = self.tower.call(pixels, grid, {})
        features = self.tower(call.pixels, call.grid)[0]
        ids = self.processor.tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
        words = self.tower.embed(ids.to(self.device))
        return words_and_features(words, features, call, 0, torch.arange(len(frames)))

    def _pixels(self, pictures: Pictures) -> tuple[Tensor, Tensor]:
        inputs = self.processor.video_processor(videos=[pictures], do_sample_frames=False, return_tensors="pt")
        pixels = inputs["pixel_values_videos"].to(self.device)
        if self.tower.patches:
            return pixels, inputs["video_grid_thw"]
        return pixels.flatten(0, 1), torch.tensor([[pixels.shape[1], 1, 1]])


def pictures_per_frame(processor: Any) -> int:
    """Pictures that a model's processor joins into one frame."""
    return int(getattr(processor.video_processor, "temporal_patch_size", None) or 1)


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
    if relevance is None:
        score: Scorer = OwnScorer(model, processor)
    else:
        score = ImageTextScorer.load(relevance, model.device).score_frames
    key = f"{frames} frames, balance {balance:g}, {'' if relevance is None else relevance.resolve()}"
    return ClipFrames(frames, score, key, pictures_per_frame(processor), balance)
