"""SegMo: a ``torch.compile`` backend that makes prefill of Video LLMs fast on long video.

``model.compile(backend="segmo")`` needs no import of this package. What stands here is for those who want more:
:func:`compile` sets everything up for a model, and :func:`last_report` says what was done.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segmo.api import compile, uncompile  # noqa: A004  # the name that torch uses too
    from segmo.compiler.launch import launched
    from segmo.errors import SegMoError
    from segmo.families import describe
    from segmo.memory.live import LiveAnswer, live
    from segmo.memory.memory import Memory
    from segmo.memory.watch import watch
    from segmo.options import Options
    from segmo.passes.runner import observe
    from segmo.report.history import collect_reports, last_report
    from segmo.report.report import Report
    from segmo.report.shown import show_prompt
    from segmo.runtime.external import external_scores


__version__ = "0.2.0"


class _PartsBesidePackage:
    """Finds ``segmo.passes`` and ``segmo.runtime`` beside this package, where a clone has them.

    A script that is started in a clone gets this folder in place of the installed package. The clone itself must not
    enter ``__path__``: it holds this package, so whoever walks the modules would find segmo.segmo.segmo without end.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        del path, target
        return PathFinder.find_spec(name, [str(_CLONE)]) if name in ("segmo.passes", "segmo.runtime") else None


_CLONE = Path(__file__).parent.parent
if not (Path(__file__).parent / "passes").exists():
    sys.meta_path.append(_PartsBesidePackage)

__all__ = [
    "LiveAnswer",
    "Memory",
    "Options",
    "Report",
    "SegMoError",
    "collect_reports",
    "compile",
    "describe",
    "external_scores",
    "last_report",
    "launched",
    "live",
    "observe",
    "show_prompt",
    "uncompile",
    "watch",
]

# Imported on first use, so that "import segmo" does not import torch.
_HOMES = {
    "compile": "segmo.api",
    "describe": "segmo.families",
    "uncompile": "segmo.api",
    "SegMoError": "segmo.errors",
    "LiveAnswer": "segmo.memory.live",
    "live": "segmo.memory.live",
    "Memory": "segmo.memory.memory",
    "watch": "segmo.memory.watch",
    "launched": "segmo.compiler.launch",
    "Options": "segmo.options",
    "Report": "segmo.report.report",
    "observe": "segmo.passes.runner",
    "last_report": "segmo.report.history",
    "collect_reports": "segmo.report.history",
    "external_scores": "segmo.runtime.external",
    "show_prompt": "segmo.report.shown",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'segmo' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
