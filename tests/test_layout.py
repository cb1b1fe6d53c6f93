"""Frames, cells and roles, against the positions that the real transformers code gives a prompt."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, llava_onevision
from strategies import IMAGE, TEXT, VIDEO, Piece, Prompt, prompts

from segmo.errors import PromptError
from segmo.families import FAMILIES
from segmo.runtime.layout import QUERY, SINK, TURN, last_at_or_before, next_at_or_after, video_layout, video_starts


@cache
def cached_model(model_type: str) -> Any:
    """A model without its head, which no test here changes."""
    return build(model_type).model


def model_positions(model_type: str, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor]:
    """Video mask (1, N) and M-RoPE position ids (3, 1, N) of a prompt, by the model's own code."""
    model = cached_model(model_type)
    merge = model.config.vision_config.spatial_merge_size
    kinds = torch.tensor([[TEXT] * prompt.padding + prompt.kinds])
    mask = torch.tensor([[0] * prompt.padding + [1] * len(prompt.kinds)])
    options = {}
    videos = sum(piece.kind == VIDEO for piece in prompt.pieces)
    if model_type == "qwen2_5_vl":
        options["second_per_grid_ts"] = torch.tensor([0.0, 0.5, 1.0, 2.0, 0.1][:videos])
    positions, _ = model.get_rope_index(
        torch.zeros_like(kinds),
        kinds,
        prompt.grids(IMAGE, merge),
        prompt.grids(VIDEO, merge),
        attention_mask=mask,
        **options,
    )
    return kinds == VIDEO, positions


def check_layout(prompt: Prompt, frame_BN: torch.Tensor, cell_BN: torch.Tensor) -> None:
    frames, cells, _ = prompt.expected
    assert frame_BN.tolist() == [frames]
    assert cell_BN.tolist() == [cells]


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
@given(prompt=prompts())
def test_mrope_positions_give_frames_and_cells(model_type: str, prompt: Prompt) -> None:
    marks_BN = None if prompt.told_apart else prompt.marks
    check_layout(prompt, *video_layout(*model_positions(model_type, prompt), 0, 0, marks_BN))


@given(prompt=prompts(timestamps=True))
def test_timestamps_between_frames_join_the_frame_that_follows(prompt: Prompt) -> None:
    marks_BN = None if prompt.told_apart else prompt.marks
    check_layout(prompt, *video_layout(*model_positions("qwen3_vl", prompt), 0, 0, marks_BN))


@given(tag=st.integers(1, 12), turn=st.integers(1, 60), first=st.integers(1, 4), second=st.integers(1, 4))
def test_text_between_videos_of_single_frames_is_told_by_its_length(
    tag: int, turn: int, first: int, second: int
) -> None:
    """As Qwen3-VL writes a second video with other words in front of it, and no marks of turns."""
    video_N = [False] * 3
    for frames in (first, second):
        video_N += ([False] * tag + [True] * 4) * frames + [False] * turn
    gap, shortest = turn + tag, tag if first + second > 2 else turn + tag
    expected = gap > min(24, 1.5 * shortest + 3)
    frame_BN, cell_BN = video_layout(torch.tensor([video_N]), torch.arange(len(video_N)).expand(3, 1, -1), 0, 0)
    assert bool((frame_BN == TURN).any()) == expected
    assert int((frame_BN == TURN).sum()) == gap * expected
    assert video_starts(frame_BN[0], cell_BN[0]).sum() == 1 + expected


@given(frames=st.integers(2, 6), cells=st.integers(2, 9), rows=st.sampled_from([3, 4]), before=st.integers(0, 4))
def test_text_positions_hold_no_frames(frames: int, cells: int, rows: int, before: int) -> None:
    """As transformers makes them for ``inputs_embeds``: the frames that are known of the call are taken."""
    video_N = [False] * before + [True] * frames * cells + [False] * 3
    video_BN, positions = torch.tensor([video_N]), torch.arange(len(video_N)).expand(rows, 1, -1)
    frame_BN, cell_BN = video_layout(video_BN, positions, 0, 0, frames=[frames])
    assert frame_BN[video_BN].tolist() == [frame for frame in range(frames) for _ in range(cells)]
    assert cell_BN[video_BN].tolist() == list(range(cells)) * frames


@given(prompt=prompts())
def test_position_ids_with_a_row_for_text_change_nothing(prompt: Prompt) -> None:
    video_BN, positions_3BN = model_positions("qwen2_vl", prompt)
    text_BN = torch.arange(video_BN.shape[1])[None, None]
    with_text = video_layout(video_BN, torch.cat([text_BN, positions_3BN]), 0, 0, prompt.marks)
    check_layout(prompt, *with_text)


def test_a_batch_with_left_padding_and_one_row_of_positions() -> None:
    video = Piece(VIDEO, frames=2, height=2, width=2)
    short = Prompt((Piece(TEXT, text=1), video, Piece(TEXT, text=2)), padding=3)
    long = Prompt((Piece(TEXT, text=3), video, Piece(TEXT, text=3)))
    masks, positions = zip(*(model_positions("qwen2_vl", prompt) for prompt in (short, long)), strict=True)
    frame_BN, cell_BN = video_layout(torch.cat(masks), torch.cat(positions, dim=1), 0, 0)
    for row, prompt in enumerate((short, long)):
        check_layout(prompt, frame_BN[row : row + 1], cell_BN[row : row + 1])
    twice = video_layout(masks[1].expand(2, -1), positions[1], 0, 0)  # positions shared by both rows
    check_layout(long, twice[0][1:], twice[1][1:])


@pytest.mark.parametrize(("image_size", "patch_size"), [(28, 14), (42, 14), (70, 14), (64, 16)])
def test_llava_onevision_cells_are_what_the_model_makes(image_size: int, patch_size: int) -> None:
    model = llava_onevision(image_size, patch_size).model.eval()
    family = FAMILIES[model.config.model_type]
    assert family.cells_per_frame is not None
    cells, frames = family.cells_per_frame(model.config), 3
    with torch.no_grad():
        features = model.get_video_features(
            torch.randn(1, frames, 3, image_size, image_size),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        ).pooler_output
    assert features.shape[1] == frames * cells + family.trailing

    newline = Piece(VIDEO, frames=frames, height=cells, trailing=family.trailing)
    prompt = Prompt((Piece(TEXT, text=2), newline, Piece(TEXT, text=1)))
    video_BN = torch.tensor([prompt.kinds]) == VIDEO
    assert int(video_BN.sum()) == features.shape[1]
    check_layout(prompt, *video_layout(video_BN, None, cells, family.trailing))


@given(
    frames=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    cells=st.integers(1, 4),
    trailing=st.integers(0, 1),
    padding=st.integers(0, 2),
)
def test_counted_frames_of_several_videos(frames: list[int], cells: int, trailing: int, padding: int) -> None:
    pieces = [Piece(TEXT, text=2)]
    for count in frames:
        pieces += [Piece(VIDEO, frames=count, height=cells, trailing=trailing), Piece(TEXT, text=1)]
    prompt = Prompt(tuple(pieces), padding)
    video_BN = torch.tensor([[TEXT] * padding + prompt.kinds]) == VIDEO
    check_layout(prompt, *video_layout(video_BN, None, cells, trailing))


@given(cells=st.integers(2, 6), extra=st.integers(1, 5), trailing=st.integers(0, 1))
def test_a_video_that_is_not_whole_frames_is_refused(cells: int, extra: int, trailing: int) -> None:
    tokens = 2 * cells + trailing + (extra % (cells - 1) + 1 if cells > 2 else 1)
    video_BN = torch.tensor([[False] + [True] * tokens + [False]])
    with pytest.raises(PromptError, match=f"{tokens} tokens, which is not a whole number of frames"):
        video_layout(video_BN, None, cells, trailing)


def test_a_video_of_nothing_but_trailing_tokens_is_refused() -> None:
    with pytest.raises(PromptError, match="not a whole number of frames"):
        video_layout(torch.tensor([[False, True, False]]), None, 4, 1)


def test_rows_with_different_video_token_counts_are_refused() -> None:
    video_BN = torch.tensor([[True, True, False], [True, False, False]])
    with pytest.raises(PromptError, match=r"different numbers of video tokens \(\[2, 1\]\)"):
        video_layout(video_BN, torch.zeros(3, 2, 3, dtype=torch.long), 0, 0)


def test_a_prompt_without_video_is_all_query() -> None:
    frame_BN, cell_BN = video_layout(torch.zeros(1, 5, dtype=torch.bool), None, 4, 0)
    assert frame_BN.tolist() == [[QUERY] * 5]
    assert cell_BN.tolist() == [[-1] * 5]


def test_a_prompt_that_is_only_video_has_neither_sink_nor_query() -> None:
    frame_BN, cell_BN = video_layout(torch.ones(1, 6, dtype=torch.bool), None, 3, 0)
    assert frame_BN.tolist() == [[0, 0, 0, 1, 1, 1]]
    assert cell_BN.tolist() == [[0, 1, 2, 0, 1, 2]]
    assert SINK not in frame_BN


def expected_video_starts(prompt: Prompt) -> list[bool]:
    _, cells, videos = prompt.expected
    heads = [video for cell, video in zip(cells, videos, strict=True) if cell == 0]
    return [i == 0 or heads[i] != heads[i - 1] for i in range(len(heads))]


@given(prompt=prompts(timestamps=True))
def test_each_video_starts_anew(prompt: Prompt) -> None:
    frame_BN, cell_BN = video_layout(*model_positions("qwen3_vl", prompt), 0, 0, prompt.marks)
    assert video_starts(frame_BN[0], cell_BN[0]).tolist() == expected_video_starts(prompt)


@given(prompt=prompts(timestamps=True, max_videos=1))
def test_timestamps_do_not_start_a_video(prompt: Prompt) -> None:
    frame_BN, cell_BN = video_layout(*model_positions("qwen3_vl", prompt), 0, 0)
    assert video_starts(frame_BN[0], cell_BN[0]).tolist() == expected_video_starts(prompt)


@given(flags=st.lists(st.booleans(), min_size=1, max_size=12))
def test_nearest_flags(flags: list[bool]) -> None:
    flag_BN, length = torch.tensor([flags]), len(flags)
    last = [max((j for j in range(i + 1) if flags[j]), default=0) for i in range(length)]
    following = [min((j for j in range(i, length) if flags[j]), default=length) for i in range(length)]
    assert last_at_or_before(flag_BN).tolist() == [last]
    assert next_at_or_after(flag_BN).tolist() == [following]
