"""The ``segmo`` backend of ``torch.compile``, found by name through the entry point group ``torch_dynamo_backends``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.exc import RestartAnalysis
from torch.fx import GraphModule

from segmo.capture import calling_model, set_up_dynamo
from segmo.errors import CompileError, NotRewrittenError, SegMoError
from segmo.options import Options
from segmo.passes.analyse import analyse
from segmo.passes.pipeline import build_pipeline
from segmo.passes.runner import Result, run_pipeline
from segmo.report import GraphReport, Prefill, Report, ran, report_for

log = logging.getLogger(__name__)

SETUP = set_up_dynamo()


def segmo(
    gm: GraphModule, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compiles one graph that Dynamo captured.

    Args:
        gm: the graph.
        example_inputs: its inputs in the traced call.
        options: see :class:`segmo.options.Options`.

    Raises:
        OptionError: an unknown option, or one with a wrong type or range.
        NotRewrittenError: under ``strict=True``, a pass did not apply to a prefill with video.
        CompileError: a pass or the lowering failed. The model is never run as it was instead.
    """
    try:
        return _compile(gm, example_inputs, Options.parse(options))
    except (SegMoError, RestartAnalysis):  # the latter is how a lowering asks Dynamo to trace once more
        raise
    except Exception as error:  # Dynamo runs the model eagerly after some exceptions; ours is not one of them
        raise CompileError(f"SegMo could not compile a graph: {type(error).__name__}: {error}") from error


def _compile(gm: GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    passes = build_pipeline(options)
    model = calling_model()
    facts = analyse(gm, getattr(model, "config", None))
    result = run_pipeline(gm, facts, options, passes)
    run = _lower(gm, example_inputs, options)
    report = report_for(model, options, SETUP)
    graph = report.add(facts.kind, result)
    report.save()
    _complain(graph, options)
    return _recording(run, result, report)


def _complain(graph: GraphReport, options: Options) -> None:
    """A pass that should have applied and did not is an error under ``strict``, and one warning otherwise."""
    lost = graph.unexpected()
    if not lost:
        return
    text = "; ".join(f"{name}: {miss.reason} (to change that: {miss.remedy})" for name, miss in lost)
    message = f"SegMo left a {graph.kind} graph as it was. {text}"
    if options.strict:
        raise NotRewrittenError(message)
    warnings.warn(message, stacklevel=2)


def _lower(gm: GraphModule, example_inputs: Sequence[Any], options: Options) -> Callable[..., Any]:
    """The rest of the graph: inductor on GPUs or on request, as it is otherwise (inductor is slower on the CPU)."""
    on_gpu = any(isinstance(x, torch.Tensor) and x.device.type != "cpu" for x in example_inputs)
    if options.lowering == "inductor" or (options.lowering == "auto" and on_gpu):
        from torch._inductor.compile_fx import compile_fx

        try:
            compiled: Any = compile_fx(gm, list(example_inputs))
        except Exception as error:
            if not torch.is_grad_enabled():
                raise
            raise CompileError(
                "inductor compiles the backward pass as well while gradients are recorded, and SegMo's operators have "
                f"none: run the model under torch.inference_mode() or torch.no_grad() ({type(error).__name__}: {error})"
            ) from error
        return compiled  # type: ignore[no-any-return]
    forward: Callable[..., Any] = gm.forward
    return forward


def _recording(run: Callable[..., Any], result: Result, report: Report) -> Callable[..., Any]:
    """Takes the outputs that were added for the report off again."""
    count = len(result.recorded)
    if not count:
        return run

    def call(*args: Any) -> Any:
        outputs = run(*args)
        report.prefill = Prefill(dict(zip(result.recorded, outputs[-count:], strict=True)))
        ran(report)
        report.save()
        return outputs[:-count]

    return call
