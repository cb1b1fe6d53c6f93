"""After which pass the result leaves a tolerance: the pipeline is run again and again, one pass longer each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from segmo.inspection.run import Subject, generate, pass_names
from segmo.options import Options

CAPTURE = "(capture)"  # no pass at all: the graph as Dynamo captured it


@dataclass(frozen=True)
class Step:
    """The pipeline up to one pass.

    Attributes:
        name: the last pass that ran, ``CAPTURE`` for none.
        tier: "exact" or "approximate".
        matches: places that this pass changed in the prefill.
        difference: largest difference of the next token's logits to the model without SegMo, over their largest value.
        same_token: whether the greedy next token is the same.
        within: whether the difference is within the tolerance.
    """

    name: str
    tier: str
    matches: int
    difference: float
    same_token: bool
    within: bool


def bisect(given: Subject, options: Mapping[str, Any], tolerance: float) -> list[Step]:
    """Steps up to and including the first that leaves the tolerance; all steps if none does.

    Walked from the front, because a later pass may bring the result back: of two passes that shift it, halving could
    name either. A pipeline has few passes, and each step is one prefill.

    Args:
        given: from :func:`segmo.inspection.run.subject`.
        options: as for :func:`segmo.compile`.
        tolerance: relative to the largest logit.

    Raises:
        OptionError: a wrong option.
    """
    pass_names(options)
    expected = _logits(given, None)
    steps: list[Step] = []
    for step in _steps(given, options, expected, tolerance):
        steps.append(step)
        if not step.within:
            break
    return steps


def _steps(given: Subject, options: Mapping[str, Any], expected: Any, tolerance: float) -> Iterator[Step]:
    import segmo

    disabled = Options.parse(options).disable
    names = [name for name in pass_names(options) if name not in disabled]
    for done in range(len(names) + 1):
        found = _logits(given, {**options, "disable": [*disabled, *names[done:]]})
        records = segmo.last_report().graphs[0].passes
        difference = float((found - expected).abs().max() / expected.abs().max())
        yield Step(
            name=names[done - 1] if done else CAPTURE,
            tier=records[-1].tier if done else "exact",
            matches=records[-1].matches if done else 0,
            difference=difference,
            same_token=bool(found.argmax() == expected.argmax()),
            within=difference <= tolerance,
        )


def _logits(given: Subject, options: Mapping[str, Any] | None) -> Any:
    """Logits of the next token, (vocabulary,) fp32."""
    return generate(given, options, 1).logits[0][0].float()
