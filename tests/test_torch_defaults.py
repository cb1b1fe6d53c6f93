"""What a program has set for tensors that are made without a dtype or device says nothing about SegMo's own."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from models import build, prompt
from test_ask import QUESTION
from test_watch import generate, question_of
from torch import Tensor

import segmo
from segmo.ask.ask import Asker
from segmo.ask.checkpoint import load
from segmo.ask.settings import Settings
from segmo.options import Options
from segmo.sceneqa.files import write_sample
from segmo.sceneqa.task import DIFFICULTIES, make_sample

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@contextmanager
def dtype(default: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# No values can be read of a tensor on "meta", as another device than the model's would refuse to be mixed with it.
DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "bfloat16": lambda: dtype(torch.bfloat16),
    "float64": lambda: dtype(torch.float64),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3_vl", {"segments": 2, "context": 1, "tails": 1}),
        ("llava_onevision", {"scorer": "attention", "layer": 1}),
        ("qwen3_vl", {"frames": 0.5, "keep": 0.25}),
    ],
    ids=["defaults", "attention", "frames"],
)
def test_a_prefill_and_its_answer(family: str, options: dict[str, Any]) -> None:
    model, inputs = build(family), prompt(family, frames=8)

    def answer() -> Tensor:
        torch.compiler.reset()
        segmo.compile(model, strict=True, **{"keep": 0.5, **options})
        ids: Tensor = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return ids

    expected = answer()
    for default, block in DEFAULTS.items():
        with block():
            assert torch.equal(answer(), expected), default


@pytest.mark.families("qwen3_vl", "llava_onevision")
def test_a_memory(family: str, tmp_path: Path) -> None:
    model, inputs = build(family), prompt(family, frames=9)
    question = question_of(inputs)

    def answers(folder: Path) -> list[Tensor]:
        memory = segmo.watch(model, None, inputs, keep=0.4)
        first = memory.ask(question, max_new_tokens=2)
        memory.save(folder)
        loaded = segmo.Memory.load(model, folder)
        return [first, loaded.ask(question, max_new_tokens=2), generate(model, loaded.inputs(question))[0]]

    expected = answers(tmp_path / "as ever")
    for default, block in DEFAULTS.items():
        with block():
            found = answers(tmp_path / default)
        assert all(map(torch.equal, found, expected)), default


def test_a_file(tmp_path: Path) -> None:
    clip = write_sample(make_sample("test", DIFFICULTIES["easy"], 1, 2), tmp_path / "clip.mp4")
    loaded = load()

    def answer() -> str:
        return Asker(loaded, Settings(Options(keep=0.5), new_tokens=1)).ask(clip, QUESTION).text

    expected = answer()
    for default, block in DEFAULTS.items():
        with block():
            assert answer() == expected, default


FLOATS = {"empty", "eye", "linspace", "ones", "rand", "randn", "zeros"}


def test_every_float_is_made_with_a_dtype() -> None:
    root = Path(__file__).parent.parent
    files = [path for part in ("segmo", "runtime", "passes") for path in (root / part).rglob("*.py")]
    calls = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text()))]
    bare = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path, node in calls
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in FLOATS
        and "dtype" not in {keyword.arg for keyword in node.keywords}
    ]
    assert bare == []
