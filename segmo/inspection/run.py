"""Captures the graphs of a model and returns the report of what the passes did to them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError
from segmo.options import Options

if TYPE_CHECKING:
    from segmo.report import Report


def inspect_model(
    source: str,
    options: Mapping[str, Any],
    *,
    frames: int = 16,
    layers: int | None = None,
    stop_after: str | None = None,
) -> Report:
    """The report of one ``generate`` of two tokens: a prefill and a decode graph.

    Args:
        source: see :func:`segmo.inspection.models.load_config`.
        options: as for :func:`segmo.compile`.
        frames: frames of the synthetic video.
        layers: decoder layers, None for the config's own.
        stop_after: passes after this one are switched off.

    Raises:
        OptionError: a wrong option, an unknown family, or ``stop_after`` is not in the pipeline.
    """
    import torch

    import segmo
    from segmo.inspection.models import build, load_config, shrink
    from segmo.inspection.prompts import synthetic_prompt

    given = with_stop(options, stop_after)
    model = build(shrink(load_config(source, layers)))
    segmo.compile(model, **given)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SegMo left a")  # the report says it
        model.generate(**synthetic_prompt(model, frames), max_new_tokens=2, do_sample=False)
    return segmo.last_report()


def with_stop(options: Mapping[str, Any], stop_after: str | None) -> dict[str, Any]:
    """The options with every pass after ``stop_after`` added to ``disable``."""
    from segmo.passes.pipeline import DEFAULT, build_pipeline, parse_pipeline

    parsed = Options.parse(options)
    build_pipeline(parsed)  # names what is wrong before anything is built
    given = dict(options)
    if stop_after is None:
        return given
    names = [name for name, _ in parse_pipeline(DEFAULT if parsed.pipeline is None else parsed.pipeline)]
    if stop_after not in names:
        raise OptionError(f"--stop-after {stop_after!r}: the pipeline has no such pass; its passes: {', '.join(names)}")
    given["disable"] = [*parsed.disable, *names[names.index(stop_after) + 1 :]]
    return given
