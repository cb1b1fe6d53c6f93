"""SegMo: a ``torch.compile`` backend that makes prefill of Video LLMs fast on long video.

``model.compile(backend="segmo")`` needs no import of this package. What stands here is for those who want more:
:func:`compile` sets everything up for a model, and :func:`last_report` says what was done.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmo.api import compile, uncompile  # noqa: A004  # the name that torch uses too
    from segmo.errors import SegMoError
    from segmo.history import collect_reports, last_report
    from segmo.launch import launched
    from segmo.options import Options
    from segmo.passes.runner import observe
    from segmo.report import Report
    from segmo.runtime.external import external_scores
    from segmo.shown import show_prompt

# A script that is started in a clone gets this folder in place of the installed package. There the package's other two
# parts, segmo.passes and segmo.runtime, lie beside it.
if not (Path(__file__).parent / "passes").exists():
    __path__.append(str(Path(__file__).parent.parent))

__all__ = [
    "Options",
    "Report",
    "SegMoError",
    "collect_reports",
    "compile",
    "external_scores",
    "last_report",
    "launched",
    "observe",
    "show_prompt",
    "uncompile",
]

# Imported on first use, so that "import segmo" does not import torch.
_HOMES = {
    "compile": "segmo.api",
    "uncompile": "segmo.api",
    "SegMoError": "segmo.errors",
    "launched": "segmo.launch",
    "Options": "segmo.options",
    "Report": "segmo.report",
    "observe": "segmo.passes.runner",
    "last_report": "segmo.history",
    "collect_reports": "segmo.history",
    "external_scores": "segmo.runtime.external",
    "show_prompt": "segmo.shown",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segmo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
