"""Where the frames of a video lie in a prompt, and what role each prompt token has.

Legend: B batch, N prompt tokens, R rows of M-RoPE position ids.

Roles are written into one integer per token: ``SINK`` for text before the first video token, ``QUERY`` for
text after the last one, and otherwise the index (of a frame, a scene or a segment) that the token belongs to.
Text between video tokens, such as Qwen3-VL's timestamps, belongs to the frame that follows it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.errors import PromptError

SINK = -1
QUERY = -2


def last_at_or_before(flag_BN: Tensor) -> Tensor:
    """Position of the last set flag at or before each position (0 where there is none), (B, N) int64."""
    positions = torch.arange(flag_BN.shape[1], device=flag_BN.device)
    return torch.where(flag_BN, positions, 0).cummax(dim=1).values


def next_at_or_after(flag_BN: Tensor) -> Tensor:
    """Position of the next set flag at or after each position (N where there is none), (B, N) int64."""
    length = flag_BN.shape[1]
    positions = torch.arange(length, device=flag_BN.device)
    return torch.where(flag_BN, positions, length).flip(1).cummin(dim=1).values.flip(1)


def _frame_starts_mrope(video_BN: Tensor, run_start_BN: Tensor, positions_RBN: Tensor) -> Tensor:
    """A frame starts where height and width are back at the first values of its run of video tokens."""
    first_BN = last_at_or_before(run_start_BN)
    same_BN = torch.ones_like(video_BN)
    for axis_BN in (positions_RBN[-2], positions_RBN[-1]):
        axis_BN = axis_BN.expand_as(video_BN)
        same_BN = same_BN & (axis_BN == axis_BN.gather(1, first_BN))
    return video_BN & (run_start_BN | same_BN)


def _frame_starts_counted(video_BN: Tensor, run_start_BN: Tensor, cells: int, trailing: int) -> Tensor:
    """A frame starts every ``cells`` tokens of a run; ``trailing`` tokens at its end join the last frame."""
    run_end_BN = video_BN & ~torch.nn.functional.pad(video_BN[:, 1:], (0, 1))
    positions = torch.arange(video_BN.shape[1], device=video_BN.device)
    offset_BN = positions - last_at_or_before(run_start_BN)
    length_BN = offset_BN + next_at_or_after(run_end_BN) - positions + 1
    framed_BN = length_BN - trailing
    wrong_BN = video_BN & ((framed_BN % cells != 0) | (framed_BN <= 0))
    if wrong_BN.any():
        length = int(length_BN[wrong_BN][0])
        raise PromptError(
            f"a video in the prompt has {length} tokens, which is not a whole number of frames of {cells} "
            f"tokens plus {trailing}; put text between videos and leave the processor's placeholders be"
        )
    return video_BN & (offset_BN % cells == 0) & (offset_BN < framed_BN)


def video_layout(
    video_BN: Tensor, positions_RBN: Tensor | None, cells_per_frame: int, trailing: int
) -> tuple[Tensor, Tensor]:
    """Frame and cell of every prompt token.

    Args:
        video_BN: True at video tokens, (B, N) bool.
        positions_RBN: M-RoPE position ids, (3 or 4, B or 1, N) int; None for families with 1-D positions.
        cells_per_frame: tokens of a frame; read only without ``positions_RBN``.
        trailing: video tokens after a video's last frame; read only without ``positions_RBN``.

    Returns:
        ``frame`` (B, N) int64: frame index, ``SINK`` or ``QUERY``; frames are counted through the whole row.
        ``cell`` (B, N) int64: index of a video token within its frame, -1 for text.

    Raises:
        PromptError: the rows hold different numbers of video tokens, or a video is not made of whole frames.
    """
    counts_B = video_BN.sum(dim=1)
    if (counts_B != counts_B[0]).any():
        raise PromptError(
            f"the rows of the batch hold different numbers of video tokens ({counts_B.tolist()}); SegMo "
            "keeps the same number of tokens in every row: run such prompts one at a time"
        )
    run_start_BN = video_BN & ~torch.nn.functional.pad(video_BN[:, :-1], (1, 0))
    if positions_RBN is not None:
        start_BN = _frame_starts_mrope(video_BN, run_start_BN, positions_RBN)
    else:
        start_BN = _frame_starts_counted(video_BN, run_start_BN, cells_per_frame, trailing)

    length = video_BN.shape[1]
    positions = torch.arange(length, device=video_BN.device)
    upcoming_BN = next_at_or_after(video_BN)
    counted_BN = start_BN.long().cumsum(dim=1) - 1
    frame_BN = counted_BN.gather(1, upcoming_BN.clamp(max=length - 1))
    frame_BN = frame_BN.masked_fill(positions < upcoming_BN[:, :1], SINK)
    frame_BN = frame_BN.masked_fill(upcoming_BN == length, QUERY)
    cell_BN = torch.where(video_BN, positions - last_at_or_before(start_BN), -1)
    return frame_BN, cell_BN


def video_starts(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Whether each frame of a row is the first one of its video, (F,) bool.

    Videos are separated by text. So are the frames of one video where timestamps stand between them
    (Qwen3-VL), so neighbouring runs of one frame each and of equal size count as one video.

    Args:
        frame_N, cell_N: one row of :func:`video_layout`.
    """
    head_F = (cell_N == 0).nonzero()[:, 0]
    size_F = torch.bincount(frame_N[cell_N >= 0], minlength=head_F.shape[0])
    after_text_F = (head_F == 0) | (cell_N[head_F - 1] < 0)
    run_F = after_text_F.cumsum(0) - 1
    alone_F = torch.bincount(run_F)[run_F] == 1
    joined_F = torch.zeros_like(alone_F)
    joined_F[1:] = alone_F[1:] & alone_F[:-1] & (size_F[1:] == size_F[:-1])
    return after_text_F & ~joined_F
