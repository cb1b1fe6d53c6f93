"""`segmo inspect` of every family of the table, from a folder that holds a config and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_every_family import AS_IT_IS, KINDS, NO_CUT
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from video_families import FAMILIES, expect_family, tiny_config

from segmo.errors import OptionError
from segmo.inspection.fewer import DEEP, VOCABULARY, fewer
from segmo.inspection.models import NARROW, build, load_config, shrink
from segmo.inspection.run import capture_subject, generate, inspect_subject, subject

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# What they are is found by trying; their graphs are looked at with --exhaustive.
CAPTURED = (*KINDS[-3:], "perception_lm")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_config_is_enough(family: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    tiny_config(family, FAMILIES[family]).save_pretrained(tmp_path)
    try:
        given = subject(str(tmp_path), frames=6)
    except OptionError as error:
        if "requires the timm library" in str(error):  # of one family in an older transformers
            pytest.skip(str(error))
        raise
    if family in AS_IT_IS or (family not in CAPTURED and not request.config.getoption("--exhaustive")):
        assert generate(given, None, 1).sequences.shape[1] == given.inputs["input_ids"].shape[1] + 1
        return
    report = inspect_subject(given, {"keep": 0.5, "segments": 2})
    tokens, prefill = report.to_dict()["tokens"], report.prefill
    assert "prefill" in [graph.kind for graph in report.graphs]
    assert tokens["kept"] == (tokens["video"] if family in NO_CUT else tokens["video"] // 2)
    assert prefill is not None
    assert int(prefill.frame.max()) == 5


@pytest.mark.parametrize("family", ["internvl", "gemma4"])
def test_a_name_is_enough_where_the_default_config_can_be_built(family: str) -> None:
    """Frames behind tags of one form, an encoder that is there only if asked for, and a layer of each kind."""
    expect_family(family)
    given = subject(family, frames=6)
    report = capture_subject(given, {"keep": 0.5})
    kinds = getattr(given.model.config.get_text_config(), "layer_types", None) or []
    assert report.graphs[0].kind == "prefill"
    assert [record.matches for record in report.graphs[0].passes if record.name == "select-tokens"] == [1]
    assert family != "gemma4" or set(kinds) == {"sliding_attention", "full_attention"}


@pytest.mark.parametrize("layers", [3, DEEP + 2])
def test_layers_that_are_asked_for_are_there(layers: int) -> None:
    model = build(shrink(load_config("internvl", layers), layers))
    assert len(model.model.language_model.layers) == layers


def test_what_a_config_says_of_single_layers_goes_round() -> None:
    """Gemma 4's heads are wider in layers that see everything."""
    expect_family("gemma4")
    model = build(shrink(load_config("gemma4", 42), 42))
    attentions = [layer.self_attn for layer in model.model.language_model.layers]
    assert len(attentions) == 42
    assert {attention.head_dim == 512 for attention in attentions if not attention.is_sliding} == {True}
    assert {attention.head_dim for attention in attentions if attention.is_sliding} == {256}


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {*NARROW, "qwen3_omni_moe"}))
def test_a_large_config_has_less_of_what_makes_it_large(family: str) -> None:
    """Its widths and the kinds of its layers stay, and its special tokens stand in the vocabulary that is left."""
    if family not in CONFIG_MAPPING:
        pytest.skip("of a later transformers")
    whole = CONFIG_MAPPING[family]()
    before, small = whole.to_dict(), fewer(whole)
    text, less = whole.get_text_config(), small.get_text_config()
    assert whole.to_dict() == before
    assert less.vocab_size <= max(VOCABULARY, 1)
    assert less.num_hidden_layers <= max(DEEP, len(set(getattr(text, "layer_types", None) or [])) * 6)
    assert set(getattr(less, "layer_types", None) or []) == set(getattr(text, "layer_types", None) or [])
    assert less.hidden_size == text.hidden_size
    ids = [value for part in (small, less) for name, value in vars(part).items() if name.endswith("token_id")]
    assert all(token < less.vocab_size for token in ids if isinstance(token, int))
