"""What ``generate`` is doing while it calls a model, which the call itself does not say: read from its own variables.

Assisted decoding puts candidates behind the prompt of its first call. A chunked prefill hands out a part of the prompt
as if it were a whole one. ``generate`` keeps the sizes of a video's frames to itself once that is encoded.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

from segmo.compat.versions import installed

WHAT = "transformers.generation.GenerationMixin.generate, _assisted_decoding and _prefill"
VERSIONS = "transformers 5.18 to 5.24"

_WHERE = "transformers.generation.utils"
_READ = {"_assisted_decoding": "candidate_length", "_prefill": "input_chunks", "generate": "kwargs"}


def candidates() -> int:
    """Tokens at the end of the running call's prompt that are guesses at the answer; 0 outside of assisted decoding."""
    return int(_running("_assisted_decoding") or 0)


def chunks() -> int:
    """Parts into which the prompt of the running call was cut; 1 for a whole one."""
    return len(_running("_prefill") or (None,))


def arguments() -> dict[str, Any]:
    """What the running ``generate`` was called with, by name; nothing outside of one."""
    variables = _variables("generate")
    given = dict(variables.get(_READ["generate"]) or {})
    if variables.get("inputs") is not None:  # the ids, by place or under this name
        given.setdefault("input_ids", variables["inputs"])
    return given


def _running(method: str) -> Any:
    """The variable of a method of ``generate`` that the running call came from; None if it came another way."""
    return _variables(method).get(_READ[method])


def _variables(method: str) -> dict[str, Any]:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == method and frame.f_globals.get("__name__") == _WHERE:
            return frame.f_locals
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return {}


def fits() -> str | None:
    """Where there is a transformers, both methods have to be there with these variables."""
    try:
        from transformers import GenerationMixin
    except ImportError:
        return "transformers has no GenerationMixin" if installed("transformers") else None
    for method, name in _READ.items():
        found = inspect.unwrap(getattr(GenerationMixin, method, lambda: None))
        if found.__module__ != _WHERE or name not in found.__code__.co_varnames:
            return f"{method} of {_WHERE} has no {name}"
    return None
