"""The prompt that is being answered, for the vision encoder's side, which a model hands the pixels only.

Legend: B batch, N prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from segmo.runtime.encoded import VideoRows
from segmo.runtime.layout import roles, video_layout, video_starts
from segmo.runtime.question import ChatTokens, question_tokens, turn_marks
from segmo.runtime.video_runs import places, run_ends, run_starts


@dataclass(frozen=True)
class Runs:
    """Runs of placeholders in a prompt.

    Attributes:
        lengths: of the runs of the whole batch.
        parts: runs of each frame: several where a processor cuts frames into slices.
        videos: frames of each video, where every run is a frame or a part of one.
    """

    lengths: tuple[int, ...]
    parts: tuple[int, ...]
    videos: tuple[int, ...]

    def by_video(self) -> list[tuple[int, ...]]:
        """Runs of each frame of each video."""
        ends = list(accumulate(self.videos))
        return [self.parts[end - count : end] for end, count in zip(ends, self.videos, strict=True)]

    def frame_lengths(self) -> list[int]:
        """Tokens of each frame."""
        ends = list(accumulate(self.parts))
        return [sum(self.lengths[end - count : end]) for end, count in zip(ends, self.parts, strict=True)]


@dataclass(frozen=True)
class Shown:
    """Which video and which frame each video token of a prompt is of, (T,), counted through all; -1 for no frame."""

    video_T: Tensor
    frame_T: Tensor

    def only(self, videos: Sequence[int]) -> Shown:
        """The tokens of some of the videos."""
        inside_T = torch.isin(self.video_T, torch.tensor(list(videos)))
        return Shown(self.video_T[inside_T], self.frame_T[inside_T])


@dataclass(frozen=True)
class Prompt:
    """One prompt, or several as the rows of a batch.

    Attributes:
        ids: of the tokens, (B, N).
        mask: of attention, (B, N), if there is one.
        repeats: False for features that the processor found to repeat and that have no token (VideoLLaMA3), (R,) bool.
    """

    ids: Tensor
    mask: Tensor | None
    repeats: Tensor | None = None

    def runs(self, video_token: int, chat: ChatTokens) -> Runs:
        """The runs of placeholders in this prompt; arguments as for :meth:`question`."""
        ids_BN = self.ids.cpu()
        video_BN, marks_BN = ids_BN == video_token, turn_marks(ids_BN, chat)
        lengths: list[int] = []
        parts: list[int] = []
        videos: list[int] = []
        for row in range(len(video_BN)):
            if not bool(video_BN[row].any()):
                continue
            at = slice(row, row + 1)
            frame_BN, cell_BN = video_layout(video_BN[at], None, 0, 0, marks_BN[at], ids_BN=ids_BN[at])
            video_N = video_BN[row].numpy()
            start_G, end_G = places(run_starts(video_N)), places(run_ends(video_N))
            lengths += (end_G - start_G + 1).tolist()
            part_F = torch.bincount(frame_BN[0, start_G])
            parts += part_F.tolist()
            first = video_starts(frame_BN[0], cell_BN[0]).nonzero()[:, 0].tolist()
            videos += [end - start for start, end in pairwise([*first, len(part_F)])]
        return Runs(tuple(lengths), tuple(parts), tuple(videos))

    def shown(self, rows: VideoRows) -> Shown:
        """What the video tokens are of.

        Args:
            rows: how frames lie in the encoder's features, some of which may have no token.
        """
        sizes = [f * r + rows.trailing for f, r in zip(rows.frames, rows.rows, strict=True)]
        video_R, frame_R = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), rows.owner()
        if self.repeats is None or len(self.repeats) != len(frame_R):
            return Shown(video_R, frame_R)
        there_R = self.repeats.cpu().bool()
        return Shown(video_R[there_R], frame_R[there_R])

    def question(self, row: int, video_token: int, shown: Shown, chat: ChatTokens) -> Tensor:
        """Token ids of a row's question, (Q,), as the decoder's graph tells it.

        Args:
            row: of the batch.
            video_token: id of the placeholder.
            shown: what this row's video tokens are of.
            chat: what is known of the model's chat template.
        """
        ids_BN = self.ids[row : row + 1].cpu()
        video_BN = ids_BN == video_token
        start_BN, between_BN = torch.zeros_like(video_BN), torch.zeros_like(video_BN)
        place_T = video_BN[0].nonzero()[:, 0]
        first_T = _changes(shown.frame_T) & (shown.frame_T >= 0)
        start_BN[0, place_T[first_T.to(place_T.device)]] = True
        for start in _changes(shown.video_T).nonzero()[1:, 0].tolist():
            between_BN[0, int(place_T[start - 1]) + 1 : int(place_T[start])] = True
        found = roles(video_BN.numpy(), start_BN.numpy(), between_BN.numpy())
        frame_BN, cell_BN = map(torch.from_numpy, found)
        valid_BN = None if self.mask is None else self.mask[row : row + 1].cpu().bool()
        return ids_BN[question_tokens(ids_BN, frame_BN, cell_BN, valid_BN, chat)].to(self.ids.device)


def _changes(value_T: Tensor) -> Tensor:
    """Whether a value is another than the one before; True for the first."""
    return torch.nn.functional.pad(value_T[1:] != value_T[:-1], (1, 0), value=True)


_REPEATS = "video_compression_mask"
_PROMPT: ContextVar[Prompt | None] = ContextVar("segmo_prompt", default=None)


@contextmanager
def prompt_known(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, :func:`current_prompt` is the prompt of these arguments of ``generate`` or of a call.

    Arguments without token ids, as in the calls that ``generate`` makes, change nothing.
    """
    ids = inputs.get("input_ids", inputs.get("inputs"))
    if not isinstance(ids, Tensor) or ids.dim() != 2 or _PROMPT.get() is not None:
        yield
        return
    token = _PROMPT.set(Prompt(ids, inputs.get("attention_mask"), inputs.get(_REPEATS)))
    try:
        yield
    finally:
        _PROMPT.reset(token)


def current_prompt() -> Prompt | None:
    """The prompt of the running call, None outside of one."""
    return _PROMPT.get()
