"""Families are found by the config's model type."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from models import build, llava_onevision

from segmo.families import FAMILIES, family_of


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_models_have_mrope(model_type: str) -> None:
    family = family_of(build(model_type))
    assert family is not None
    assert family.model_type == model_type
    assert family.mrope


@pytest.mark.parametrize(("image_size", "patch_size", "cells"), [(28, 14, 1), (42, 14, 4), (384, 14, 14 * 14)])
def test_llava_onevision_counts_cells_rounding_up(image_size: int, patch_size: int, cells: int) -> None:
    model = llava_onevision(image_size, patch_size)
    family = family_of(model)
    assert family is not None
    assert not family.mrope
    assert family.trailing == 1
    assert family.cells_per_frame is not None
    assert family.cells_per_frame(model.config) == cells


def test_subclasses_and_compiled_models_match() -> None:
    model = build("qwen2_5_vl")

    class FineTune(type(model)):  # type: ignore[misc]
        pass

    assert family_of(FineTune(model.config)) is FAMILIES["qwen2_5_vl"]
    assert family_of(torch.compile(model)) is FAMILIES["qwen2_5_vl"]


def test_other_models_have_no_family() -> None:
    assert family_of(torch.nn.Linear(1, 1)) is None
    assert family_of(SimpleNamespace(config=SimpleNamespace(model_type="llama"))) is None
    assert family_of(None) is None


def test_names_are_the_model_types() -> None:
    assert all(name == family.model_type for name, family in FAMILIES.items())
    assert all(family.mrope or family.cells_per_frame for family in FAMILIES.values())
