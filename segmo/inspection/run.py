"""Captures the graphs of a model and returns the report of what the passes did to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError, SegMoError
from segmo.options import Options

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from segmo.report.report import Report


@dataclass(frozen=True)
class Subject:
    """What is inspected: a model and a prompt for it.

    Attributes:
        model: in eval mode.
        inputs: arguments of ``generate``.
        shown: arguments of :func:`segmo.show_prompt`.
    """

    model: Any
    inputs: Mapping[str, Any]
    shown: Mapping[str, Any]


def subject(
    source: str,
    *,
    frames: int = 16,
    layers: int | None = None,
    video: Path | None = None,
    question: str = "",
    fps: float = 1.0,
    weights: bool = False,
) -> Subject:
    """A model and a prompt.

    Args:
        source: see :func:`segmo.inspection.models.load_config`.
        frames: frames of the synthetic video.
        layers: decoder layers, None for the config's own.
        video: a file, in place of the synthetic video.
        question: what is asked; with a narrow model, which has no tokenizer, it is only shown.
        fps: frames per second that are taken from the file.
        weights: load the model's weights and its processor from the folder ``source`` in place of a narrow model.

    Raises:
        OptionError: an unknown family, no such file, or ``weights`` without a folder or a video.
    """
    from segmo.inspection import prompts
    from segmo.inspection.models import build, load_config, shrink

    if video is not None and not video.is_file():
        raise OptionError(f"--video {video}: there is no such file")
    shown = {"question": question, "name": "" if video is None else str(video)}
    if weights:
        if video is None or not Path(source).is_dir():
            raise OptionError("--weights needs a model's folder, and a --video to ask about")
        model, inputs, pictures = prompts.checkpoint_prompt(Path(source), video, question, fps)
        return Subject(model, inputs, {**shown, "frames": pictures})
    model = build(shrink(load_config(source, layers), layers))
    if video is None:
        return Subject(model, prompts.synthetic_prompt(model, frames), shown)
    inputs, pictures = prompts.video_prompt(model, video, fps)
    return Subject(model, inputs, {**shown, "frames": pictures})


def inspect_subject(given: Subject, options: Mapping[str, Any], stop_after: str | None = None) -> Report:
    """The report of one ``generate`` of two tokens: a prefill and a decode graph.

    Args:
        given: from :func:`subject`.
        options: as for :func:`segmo.compile`.
        stop_after: passes after this one are switched off.

    Raises:
        OptionError: a wrong option, or ``stop_after`` is not in the pipeline.
    """
    import segmo

    generate(given, with_stop(options, stop_after), 2)
    return segmo.last_report()


def capture_subject(given: Subject, options: Mapping[str, Any], stop_after: str | None = None) -> Report:
    """The report of the prefill graph alone, which is rewritten and never called.

    ``generate`` encodes the video before the decoder is called. When the decoder's prefill has been captured and its
    passes have run, everything ends: no decoder layer is computed, and there is no decode graph.

    Args:
        given, options, stop_after: as for :func:`inspect_subject`.

    Raises:
        OptionError: a wrong option, or ``stop_after`` is not in the pipeline.
    """
    import segmo
    from segmo.calls.inputs import encoded
    from segmo.compat import flags
    from segmo.compat.chunk_loops import make_loops_opaque
    from segmo.compat.dynamo import BackendCompilerFailed
    from segmo.compat.layer_reading import stamped
    from segmo.compiler.backend import segmo as rewrite
    from segmo.runtime.one_layer import reader

    wanted = Options.parse(with_stop(options, stop_after)).as_dict()

    def backend(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        run = rewrite(gm, example_inputs, options=wanted)
        if segmo.last_report().graphs[-1].kind == "prefill":
            raise _Captured
        return run

    segmo.uncompile(given.model)
    given.model.compile(backend=backend, dynamic=True)
    compiled = given.model._compiled_call_impl
    # Before transformers 5.23 generate leaves it to some models to encode the video, in their forward.
    given.model._compiled_call_impl = lambda **inputs: compiled(**encoded(given.model, inputs))
    # A backend that is not segmo itself has no call around it that sets Dynamo up.
    make_loops_opaque()
    undo = flags.hold()
    try:
        with stamped(reader()):
            _generate(given, 1)
    except BackendCompilerFailed as failure:
        if not isinstance(failure.inner_exception, SegMoError):
            raise
        if not isinstance(failure.inner_exception, _Captured):
            raise failure.inner_exception from None
    finally:
        undo()
        segmo.uncompile(given.model)
    return segmo.last_report()


class _Captured(SegMoError):
    """Ends :func:`capture_subject`; never seen by a user."""


def generate(given: Subject, options: Mapping[str, Any] | None, tokens: int) -> Any:
    """What ``generate`` returns, with the logits of each step, greedily; without SegMo when ``options`` is None."""
    import segmo

    segmo.uncompile(given.model)
    if options is None:
        return _generate(given, tokens)
    segmo.compile(given.model, **options)
    with segmo.show_prompt(**given.shown):
        return _generate(given, tokens)


def _generate(given: Subject, tokens: int) -> Any:
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SegMo left a")  # the report says it
        return given.model.generate(
            **given.inputs,
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )


def inspect_model(
    source: str,
    options: Mapping[str, Any],
    *,
    frames: int = 16,
    layers: int | None = None,
    stop_after: str | None = None,
) -> Report:
    """:func:`inspect_subject` of a narrow model and a synthetic video; options are checked before it is built."""
    with_stop(options, stop_after)
    return inspect_subject(subject(source, frames=frames, layers=layers), options, stop_after)


def with_stop(options: Mapping[str, Any], stop_after: str | None) -> dict[str, Any]:
    """The options with every pass after ``stop_after`` added to ``disable``.

    Raises:
        OptionError: a wrong option, or the pipeline has no such pass.
    """
    from segmo.passes.pipeline import own_name

    names = pass_names(options)
    given = dict(options)
    if stop_after is None:
        return given
    own = [own_name(name) for name in names]
    if stop_after not in (*names, *own):
        raise OptionError(f"--stop-after {stop_after!r}: the pipeline has no such pass; its passes: {', '.join(names)}")
    given["disable"] = [*Options.parse(options).disable, *names[own.index(own_name(stop_after)) + 1 :]]
    return given


def pass_names(options: Mapping[str, Any]) -> list[str]:
    """Names of the passes that the options put into the pipeline, those that they disable too.

    Raises:
        OptionError: a wrong option.
    """
    from segmo.passes.pipeline import DEFAULT, build_pipeline, parse_pipeline

    parsed = Options.parse(options)
    build_pipeline(parsed)  # names what is wrong before anything is built
    return [name for name, _ in parse_pipeline(DEFAULT if parsed.pipeline is None else parsed.pipeline)]
