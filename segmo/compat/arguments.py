"""Arguments that SegMo adds to a call of a model, which must be named parameters of what receives them.

``**kwargs`` swallows what it does not know. Up to transformers 5.17 it swallowed ``mm_encoder_outputs``, and with it
the video: the logits were those of a prompt without one, and nobody said so.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segmo.compat.versions import installed
from segmo.errors import VersionError

WHAT = "mm_encoder_outputs of the models' forward"
VERSIONS = "transformers 5.18 to 5.24"


def with_arguments(model: Any, inputs: Mapping[str, Any], **added: Any) -> dict[str, Any]:
    """The inputs of a model with arguments added to them.

    Args:
        model: what is called with them, or its ``generate``.
        inputs: arguments by name.
        **added: arguments that the caller of the model did not give.

    Raises:
        VersionError: see :func:`require_parameters`.
    """
    require_parameters(model, *added)
    return {**inputs, **added}


def require_parameters(model: Any, *names: str) -> None:
    """Refuses a model that would not read these arguments.

    The model itself and its ``base_model``, to which it hands them on, must both name them.

    Raises:
        VersionError: one of them takes an argument only through ``**kwargs``, or not at all.
    """
    for receiver in (model, getattr(model, "base_model", model)):
        known = inspect.signature(receiver.forward).parameters
        missing = [name for name in names if name not in known]
        if missing:
            raise VersionError(
                f"{type(receiver).__name__}.forward has no parameter {' and '.join(missing)}, so what SegMo hands it "
                f"there would be dropped without a word (transformers {installed('transformers')}). Install "
                '"transformers>=5.18"; in code of your own, name the parameter and read it as the models of '
                "transformers do"
            )


def fits() -> str | None:
    """A family of transformers must name the parameter; its file is read, because importing it takes a second."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "models" / "qwen2_vl" / "modeling_qwen2_vl.py"
    named = file.exists() and "mm_encoder_outputs:" in file.read_text(encoding="utf-8")
    return None if named else "Qwen2-VL's forward does not name it"
