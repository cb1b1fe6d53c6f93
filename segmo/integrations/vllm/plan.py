"""What a request wants of its videos, and how it travels: from the prompt to the processor's fields and hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from segmo.integrations.vllm.options import NAMES, ServeOptions

SCOPE = "videos_kwargs"  # processor options that count for videos alone, so that images are not asked about
KEY = "segmo_plan"
QUESTION, VIDEO, SETTINGS = "segmo_question", "segmo_video", "segmo_settings"
FIELDS = (QUESTION, VIDEO, SETTINGS)

Kwargs = Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """How the videos of one prompt are cut.

    Attributes:
        options: of the selection.
        question: ids of the question's tokens; empty where the selection is blind to it.
        hashes: of the prompt's media by modality, without regard to the question.
        videos: those of the videos that are processed, in order.
        ends: the prompt ends in its last video.
    """

    options: ServeOptions
    question: tuple[int, ...]
    hashes: Mapping[str, Sequence[str]]
    videos: tuple[str, ...]
    ends: bool = False

    def identities(self) -> dict[str, list[str]]:
        """Hashes of all media. Those of videos say what is asked, for another question keeps other tokens."""
        last = len(self.hashes["video"]) - 1
        asked = [
            _digest(f"{video} {self.options} {self.question} {self.ends and at == last}").hex()
            for at, video in enumerate(self.hashes["video"])
        ]
        return {**{modality: list(hashes) for modality, hashes in self.hashes.items()}, "video": asked}

    def fields(self) -> dict[str, list[Tensor]]:
        """What the model is told of each video that is processed."""
        last = self.hashes["video"][-1]
        settings = [[self.options.keep, self.options.balance, float(self.ends and v == last)] for v in self.videos]
        return {
            QUESTION: [torch.tensor(self.question, dtype=torch.int64) for _ in self.videos],
            VIDEO: [torch.frombuffer(bytearray(_digest(video)), dtype=torch.int64) for video in self.videos],
            SETTINGS: [torch.tensor(row, dtype=torch.float64) for row in settings],
        }

    def only(self, missing: Sequence[bool]) -> Plan:
        """For those of the prompt's videos alone that are not cached."""
        chosen = zip(self.hashes["video"], missing, strict=True)
        return replace(self, videos=tuple(video for video, wanted in chosen if wanted))


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def put(kwargs: Kwargs, plan: Plan) -> dict[str, Any]:
    """Processor options that carry a plan, in place of the options that it was made from."""
    plain = without(kwargs)
    return {**plain, SCOPE: {**plain.get(SCOPE, {}), KEY: plan}}


def plan_in(kwargs: Kwargs) -> Plan | None:
    """The plan that processor options carry, None if they carry none."""
    scope = kwargs.get(SCOPE)
    found = scope.get(KEY) if isinstance(scope, Mapping) else None
    return found if isinstance(found, Plan) else None


def without(kwargs: Kwargs) -> dict[str, Any]:
    """Processor options as transformers' processors take them: without ours."""
    plain = {name: value for name, value in kwargs.items() if name not in NAMES}
    scope = plain.get(SCOPE)
    if isinstance(scope, Mapping) and KEY in scope:
        rest = {name: value for name, value in scope.items() if name != KEY}
        plain = {name: value for name, value in plain.items() if name != SCOPE}
        if rest:
            plain[SCOPE] = rest
    return plain
