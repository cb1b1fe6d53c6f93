"""``segmo.compile(model, ...)``: everything that a model needs, in one call."""

from __future__ import annotations

from typing import Any, TypeVar

from segmo.calls.backend import segmo
from segmo.calls.frames import choose_nowhere
from segmo.calls.inner import inner_model, inner_models
from segmo.calls.standing import leave, standing_call
from segmo.compat.dynamo import SWITCHED_OFF, switched_off
from segmo.errors import NotRewrittenError
from segmo.options import Options, check_frames
from segmo.report.history import forget

_Given = TypeVar("_Given")


def compile(model: _Given, *, dynamic: bool | None = True, **options: Any) -> _Given:  # noqa: A001  # torch's name too
    """Compiles a transformers Video LLM in place with the ``segmo`` backend.

    Does what ``model.compile(backend="segmo", dynamic=True, options=options)`` does, to the model that is really
    called: the one inside a PEFT model, a pipeline, or a wrapper of the user's.

    Args:
        model: any transformers model that takes video and generates text, or what holds one; changed in place.
        dynamic: as for ``torch.compile``; with True one graph serves all lengths of video.
        **options: see :class:`segmo.options.Options`.

    Returns:
        The same model.

    Raises:
        OptionError: a wrong option, or a model that takes no video.
        NotRewrittenError: under ``strict=True``, torch.compile is switched off.
    """
    parsed = Options.parse(options)
    if parsed.strict and switched_off():
        raise NotRewrittenError(SWITCHED_OFF)
    check_frames(parsed.frames, parsed.scorer)
    inner: Any = inner_model(model)
    uncompile(inner)
    inner.compile(backend=segmo, dynamic=dynamic, options=parsed.as_dict())
    return model


def compiled_with(model: Any) -> Options | None:
    """The options under which a model is compiled in place; None if it is as it was."""
    call = standing_call(inner_model(model))
    return None if call is None else call.options


def uncompile(model: _Given) -> _Given:
    """Brings a model that was compiled in place back to how it was loaded, its attention implementation included."""
    for inner in inner_models(model):
        forget(inner)
        leave(inner)
        choose_nowhere(inner)
    return model
