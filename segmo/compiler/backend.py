"""The ``segmo`` backend of ``torch.compile``, found by name through the entry point group ``torch_dynamo_backends``."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from segmo.compat.dynamo import RestartAnalysis, trace_structured_artifact
from segmo.compat.generation import chunks
from segmo.compat.inductor import mode_settings
from segmo.compat.regions import expand
from segmo.compat.stored_tensors import stored_tensors
from segmo.compiler.capture import calling_line, calling_model, calling_notes, chooses_frames, set_up_dynamo
from segmo.compiler.chat import Chat, chat_of
from segmo.compiler.lower import device_and_dtype, lower
from segmo.compiler.ran import noting
from segmo.errors import CompileError, NotRewrittenError, OptionError, PromptError, SegMoError
from segmo.options import Options
from segmo.passes.analyse import Facts, analyse
from segmo.passes.base import Pass
from segmo.passes.pipeline import build_pipeline, check_order
from segmo.passes.runner import Result, run_pipeline
from segmo.passes.shard_segments import ShardSegments, spreads_cache
from segmo.report.history import prefilled, report_for
from segmo.report.prefill import Asked, Prefill
from segmo.report.record import GraphReport
from segmo.report.report import Report, complain
from segmo.report.shown import current_shown
from segmo.runtime.cuts import Cut, tell
from segmo.runtime.distributed.session import last_plan, last_schedule
from segmo.runtime.question import ChatTokens
from segmo.runtime.rest import choose_rest

log = logging.getLogger(__name__)

SETUP = set_up_dynamo()


def segmo(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compiles one graph that Dynamo captured.

    Args:
        gm: the graph.
        example_inputs: its inputs in the traced call.
        options: see :class:`segmo.options.Options`.
        mode: of inductor, where that compiles the rest of the graph; torch takes either this or options.

    Raises:
        OptionError: an unknown option or mode, or one with a wrong type or range.
        NotRewrittenError: under ``strict=True``, a pass did not apply to a prefill with video.
        CompileError: a pass or the lowering failed. The model is never run as it was instead.
    """
    try:
        return _compile(gm, example_inputs, Options.parse(options), inductor_settings(mode))
    except (SegMoError, RestartAnalysis):  # the latter is how a lowering asks Dynamo to trace once more
        raise
    except Exception as error:  # Dynamo runs the model eagerly after some exceptions; ours is not one of them
        raise CompileError(f"SegMo could not compile a graph: {type(error).__name__}: {error}") from error


def _compile(
    gm: GraphModule, example_inputs: Sequence[Any], options: Options, settings: dict[str, Any]
) -> Callable[..., Any]:
    passes = build_pipeline(options)
    check_order(passes)
    model = calling_model()
    layers = expand(gm)
    stored = frozenset(layers.names.get(name, name) for name in stored_tensors())
    facts = analyse(gm, getattr(model, "config", None), stored)
    rest = choose_rest(options, facts.kind, *device_and_dtype(example_inputs))
    facts = replace(facts, frames_chosen=chooses_frames(model), called_from=calling_line(), by_inductor=rest.inductor)
    chat = chat_of(model) if facts.merge is not None else Chat(ChatTokens(), "")
    result = run_pipeline(gm, replace(facts, chat=chat.tokens), options, passes, model)
    result.notes.extend(calling_notes())
    result.notes.extend(layers.notes())
    _refuse_missing_frames(facts, result, options)
    lowered = lower(gm, example_inputs, rest, settings)
    result.notes.append(lowered.note)
    report = report_for(model, options, SETUP)
    graph = report.add(facts.kind, result, lowered.by_inductor)
    _trace(graph)
    report.save()
    complain(graph, options)
    run = _recording(lowered.run, result, report, passes, Asked(chat.source, chat.decode))
    return noting(run, told=facts.kind != "other" or bool(graph.unexpected()))


def _trace(graph: GraphReport) -> None:
    """Hands the report and each changed graph to ``TORCH_TRACE``, which tlparse shows; nothing is built without it."""
    trace_structured_artifact("segmo_report", "json", lambda: json.dumps(graph.to_dict(), indent=1))
    for record in graph.passes:
        if record.matches:
            trace_structured_artifact(
                f"segmo_after_{record.name}", "string", functools.partial(getattr, record, "text_after")
            )


def _refuse_missing_frames(facts: Facts, result: Result, options: Options) -> None:
    """Tokens of frames that were never encoded are zeros; a decoder that does not drop them would read those."""
    if options.frames == 1 or not facts.frames_chosen or facts.kind == "decode" or "index" in result.recorded:
        return
    if facts.merge is None and (facts.miss is None or facts.miss.expected):  # no video enters here
        return
    why = next((miss.reason for record in result.records for miss in record.misses if not miss.expected), "")
    raise NotRewrittenError(
        f"frames={options.frames:g} leaves frames out of the vision encoder, and their tokens cannot be left out of "
        f"this {facts.kind} graph: {why or 'select-tokens is switched off'}. Set frames=1, or let select-tokens apply"
    )


def inductor_settings(mode: str | None) -> dict[str, Any]:
    """What a mode of ``torch.compile`` sets in inductor, without its CUDA graphs: these overwrite a graph's results in
    the next call, and a KV cache has to outlive many.

    Raises:
        OptionError: torch has no such mode.
    """
    if mode is None:
        return {}
    try:
        settings = mode_settings(mode)
    except RuntimeError as error:
        raise OptionError(f"mode is {mode!r}: {error}") from error
    return {name: value for name, value in settings.items() if name != "triton.cudagraphs"}


def _refuse_chunks() -> None:
    """A part of a prompt is not cut as if it were the whole: the question may be in another part."""
    parts = chunks()
    if parts > 1:
        raise PromptError(
            f"prefill_chunk_size cuts the prompt into {parts} parts, and SegMo selects tokens over the whole prompt, "
            "with the question in sight; leave prefill_chunk_size unset (a prefill has the kept tokens only), or set "
            "keep=1 and segments=1"
        )


def _recording(
    run: Callable[..., Any], result: Result, report: Report, passes: Sequence[Pass], asked: Asked
) -> Callable[..., Any]:
    """Takes the outputs that were added for the report off again."""
    count = len(result.recorded)
    if not count:
        return run
    sharded = any(record.name == ShardSegments.name and record.matches for record in result.records)
    spread = sharded and spreads_cache(passes)

    def call(*args: Any) -> Any:
        _refuse_chunks()
        outputs = run(*args)
        recorded = dict(zip(result.recorded, outputs[-count:], strict=True))
        frame_BN, index_BK = recorded["frame"], recorded.pop("index", None)
        if "chosen" in recorded:
            recorded["index"] = recorded.pop("chosen")  # the same in the host's memory, for which nobody has to wait
        if spread and index_BK is None:  # a rank's part is a cut one, also where nothing is dropped
            index_BK = torch.arange(frame_BN.shape[1], device=frame_BN.device).expand(frame_BN.shape)
        if index_BK is not None:
            schedule = last_schedule(report.options.ranks) if spread else None
            tell(Cut(frame_BN.shape[1], index_BK, schedule))
        report.prefill = Prefill(recorded, current_shown(), asked)
        report.plan = last_plan(report.options.ranks) if sharded else None
        prefilled(report)
        report.save()
        return outputs[:-count]

    return call
