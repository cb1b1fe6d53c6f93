"""Pipelines from strings, and passes of other distributions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build

import segmo
from segmo.errors import OptionError, PipelineError
from segmo.options import Options
from segmo.passes.lower_kernels import LowerKernels
from segmo.passes.pipeline import DEFAULT, build_pipeline, known_passes, parse_pipeline
from segmo.passes.segment_attention import SegmentAttention
from segmo.passes.select_tokens import SelectTokens

NAMES = DEFAULT.split(",")


def test_default_pipeline_takes_the_options() -> None:
    passes = build_pipeline(Options(keep=0.5, segments=4, balance=0.1))
    assert [each.name for each in passes] == NAMES
    assert passes[0] == SelectTokens(keep=0.5, balance=0.1)
    assert passes[1] == SegmentAttention(segments=4)


def test_fields_in_the_pipeline_win() -> None:
    passes = build_pipeline(Options(keep=0.5, pipeline="select-tokens{keep=0.1, scorer=attention}"))
    assert passes == [SelectTokens(keep=0.1, scorer="attention")]


@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True), st.sets(st.sampled_from(NAMES)))
def test_order_is_kept_and_disabled_passes_are_left_out(names: list[str], off: set[str]) -> None:
    options = Options.parse({"pipeline": names, "disable": sorted(off)})
    assert [each.name for each in build_pipeline(options)] == [name for name in names if name not in off]


@given(st.dictionaries(st.sampled_from(["keep", "layer"]), st.integers(1, 1), max_size=2))
def test_parse_reads_what_was_written(fields: dict[str, int]) -> None:
    text = "select-tokens" + ("{" + ",".join(f"{k}={v}" for k, v in fields.items()) + "}" if fields else "")
    assert parse_pipeline(f"{text}, lower-kernels") == [("select-tokens", fields), ("lower-kernels", {})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("select-token", "did you mean 'select-tokens'"),
        ("select-tokens{keep}", "not of the form field=value"),
        ("select-tokens{kep=1}", "no field 'kep'; its fields: keep, frames, scorer, layer, balance"),
        ("select-tokens{", "cannot read the pipeline at"),
    ],
)
def test_wrong_pipelines_are_named(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build_pipeline(Options(pipeline=text))


def test_values_in_a_pipeline_are_checked_as_options_are() -> None:
    with pytest.raises(OptionError, match="'keep' is 7"):
        build_pipeline(Options(pipeline="select-tokens{keep=7}"))


def test_an_unknown_pass_in_disable_is_named() -> None:
    with pytest.raises(PipelineError, match="did you mean 'inject-context'"):
        build_pipeline(Options(disable=("inject-contexts",)))


OTHER = """
from dataclasses import dataclass
from typing import ClassVar
from segmo.passes.base import Outcome, Tier


@dataclass(frozen=True)
class Other:
    name: ClassVar[str] = "NAME"
    tier: ClassVar[Tier] = Tier.EXACT
    times: int = 1

    def run(self, rewrite):
        return Outcome()
"""


def install(folder: Path, name: str, registered: str) -> None:
    """A distribution with one pass, as an installer would leave it."""
    (folder / "other_passes.py").write_text(OTHER.replace("NAME", name))
    info = folder / "other_passes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-passes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[segmo.passes]\n{registered} = other_passes:Other\n")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_pass_of_another_distribution_is_found(tmp_path: Path) -> None:
    install(tmp_path, "count-nodes", "count-nodes")
    code = (
        "from segmo.options import Options\nfrom segmo.passes.pipeline import build_pipeline\n"
        "print(build_pipeline(Options(pipeline='count-nodes{times=3}')))"
    )
    done = run(tmp_path, code)
    assert done.stdout == "[Other(times=3)]\n", done.stderr


@pytest.mark.parametrize(
    ("name", "registered", "message"),
    [
        ("select-tokens", "select-tokens", "registered twice, by segmo.passes.select_tokens and other_passes"),
        ("one-name", "another-name", "the two names must be the same"),
    ],
)
def test_clashing_names_are_refused(tmp_path: Path, name: str, registered: str, message: str) -> None:
    install(tmp_path, name, registered)
    done = run(tmp_path, "from segmo.passes.pipeline import known_passes\nknown_passes()")
    assert message in done.stderr


def test_every_pass_is_a_documented_frozen_dataclass() -> None:
    for name, cls in known_passes().items():
        assert cls.__dataclass_params__.frozen, name
        assert "Trap avoided" in (cls.__doc__ or ""), name


def test_a_pass_is_found_by_its_place() -> None:
    place = "segmo.passes.lower_kernels:LowerKernels"
    (built,) = build_pipeline(Options(pipeline=f"{place}{{lowering=flash}}"))
    assert built == LowerKernels("flash")
    assert build_pipeline(Options(pipeline=place, disable=(place,))) == []
    assert build_pipeline(Options(pipeline=place, disable=("lower-kernels",))) == []
    with pytest.raises(PipelineError, match="cannot be imported: No module named 'no_such'"):
        build_pipeline(Options(pipeline="no_such:Pass"))
    with pytest.raises(PipelineError, match="is not a pass"):
        build_pipeline(Options(pipeline="segmo.options:Options"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("segment-attention,select-tokens", "'select-tokens' behind 'segment-attention'"),
        ("select-tokens,trim-last-layer,segment-attention", "'segment-attention' behind 'trim-last-layer'"),
        ("select-tokens,select-tokens{keep=0.1}", "'select-tokens' twice"),
    ],
)
def test_an_order_in_which_passes_cannot_build_on_each_other_is_refused(names: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        segmo.compile(build("qwen2_vl"), pipeline=names, keep=0.5, segments=2)
    with pytest.raises(PipelineError, match=message):
        torch.compile(build("qwen2_vl"), backend="segmo", options={"pipeline": names})
