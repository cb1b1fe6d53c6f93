"""Options: what is taken, what is refused, and that the message helps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, prompt

import segmo
from segmo.errors import OptionError, SegMoError
from segmo.options import LOWERINGS, SCORERS, Options

NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3))

VALID: dict[str, st.SearchStrategy[Any]] = {
    "keep": st.one_of(st.just(1), st.floats(0, 1, exclude_min=True)),
    "frames": st.one_of(st.just(1), st.floats(0, 1, exclude_min=True)),
    "segments": st.one_of(st.just("scene"), st.integers(1, 10**6), st.integers(1, 99).map(lambda n: f"equal:{n}")),
    "context": st.integers(0, 10**6),
    "tails": st.integers(0, 10**6),
    "scorer": st.sampled_from(SCORERS),
    "layer": st.integers(0, 200),
    "balance": st.one_of(st.integers(0, 1), st.floats(0, 1)),
    "lowering": st.sampled_from(LOWERINGS),
    "pipeline": st.one_of(st.none(), st.just("select-tokens,segment-attention{by=equal}")),
    "disable": st.one_of(st.just(()), st.just(("inject-context",))),
    "ranks": st.sampled_from([None, "all", "0"]),
    "report": st.one_of(st.none(), st.just("out")),
    "strict": st.booleans(),
}

INVALID = [
    ("keep", 0),
    ("keep", 1.5),
    ("keep", float("nan")),
    ("keep", -0.25),
    ("keep", True),
    ("keep", "0.5"),
    ("keep", 10**400),
    ("frames", 0),
    ("frames", 8),
    ("segments", 0),
    ("segments", True),
    ("segments", 2.0),
    ("segments", "scenes"),
    ("segments", "equal:0"),
    ("segments", "equal:3 "),
    ("segments", "equal:-1"),
    ("context", -1),
    ("tails", -1),
    ("tails", 0.5),
    ("context", 1.0),
    ("context", None),
    ("scorer", "clip"),
    ("scorer", ["embedding"]),
    ("layer", -1),
    ("balance", 1.01),
    ("balance", float("inf")),
    ("lowering", "Flash"),
    ("pipeline", 3),
    ("disable", 5),
    ("disable", [1]),
    ("disable", {"select-tokens": True}),
    ("ranks", 1),
    ("ranks", ""),
    ("report", 1),
    ("strict", 1),
]


@given(values=st.fixed_dictionaries({}, optional=VALID))
def test_allowed_values_are_taken_and_survive_json(values: dict[str, Any]) -> None:
    options = Options.parse(values)
    for name, value in values.items():
        assert getattr(options, name) == value
    assert Options.parse(json.loads(json.dumps(options.as_dict()))) == options


def test_every_option_has_a_strategy_and_help() -> None:
    fields = dataclasses.fields(Options)
    assert [option.name for option in fields] == list(VALID)
    assert all(option.metadata["help"] and option.metadata["allowed"] for option in fields)


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(OptionError) as error:
        Options.parse({name: value})
    allowed = {option.name: option.metadata["allowed"] for option in dataclasses.fields(Options)}
    assert repr(name) in str(error.value)
    assert allowed[name] in str(error.value)


@given(value=NUMBERS)
def test_keep_is_refused_or_in_range(value: object) -> None:
    try:
        keep = Options.parse({"keep": value}).keep
    except OptionError:
        return
    assert 0 < keep <= 1


def test_an_unknown_key_names_the_nearest_and_all_known_ones() -> None:
    with pytest.raises(OptionError, match=r"unknown option 'segment'; did you mean 'segments'\? Known options: keep,"):
        Options.parse({"segment": 4})
    with pytest.raises(OptionError, match=r"unknown option 'zzz'\. Known options"):
        Options.parse({"zzz": 4})
    with pytest.raises(OptionError, match="unknown option 3"):
        Options.parse({3: 4})  # type: ignore[dict-item]


@pytest.mark.parametrize("options", [5, "keep=0.5", ["keep"]])
def test_options_that_are_no_mapping_are_refused(options: Any) -> None:
    with pytest.raises(OptionError, match="must be a mapping"):
        Options.parse(options)


def test_nothing_given_is_the_defaults() -> None:
    assert Options.parse(None) == Options.parse({}) == Options()


def test_lists_paths_and_single_names_are_brought_to_form() -> None:
    options = Options.parse(
        {"disable": "select-tokens", "pipeline": ["a", "b{x=1}"], "report": Path("out") / "reports"}
    )
    assert options.disable == ("select-tokens",)
    assert options.pipeline == "a,b{x=1}"
    assert options.report == str(Path("out") / "reports")
    assert Options.parse({"disable": ["a", "b"]}).disable == ("a", "b")
    assert Options.parse({"disable": None}).disable == ()


def test_options_cannot_be_changed_and_errors_are_segmos() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().keep = 0.5  # type: ignore[misc]
    assert issubclass(OptionError, SegMoError)
    assert issubclass(OptionError, ValueError)


@pytest.mark.usefixtures("fresh_dynamo")
def test_numbers_of_numpy_are_numbers() -> None:
    options = Options(keep=np.float64(0.5), balance=np.float32(0.25), segments=np.int64(2), strict=np.bool_(True))
    assert options == Options(keep=0.5, balance=0.25, segments=2, strict=True)
    model = segmo.compile(build("qwen2_vl"), keep=np.linspace(0, 1, 3)[1], segments=2)
    with torch.no_grad():
        model(**prompt("qwen2_vl"))
    assert segmo.last_report().prefill.tokens()["kept"] == 12
