"""What every test gets: Hypothesis' profile, torch on one thread, and no GPU test without a GPU."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from hypothesis import HealthCheck, settings
from interpreter import end_child
from models import FAMILIES

# Derandomized, so that a run means the same everywhere. No deadline, because machines differ and are shared.
settings.register_profile(
    "segmo",
    derandomize=True,
    deadline=None,
    max_examples=30,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("exhaustive", settings.get_profile("segmo"), max_examples=200)
settings.load_profile("segmo")

# What the user's machine was measured to do is not read, nor written to, by tests and what they start.
os.environ["SEGMO_CACHE"] = tempfile.mkdtemp(prefix="segmo-tests-")

torch.set_num_threads(1)  # the tensors of tests are small, and pytest-xdist brings its own processes


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--exhaustive``: every combination and more random runs, where a test samples them by default."""
    parser.addoption("--exhaustive", action="store_true", help="all combinations, more random runs: much longer")


def pytest_configure(config: pytest.Config) -> None:
    """Before test modules are imported, whose own settings start from these."""
    if config.getoption("--exhaustive"):
        settings.load_profile("exhaustive")


def pytest_sessionfinish() -> None:
    """No process outlives the tests, and no folder."""
    end_child()
    shutil.rmtree(os.environ["SEGMO_CACHE"], ignore_errors=True)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``@pytest.mark.families("qwen3_vl", ...)``: these families, and with ``--exhaustive`` all known ones."""
    mark = metafunc.definition.get_closest_marker("families")
    if mark is not None:
        metafunc.parametrize("family", FAMILIES if metafunc.config.getoption("--exhaustive") else mark.args)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Tests that draw from torch's generator draw the same numbers whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def captured_layers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Of each graph that the test has captured, its decoder layers and its nodes: :func:`read_layers.captured`."""
    from read_layers import captured  # of transformers, which most tests do without

    return captured(monkeypatch)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """No compiled code from other tests: Dynamo stops compiling a function after a few models of the same class."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
