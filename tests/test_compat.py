"""What leans on the inside of torch and transformers: that it fits here, and what it cures."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.symbolic_convert import InstructionTranslatorBase

import segmo.compat
import segmo.passes
import segmo.runtime
from segmo.compat import cache_name, flags, groups, joining, parts, placeholder_check, symbolic_messages, versions
from segmo.errors import SegMoError, VersionError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.mark.parametrize("part", parts.PARTS, ids=lambda part: part.__name__.rpartition(".")[2])
def test_every_part_fits_here_and_says_what_it_is_for(part: parts.Part) -> None:
    assert part.fits() is None
    assert part.WHAT
    assert re.search(r"(torch|transformers) \d", part.VERSIONS)


def test_every_file_that_leans_on_something_is_on_the_list() -> None:
    files = {found.name for found in pkgutil.iter_modules(segmo.compat.__path__)} - {"parts", "versions"}
    assert files == {part.__name__.rpartition(".")[2] for part in parts.PARTS}  # type: ignore[attr-defined]


# Modules that torch and transformers may change without a word. Their public names, and transformers' classes of caches
# and models, are used where they are needed.
PRIVATE = re.compile(r"torch(\.\w+)*\._(?!functional_collectives|pytree)|transformers\.(masking_utils|utils)")


def test_nothing_else_imports_what_is_private() -> None:
    folders = [*segmo.__path__, *segmo.passes.__path__, *segmo.runtime.__path__]
    for path in (path for folder in folders for path in Path(folder).rglob("*.py")):
        if path.parent.name == "compat":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not [name for name in names if PRIVATE.match(name)], (
                f"{path}:{node.lineno}: put it into segmo/compat"
            )


def installed(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(versions, "installed", lambda package: found.get(package, "5.23.0"))


@pytest.mark.parametrize(
    ("torch_version", "transformers_version", "named"),
    [
        ("2.10.0", "5.23.0", r"torch 2\.11 to 2\.15, and torch 2\.10\.0 is installed"),
        ("2.14.1+cpu", "5.17.4", r"transformers 5\.18 to 5\.24, and transformers 5\.17\.4 is installed.*video"),
        ("2.14.1", "4.57.1", r"transformers 4\.57\.1"),
    ],
)
def test_older_versions_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, transformers_version: str, named: str
) -> None:
    installed(monkeypatch, torch=torch_version, transformers=transformers_version)
    with pytest.raises(VersionError, match=named) as caught:
        versions.check_versions()
    assert isinstance(caught.value, SegMoError)


@pytest.mark.parametrize("found", [{"torch": "2.11.0a0+nv26.3"}, {"torch": "2.15.7"}, {"transformers": "5.18.0.dev0"}])
def test_builds_inside_the_range_are_taken_in_silence(monkeypatch: pytest.MonkeyPatch, found: dict[str, str]) -> None:
    installed(monkeypatch, **{"torch": "2.14.1", **found})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check_versions()


def test_newer_versions_are_one_warning_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch="2.16.0.dev20270101", transformers="6.0.0")
    with pytest.warns(UserWarning, match=r"torch 2\.16\.0\.dev20270101 .*transformers 6\.0\.0 .*report") as caught:
        versions.check_versions()
    assert len(caught) == 1


def test_what_is_not_installed_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda package: None)
    versions.check_versions()


def test_a_part_that_no_longer_fits_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(InstructionTranslatorBase, "_format_value")
    assert not symbolic_messages.keep_counts_symbolic()
    with pytest.warns(UserWarning, match=r"_format_value: .*report"):
        parts.warn_of_misfits()


class New:
    """A model as transformers has them from 5.24 on."""

    def forward(self, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> None: ...


class Old:
    """A model as transformers had them before."""

    def forward(self, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> None: ...


def test_a_cache_is_known_by_both_of_its_names() -> None:
    cache = object()
    for model, name, other in ((Old(), "past_key_values", "cache"), (New(), "cache", "past_key_values")):
        assert cache_name.cache_name(model) == name
        for given in (name, other):
            assert cache_name.cache_of({given: cache}) is cache
            found = cache_name.with_cache_as(name, {"input_ids": 1, given: cache, "use_cache": True})
            assert found == {"input_ids": 1, name: cache, "use_cache": True}
        assert cache_name.with_cache_as(name, {"input_ids": 1, other: None}) == {"input_ids": 1, other: None}


def test_a_group_is_found_where_names_have_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(groups.c10d, "GroupName", raising=False)
    assert groups.fits() is None


def merged(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """As the families of today merge: a condition that is a tensor."""
    from transformers.utils.import_utils import torch_compilable_check

    torch_compilable_check(
        mask.sum() * embeds.shape[-1] == features.numel(), f"{mask.sum()} tokens, {features.shape[0]} features"
    )
    return embeds.masked_scatter(mask[..., None], features) * 2


def merged_by_size(embeds: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """As Gemma 4 does: a condition on the size of what the mask picks."""
    from transformers.utils.import_utils import torch_compilable_check

    mask = mask[..., None].expand_as(embeds)
    torch_compilable_check(embeds[mask].numel() == features.numel(), f"other than {features.shape[0]} features")
    return embeds.masked_scatter(mask, features) * 2


@pytest.mark.parametrize("merge", [merged, merged_by_size])
def test_the_check_of_a_merge_is_an_assertion_of_its_one_graph(merge: Any, request: pytest.FixtureRequest) -> None:
    import segmo.compiler.backend  # noqa: F401  # sets Dynamo up

    graphs = []

    def backend(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(gm)
        return gm.forward

    request.addfinalizer(flags.hold())
    compiled = torch.compile(merge, backend=backend, dynamic=True, fullgraph=True)
    for tokens in (4, 6, 7):
        mask = torch.arange(10)[None] < tokens
        embeds, features = torch.randn(1, 10, 3), torch.randn(tokens, 3)
        torch.testing.assert_close(compiled(embeds, mask, features), merge(embeds, mask, features))
        for wrong in (torch.randn(tokens + 1, 3), torch.randn(tokens - 1, 3)):
            with pytest.raises(RuntimeError, match="placeholder"):
                compiled(embeds, mask, wrong)
            with pytest.raises(ValueError, match="features"):  # as transformers says it, eagerly
                merge(embeds, mask, wrong)
    assert len(graphs) == 1
    targets = [node.target for node in graphs[0].graph.nodes]
    assert torch._assert_async in targets
    assert not {torch._check, torch.ops.aten._local_scalar_dense.default} & set(targets)
    assert not placeholder_check.fits()


def test_settings_hold_while_something_of_this_backend_runs_in_any_thread_and_nowhere_else() -> None:
    seen: dict[str, list[bool]] = {"ours": [], "other": []}

    def ours(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        seen["ours"].append(torch._dynamo.config.capture_scalar_outputs)
        return gm.forward

    def other(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        seen["other"].append(torch._dynamo.config.capture_scalar_outputs)
        return gm.forward

    def handler(asked: joining.Asked) -> Any:
        asked.hold(flags.hold)
        return asked.plain(asked.target)

    joining.join(ours, handler)
    compiled = {name: torch.compile(lambda x: x + 1, backend=each) for name, each in (("ours", ours), ("other", other))}
    for call in compiled.values():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(call, torch.ones(3)).result()
        call(torch.ones(2, 3))
    assert seen == {"ours": [True, True], "other": [False, False]}
    assert not torch._dynamo.config.capture_scalar_outputs


def test_a_handler_s_result_is_what_torch_compile_gives() -> None:
    def backend(gm: torch.fx.GraphModule, inputs: Any, *, options: Any = None, mode: Any = None) -> Any:
        return gm.forward

    joining.join(backend, lambda asked: asked)
    asked = torch.compile(torch.sin, backend=backend, options={"keep": 1}, dynamic=False, fullgraph=True)
    assert asked.target is torch.sin
    assert asked.how() == {"options": {"keep": 1}, "dynamic": False, "fullgraph": True}
    assert torch.compile(torch.sin, backend=backend, mode="reduce-overhead").how() == {
        "mode": "reduce-overhead",
        "fullgraph": False,
    }


OLDER = """
import importlib.metadata as metadata, sys
real = metadata.version
metadata.version = lambda name: "5.17.3" if name == "transformers" else real(name)
import torch, segmo
for use in (lambda: torch.compile(torch.nn.Linear(2, 2), backend="segmo")(torch.ones(1, 2)), lambda: segmo.compile):
    try:
        use()
    except segmo.SegMoError as error:
        print(type(error).__name__, error)
    else:
        sys.exit("nothing was refused")
"""


def test_the_backend_and_segmo_compile_are_refused_under_an_older_transformers() -> None:
    done = subprocess.run([sys.executable, "-c", OLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("VersionError SegMo is for transformers 5.18 to 5.24, and") for line in said)
