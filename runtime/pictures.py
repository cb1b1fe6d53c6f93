"""Which pictures of a prompt are frames of a video, where a family has one placeholder for images and frames alike.

InternVL and SmolVLM get images and frames in one tensor, and a run of one and the same placeholder for each. What tells
them apart is how the prompt lays them out: the frames of a video stand in a row, each behind a tag of one form. A
picture alone, a tile of an image, and a picture behind other text than the frames beside it are none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, takewhile

from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.host import array
from segmo.runtime.layout import video_layout, video_starts
from segmo.runtime.question import ChatTokens, turn_marks
from segmo.runtime.video_runs import places, run_ends, run_starts

_FORM = 2  # so many tokens in front of a frame are the same for all frames of a video, where its tags have a form

Run = tuple[int, int]  # places of a run of placeholders in its row, from one up to the other


def check_frames(ids_BN: Tensor, video_BN: Tensor, chat: ChatTokens) -> None:
    """For a graph that nobody looked at the pictures in front of: all have to be frames.

    Raises:
        PromptError: some are not, or may be none.
    """
    for ids_N, video_N in zip(ids_BN, video_BN, strict=True):
        if not all(frames_of_video(ids_N, runs_of(video_N), video_N, chat, None)):
            raise PromptError(
                "some pictures of the prompt are not laid out as frames of a video, and would be cut like frames: they "
                "have the same placeholder. Compile the model itself, segmo.compile(model), and such a prompt runs as "
                "it was; a function around it is seen in its graphs alone"
            )


def runs_of(flag_N: Tensor) -> list[Run]:
    """Runs of flagged tokens of a row."""
    flag = array(flag_N)
    return list(zip(places(run_starts(flag)).tolist(), (places(run_ends(flag)) + 1).tolist(), strict=True))


def frames_of_video(
    ids_N: Tensor, runs: Sequence[Run], video_N: Tensor, chat: ChatTokens, cells: int | None
) -> list[bool]:
    """For each run of a row, whether it is laid out as a frame of a video."""
    if not runs:
        return []
    marks_BN = turn_marks(ids_N[None], chat)
    frame_BN, cell_BN = video_layout(video_N[None], None, 0, 0, marks_BN)
    first = [at for at, starts in enumerate(video_starts(frame_BN[0], cell_BN[0]).tolist()) if starts]
    ids, flags = ids_N.tolist(), []
    for begin, end in zip(first, [*first[1:], len(runs)], strict=True):
        row = runs[begin:end]
        alike = len(row) > 1 and _one_form(ids, row)
        flags += [alike and cells in (None, stop - start) for start, stop in row]
    return flags


def _one_form(ids: Sequence[int], row: Sequence[Run]) -> bool:
    """Whether all pictures in a row have tags of one form in front of them.

    A tag is what stands between two pictures, without what closes the first of them. Where most tags end in the same
    ``_FORM`` tokens, all have to. Where they do not, all end in the same token (tiles of an image are numbered there).
    Two pictures alone need such a form.
    """
    gaps = [ids[stop:start] for (_, stop), (start, _) in pairwise(row)]
    longest, end, start = max(map(len, gaps)), row[-1][1], row[0][0]
    closing = _common([*gaps, ids[end : end + longest]])
    tags = [ids[max(start - longest, 0) : start][::-1], *(gap[closing:][::-1] for gap in gaps)]
    width = min(_FORM, *map(len, tags))
    most = Counter(tuple(tag[:width]) for tag in tags).most_common(1)[0][1]
    if len(row) == 2:
        return width == _FORM and most == 2
    return most == len(row) or (most <= len(row) // 2 and _common(tags) > 0)


def _common(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens rows have in common at their start."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))
