"""``segmo.compile(model, ...)``: everything that a model needs, in one call."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed

from segmo.compat.arguments import require_parameters, with_arguments
from segmo.compat.recompiles import isolated
from segmo.errors import OptionError, SegMoError
from segmo.families import FAMILIES, family_of
from segmo.options import Options, check_frames
from segmo.report.history import forget
from segmo.runtime.cuts import call_and_mark
from segmo.runtime.distributed.session import check_dealt, memory_explained
from segmo.upstream.encoder import choose_before_encoding, encode_all
from segmo.upstream.prompt import prompt_known

_PIXELS = {"video": "pixel_values_videos", "image": "pixel_values"}


def compile(  # noqa: A001  # the name that torch uses too
    model: torch.nn.Module, *, dynamic: bool | None = True, **options: Any
) -> torch.nn.Module:
    """Compiles a transformers Video LLM in place with the ``segmo`` backend.

    Does what ``model.compile(backend="segmo", dynamic=True, options=options)`` does, and lets a direct
    ``model(**inputs)`` run the vision encoder and the position ids before the graph, as ``generate`` does, so that
    the video enters inside the decoder's graph.

    Args:
        model: a model of a known family (``segmo.families.FAMILIES``), changed in place.
        dynamic: as for ``torch.compile``; with True one graph serves all lengths of video.
        **options: see :class:`segmo.options.Options`.

    Returns:
        The same model.

    Raises:
        OptionError: a wrong option, or a model of an unknown family.
    """
    parsed = Options.parse(options)
    if family_of(model) is None:
        found = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise OptionError(f"SegMo does not know the model family {found!r}; known: {', '.join(FAMILIES)}")
    check_frames(parsed.frames, parsed.scorer)
    uncompile(model)
    # Graphs of other models, and of this one under other options, do not count towards Dynamo's limit of graphs.
    model.compile(backend="segmo", dynamic=dynamic, options=parsed.as_dict(), **isolated())
    untyped: Any = model
    if parsed.frames < 1:
        choose_before_encoding(untyped, parsed)
    compiled = untyped._compiled_call_impl

    @functools.wraps(compiled)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            named = _named(untyped, args, kwargs)
            with memory_explained(), prompt_known(named):
                inputs = _encoded(untyped, named)
                result = call_and_mark(compiled, inputs)
                check_dealt(inputs)
                return result
        except BackendCompilerFailed as failure:  # Dynamo's wrapping hides what was wrong behind how it was found
            if isinstance(failure.inner_exception, SegMoError):
                raise failure.inner_exception from None
            raise

    call.options = parsed  # type: ignore[attr-defined]
    untyped._compiled_call_impl = call
    return model


def compiled_with(model: torch.nn.Module) -> Options | None:
    """The options of the :func:`compile` under which a model stands; None if it is as it was."""
    untyped: Any = model
    return getattr(untyped._compiled_call_impl, "options", None)


def uncompile(model: torch.nn.Module) -> torch.nn.Module:
    """Brings a model that was compiled in place back to eager."""
    forget(model)
    untyped: Any = model
    untyped._compiled_call_impl = None
    encode_all(untyped)
    return model


def _named(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    if not args:
        return kwargs
    given = inspect.signature(model.forward).bind_partial(*args).arguments
    twice = given.keys() & kwargs.keys()
    if twice:
        raise TypeError(f"{type(model).__name__}: {', '.join(sorted(twice))} given by place and by name")
    return {**given, **kwargs}


def _encoded(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a direct call with pixels encoded and M-RoPE positions computed; others as they are."""
    pixels = {kind: name for kind, name in _PIXELS.items() if inputs.get(name) is not None}
    if not pixels or inputs.get("mm_encoder_outputs") is not None:
        return inputs
    base = model.base_model
    added: dict[str, Any] = {"mm_encoder_outputs": {}}
    require_parameters(model, *added)
    if hasattr(base, "compute_3d_position_ids") and inputs.get("position_ids") is None:
        wanted = inspect.signature(base.compute_3d_position_ids).parameters
        known = {name: inputs.get(name) for name in wanted if name != "kwargs"}
        if known.get("inputs_embeds") is None and known.get("input_ids") is not None:
            added["position_ids"] = base.compute_3d_position_ids(**known)
    used = set()
    for kind in pixels:
        encode = getattr(base, f"get_{kind}_features")
        names = [name for name in inspect.signature(encode).parameters if inputs.get(name) is not None]
        used.update(names)
        added["mm_encoder_outputs"][kind] = encode(**{name: inputs[name] for name in names}, return_dict=True)
    given = {name: value for name, value in inputs.items() if name not in used}
    return with_arguments(model, given, **added)
