"""Frames and cells without a family's own rule: from the call, from what was said of the model, and from the prompt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_every_family import AS_IT_IS, HYBRIDS, NO_CUT, NO_SEGMENTS
from typer.testing import CliRunner
from video_families import FAMILIES, build, prompt

import segmo
from segmo.calls.videos import frames_of
from segmo.cli import app
from segmo.errors import OptionError
from segmo.inspection.support import TESTED, families, markdown
from segmo.runtime.layout import video_layout


@given(
    videos=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 1)), min_size=1, max_size=3),
)
def test_a_run_is_shared_out_among_the_frames_of_its_video(videos: list[tuple[int, int, int]]) -> None:
    row, frame, cell, start = [False], [-1], [-1], 0
    for at, (count, cells, rest) in enumerate(videos):
        rest = rest if cells > 1 or count > 1 else 0
        row += [True] * (count * cells + rest * (count > 1))
        for number in range(count):
            size = cells + (rest if number == count - 1 and count > 1 else 0)
            frame += [start + number] * size
            cell += range(size)
        start += count
        row += [False] * 30
        frame += [-3 if at < len(videos) - 1 else -2] * 30
        cell += [-1] * 30
    frame_BN, cell_BN = video_layout(torch.tensor([row]), None, 0, 0, None, [count for count, _, _ in videos])
    assert frame_BN.tolist() == [frame]
    assert cell_BN.tolist() == [cell]


def test_runs_that_are_frames_stay_frames_and_their_tags_stay_with_them() -> None:
    row = [False] * 3 + [False, False, True, True, True] * 4 + [False] * 2
    for known in (None, [4], [2, 2]):
        frame_BN, _ = video_layout(torch.tensor([row]), None, 0, 0, None, known)
        assert frame_BN[0, 3:].tolist() == [-1, -1, 0, 0, 0, *[1] * 5, *[2] * 5, *[3] * 5, -2, -2]


def test_what_was_said_of_a_model_comes_first() -> None:
    model = torch.nn.Linear(1, 1)
    assert frames_of(model, {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]])}) == ([3, 2], 1)
    assert frames_of(model, {"pixel_values_videos": torch.zeros(2, 5, 3, 4, 4)}) == ([5, 5], 1)
    rows = SimpleNamespace(last_hidden_state=torch.zeros(6, 4, 8), pooler_output=torch.zeros(2, 12, 8))
    assert frames_of(model, {"mm_encoder_outputs": {"video": rows}}) == ([3, 3], 1)
    assert frames_of(model, {}) == (None, 1)
    asked = {"video_grid_thw": torch.tensor([[3, 4, 4], [2, 4, 4]]), "input_ids": torch.ones(2, 5)}
    assert frames_of(model, {"input_ids": torch.ones(2, 5)}, lambda: asked) == ([3, 2], 1)
    assert frames_of(model, {"input_ids": torch.ones(4, 5)}, lambda: asked) == ([3, 2], 2)  # two beams
    assert frames_of(model, {"input_ids": torch.ones(3, 5)}, lambda: asked) == (None, 1)
    assert segmo.describe(model, frames=4) is model
    assert frames_of(model, {"video_grid_thw": torch.tensor([[3, 4, 4]])}) == ([4], 1)
    segmo.describe(model, frames=lambda call: [len(call["clips"])])
    assert frames_of(model, {"clips": [1, 2]}) == ([2], 1)


@pytest.mark.parametrize(
    ("runs", "known", "expected"),
    [
        ([24, 12], [1] * 9, [4] * 9),  # frames that were encoded one by one, of two videos
        ([24, 8], [1] * 8, [4] * 8),
        ([24, 24], [1] * 12, [4] * 12),
        ([13, 13], [6], [4, 4, 5, 4, 4, 5]),  # equal runs, of which the last frame takes the rest
        ([13, 12], [6], [13, 12]),  # not known
    ],
)
def test_frames_are_shared_out_by_the_length_of_runs(runs: list[int], known: list[int], expected: list[int]) -> None:
    row = [False, *(token for run in runs for token in [*[True] * run, False])]
    frame_BN, cell_BN = video_layout(torch.tensor([row]), None, 0, 0, None, known)
    assert frame_BN[cell_BN >= 0].bincount().tolist() == expected


def joined(prompts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Several prompts with a video as one row."""
    text = ("input_ids", "attention_mask", "mm_token_type_ids")
    return {name: torch.cat([each[name] for each in prompts], 1 if name in text else 0) for name in prompts[0]}


def test_beams_have_the_frames_of_their_prompt() -> None:
    """By any way to hand the prompt to ``generate``, and where rows hold different numbers of videos."""
    model = segmo.compile(build("muse_glimmer"), keep=0.5)
    one = prompt("muse_glimmer", 6)
    rest = {name: value for name, value in one.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(one["input_ids"]).detach()
    three = joined([prompt("muse_glimmer", 2, seed=seed) for seed in (1, 2, 3)])
    short = three["input_ids"].shape[1] - one["input_ids"].shape[1]
    rows = {
        name: torch.cat([three[name], torch.nn.functional.pad(one[name], (short, 0))])
        if one[name].shape == one["input_ids"].shape
        else torch.cat([three[name], one[name]])
        for name in one
    }

    def frames(*args: torch.Tensor, **given: Any) -> list[list[int]]:
        model.generate(*args, **given, max_new_tokens=1, do_sample=False)
        found = segmo.last_report().prefill
        return [frame[cell >= 0].bincount().tolist() for frame, cell in zip(found.frame, found.cell, strict=True)]

    beams = {"num_beams": 2, "num_return_sequences": 2}
    assert frames(**one, **beams) == [[4] * 6] * 2
    assert frames(one["input_ids"], **rest, **beams) == [[4] * 6] * 2
    assert frames(inputs=one["input_ids"], **rest, **beams) == [[4] * 6] * 2
    assert frames(inputs_embeds=embeds, **rest, **beams) == [[4] * 6] * 2
    assert frames(**rows, **beams) == [[4] * 6] * 4


@pytest.mark.parametrize("said", [{}, {"frames": 0}, {"frames": [2, -1]}, {"placeholder": "<video>"}])
def test_a_description_that_says_nothing_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        segmo.describe(torch.nn.Linear(1, 1), **said)


def test_the_table_is_what_the_tests_run() -> None:
    rows = {row.family: row for row in families()}
    assert set(rows) == set(FAMILIES)
    assert {name for name, row in rows.items() if row.cas != TESTED} == {*AS_IT_IS, *NO_CUT}
    assert {name for name, row in rows.items() if row.lsp != TESTED} == {*AS_IT_IS, *NO_SEGMENTS, *HYBRIDS}
    assert {name for name, row in rows.items() if row.upstream != TESTED} == {*AS_IT_IS, *NO_CUT}
    page = Path(__file__).parent.parent / "docs" / "families.md"
    assert page.read_text(encoding="utf-8") == markdown(), "segmo families --markdown > docs/families.md"
    shown = CliRunner().invoke(app, ["families"])
    assert shown.exit_code == 0
    assert "qwen3_5" in shown.output
