"""Where the frames of a video lie in a prompt, and what role each prompt token has.

Legend: B batch, N prompt tokens, R rows of M-RoPE position ids, G runs of video tokens of a row, F frames of a row.

Roles are written into one integer per token: ``SINK`` for text before the first video token, ``QUERY`` for
text after the last one, ``TURN`` for text between two videos, and otherwise the index (of a frame, a scene or a
segment) that the token belongs to. Short text in front of a frame, such as Qwen3-VL's timestamps, belongs to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.video_runs import between_videos, later_parts, run_ends, run_starts, videos_of_frames

SINK = -1
QUERY = -2
TURN = -3


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
    run_end_BN = run_ends(video_BN)
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


def _frame_starts_shared(video_BN: Tensor, run_start_BN: Tensor, frames: Sequence[int] | None) -> Tensor:
    """A run of video tokens is a frame, or a video that its frames share evenly; the last one takes the rest."""
    heads = run_start_BN.flatten().nonzero()[:, 0].tolist()
    if frames is not None and heads and len(heads) != len(frames) and sum(frames) % len(heads) == 0:
        frames = [sum(frames) // len(heads)] * len(heads)  # frames that were encoded one by one, or runs of one frame
    if frames is None or len(heads) != len(frames):
        return run_start_BN
    ends = (run_ends(video_BN).flatten().nonzero()[:, 0] + 1).tolist()
    start_M = torch.zeros_like(video_BN).flatten()
    for head, end, count in zip(heads, ends, frames, strict=True):
        cells = (end - head) // count if count > 0 else 0
        if not cells:
            return run_start_BN  # what is known of the call is of another video
        start_M[torch.arange(count, device=start_M.device) * cells + head] = True
    return start_M.view_as(video_BN)


def _frame_starts_by_cell(video_BN: Tensor, run_start_BN: Tensor, cell_V: Tensor) -> Tensor:
    """A frame starts with a run, and where a run's cells do not go on."""
    back_V = torch.nn.functional.pad(cell_V[1:] <= cell_V[:-1], (1, 0), value=True)
    return run_start_BN | torch.zeros_like(video_BN).masked_scatter(video_BN, back_V.to(video_BN.device))


def _rows(of_row: Callable[..., Tensor], *parts_BN: Tensor) -> Tensor:
    return torch.stack([of_row(*row) for row in zip(*parts_BN, strict=True)])


def roles(video_BN: Tensor, start_BN: Tensor, between_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Frame and cell of every token, as :func:`video_layout` returns them.

    Args:
        video_BN: True at video tokens. start_BN: at the first token of each frame.
        between_BN: at text that stands between two videos.
    """
    length = video_BN.shape[1]
    positions = torch.arange(length, device=video_BN.device)
    upcoming_BN = next_at_or_after(video_BN)
    counted_BN = start_BN.long().cumsum(dim=1) - 1
    frame_BN = counted_BN.gather(1, upcoming_BN.clamp(max=length - 1))
    frame_BN = frame_BN.masked_fill(between_BN, TURN)
    frame_BN = frame_BN.masked_fill(positions < upcoming_BN[:, :1], SINK)
    frame_BN = frame_BN.masked_fill(upcoming_BN == length, QUERY)
    seen_BN = video_BN.long().cumsum(dim=1)
    return frame_BN, torch.where(video_BN, seen_BN - seen_BN.gather(1, last_at_or_before(start_BN)), -1)


def video_layout(
    video_BN: Tensor,
    positions_RBN: Tensor | None,
    cells_per_frame: int,
    trailing: int,
    marks_BN: Tensor | None = None,
    frames: Sequence[int] | None = None,
    cell_V: Tensor | None = None,
    ids_BN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Frame and cell of every prompt token.

    Without M-RoPE positions and tokens per frame, every run of video tokens is a frame, unless there are as many runs
    as videos: then each run is shared out among the frames of its video.

    Args:
        video_BN: True at video tokens, (B, N) bool.
        positions_RBN: M-RoPE position ids, (3 or 4, B or 1, N) int; None for families with 1-D positions.
        cells_per_frame: tokens of a frame; read only without ``positions_RBN``.
        trailing: video tokens after a video's last frame; read only without ``positions_RBN``.
        marks_BN: True where a turn of the chat begins or ends, as far as that is known.
        frames: frames of each video of the batch, in order of the prompt, if they are known before the graph.
        cell_V: cell of each video token of the batch, in order, where a processor left cells out.
        ids_BN: token ids, which tell the parts of a frame from frames.

    Returns:
        ``frame`` (B, N) int64: frame index, ``SINK``, ``TURN`` or ``QUERY``; frames are counted through the whole row.
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
    run_start_BN = run_starts(video_BN)
    later_BN = torch.zeros_like(video_BN) if ids_BN is None else _rows(later_parts, video_BN, ids_BN)
    if cell_V is not None and cell_V.numel() != int(video_BN.sum()):
        cell_V = None  # what is known of the call is of another video
    if positions_RBN is not None:
        start_BN = _frame_starts_mrope(video_BN, run_start_BN, positions_RBN)
    elif cells_per_frame:
        start_BN = _frame_starts_counted(video_BN, run_start_BN, cells_per_frame, trailing)
    elif cell_V is not None:
        start_BN = _frame_starts_by_cell(video_BN, run_start_BN, cell_V)
    elif bool(later_BN.any()):
        start_BN = run_start_BN
    else:
        start_BN = _frame_starts_shared(video_BN, run_start_BN, frames)
    start_BN = start_BN & ~later_BN
    tagged, videos = positions_RBN is not None or not cells_per_frame, videos_of_frames(start_BN, frames)
    between = [
        between_videos(
            video_BN[row],
            start_BN[row],
            later_BN[row],
            None if marks_BN is None else marks_BN[row],
            tagged,
            None if videos is None else videos[row],
        )
        for row in range(video_BN.shape[0])
    ]
    frame_BN, cell_BN = roles(video_BN, start_BN, torch.stack(between))
    if cell_V is not None:
        cell_BN = cell_BN.masked_scatter(video_BN, cell_V.to(cell_BN.device))
    return frame_BN, cell_BN


def frame_heads(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Place of the first video token of each frame of a row, (F,) int64.

    Args:
        frame_N, cell_N: one row of :func:`video_layout`.
    """
    video_V = (cell_N >= 0).nonzero()[:, 0]
    frame_V = frame_N[video_V]
    return video_V[torch.nn.functional.pad(frame_V[1:] != frame_V[:-1], (1, 0), value=True)[: len(frame_V)]]


def video_starts(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Whether each frame of a row is the first one of its video, (F,) bool: text of none or no video is in front of it.

    Args:
        frame_N, cell_N: one row of :func:`video_layout`.
    """
    positions = torch.arange(frame_N.shape[0], device=frame_N.device)
    head_F = frame_heads(frame_N, cell_N)
    text_N = torch.where(frame_N < 0, positions, -1).cummax(0).values
    video_N = torch.where(cell_N >= 0, positions, -1).cummax(0).values
    before_F = torch.where(head_F > 0, video_N[head_F - 1], -1)
    return (before_F < 0) | (text_N[head_F] > before_F)


def tag_tokens(frame_N: Tensor, cell_N: Tensor) -> Tensor:
    """Whether a token is text that belongs to a frame, (N,) bool.

    What stands in front of a video's first frame is not told from other text by its place. It is taken to be as long as
    what stands in front of the second one.
    """
    tag_N = (frame_N >= 0) & (cell_N < 0)
    head_F, first_F = frame_heads(frame_N, cell_N), video_starts(frame_N, cell_N)
    place_M = tag_N.nonzero()[:, 0]
    front_M = frame_N[place_M][place_M < head_F[frame_N[place_M]]]
    length_F = torch.bincount(front_M, minlength=head_F.shape[0])
    leads_F = (first_F[:-1] & ~first_F[1:]).nonzero()[:, 0] if head_F.shape[0] > 1 else head_F[:0]
    for head, length in zip(head_F[leads_F].tolist(), length_F[leads_F + 1].tolist(), strict=True):
        tag_N[max(head - length, 0) : head] = True
    return tag_N
