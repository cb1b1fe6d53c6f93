"""The ``segmo`` backend as ``torch.compile`` finds it: the compiler of graphs, and the calls around them.

torch imports this module when it looks the backend up (entry point group ``torch_dynamo_backends``).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from segmo.calls.call import Call
from segmo.calls.frames import choose_in_generate, choose_nowhere
from segmo.calls.inner import inner_model, inner_models
from segmo.calls.optimized import optimized, reaching
from segmo.calls.standing import stand_in_place
from segmo.checked import made_folder
from segmo.compat import flags
from segmo.compat.chunk_loops import make_loops_opaque
from segmo.compat.dynamo import SWITCHED_OFF, OptimizedModule, switched_off
from segmo.compat.joining import Asked, join
from segmo.compiler.backend import inductor_settings, segmo
from segmo.errors import OptionError
from segmo.options import Options, check_frames
from segmo.passes.pipeline import build_pipeline, check_order

__all__ = ["segmo"]


def _compiled(asked: Asked) -> Any:
    """What the user of ``torch.compile(..., backend="segmo")`` gets.

    A module and a model's own methods are called by SegMo's :class:`Call`. A function of the user's is compiled as
    torch does: what it calls is seen in its graphs alone.

    Raises:
        OptionError: a wrong option, a folder for reports that cannot be written into, or a module that holds several
            Video LLMs, or copies of one.
        PipelineError: an unknown pass, or SegMo's own in another order.
    """
    given, method = _given(asked.target)
    if given is None or not inner_models(given):
        asked.hold(flags.hold_limit)
        return asked.plain(asked.target)
    model = inner_model(given)
    make_loops_opaque()  # of the model's own module, if it was imported after this one
    options = Options.parse(asked.options)
    inductor_settings(asked.mode)
    check_frames(options.frames, options.scorer)
    check_order(build_pipeline(options))
    if options.report is not None:
        made_folder(Path(options.report))
    asked.hold(flags.hold)
    asked.count_apart()
    if method == "forward":
        return _forward(asked, given, model, options)
    call, how = Call(model, model._call_impl, options, asked), asked.how()
    if method is None:
        return optimized(asked.plain(given), call, how)
    choose_nowhere(model)
    stands = stand_in_place(call, how)
    if options.frames < 1:
        choose_in_generate(model)
    return stands if given is model else given._call_impl


def _forward(asked: Asked, given: torch.nn.Module, model: Any, options: Options) -> Any:
    """For ``model.forward = torch.compile(model.forward, backend="segmo")``.

    Raises:
        OptionError: frames are to be chosen, which takes more of the model than its forward.
    """
    if options.frames < 1:
        raise OptionError("frames below 1 takes the model, and not its forward alone: torch.compile(model, ...)")
    if given is not model:
        return reaching(Call(model, model._call_impl, options, asked), asked.target)
    call = Call(model, asked.target, options, asked)
    call.attention.hold()
    return call


def _given(target: Any) -> tuple[torch.nn.Module | None, str | None]:
    """The module that is compiled, and by which of its methods; None for another function."""
    if isinstance(target, torch.nn.Module):
        while isinstance(target, OptimizedModule):  # compiled before: as torch does it, what that was made of
            target = target._orig_mod
        return target, None
    owner, name = getattr(target, "__self__", None), getattr(target, "__name__", None)
    if isinstance(owner, torch.nn.Module) and name in ("_call_impl", "forward"):
        return owner, name
    return None, None


join(segmo, _compiled)
if switched_off():
    warnings.warn(SWITCHED_OFF, stacklevel=1)
