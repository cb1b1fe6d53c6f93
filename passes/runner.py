"""Runs a pipeline over a graph. Knows no pass: it times, restores on a miss, checks the graph and keeps the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn
from torch.fx import GraphModule

from segmo.errors import CompileError, SegMoError
from segmo.options import Options
from segmo.passes.analyse import Facts
from segmo.passes.base import Outcome, Pass, Rewrite
from segmo.passes.graph import count_ops, graph_text
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.runtime.attention.choice import Choice
from segmo.scoped import Scoped

log = logging.getLogger(__name__)

# Outputs that are added to a rewritten prefill for the report, where the passes have put them.
_OF_PROMPT = ("frame", "cell", "novelty", "scene", "question", "ids", "positions")
RECORDED = (*_OF_PROMPT, "relevance", "index", "segment", "context")

Observer = Callable[[str, Pass, GraphModule], None]  # called with ("before" or "after", pass, graph module)
_OBSERVERS: Scoped[Observer] = Scoped("segmo_observers")


@contextmanager
def observe(observer: Observer) -> Iterator[None]:
    """Calls ``observer("before" | "after", pass, graph module)`` around each pass of every graph compiled inside.

    The graph module is the one under rewriting: to be read, not changed. An exception of the observer ends the
    compilation.
    """
    with _OBSERVERS.block(observer):
        yield


def _tell(moment: str, each: Pass, gm: GraphModule) -> None:
    for observer in _OBSERVERS.values():
        observer(moment, each, gm)


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to one graph.

    Attributes:
        name, tier: of the pass.
        matches: places changed.
        misses: places where it did not apply, with reasons.
        seconds: time the pass took.
        ops_before, ops_after: how often each op is called.
        text_before, text_after: the graph as code; the same object when nothing changed.
    """

    name: str
    tier: str
    matches: int
    misses: tuple[Miss, ...]
    seconds: float
    ops_before: dict[str, int]
    ops_after: dict[str, int]
    text_before: str
    text_after: str


@dataclass
class Result:
    """A rewritten graph: the record of each pass, what they noted and chose, and the outputs added at the end."""

    records: list[PassRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    recorded: tuple[str, ...] = ()
    choices: list[Choice] = field(default_factory=list)


def run_pipeline(
    gm: GraphModule,
    facts: Facts,
    options: Options,
    passes: Sequence[Pass],
    model: nn.Module | None = None,
) -> Result:
    """Runs passes over ``gm`` in place, telling those who :func:`observe`.

    Args:
        gm: the graph.
        facts: of the graph.
        options: the user's options.
        passes: in order.
        model: that the graph came from, if that is known.

    Raises:
        CompileError: a pass failed or left a broken graph.
    """
    rewrite = Rewrite(gm.graph, facts, options, model)
    result = Result()
    text, ops = graph_text(gm), count_ops(gm.graph)
    for each in passes:
        _tell("before", each, gm)
        start = time.perf_counter()
        outcome, rewrite = _run_pass(each, rewrite, gm)
        misses = tuple(_placed(miss, facts) for miss in outcome.misses)
        seconds = time.perf_counter() - start
        after_text, after_ops = (graph_text(gm), count_ops(gm.graph)) if outcome.matches else (text, ops)
        result.records.append(
            PassRecord(
                each.name,
                each.tier.value,
                outcome.matches,
                misses,
                seconds,
                ops,
                after_ops,
                text,
                after_text,
            )
        )
        log.info("%s: %d matches, %d misses, %.3f s", each.name, outcome.matches, len(misses), seconds)
        for miss in misses:
            place = f" at {miss.place}" if miss.place else ""
            log.debug("%s: not applied (%s): %s%s; %s", each.name, miss.code, miss.reason, place, miss.remedy)
        text, ops = after_text, after_ops
        _tell("after", each, gm)
    result.notes, result.choices = rewrite.notes, rewrite.choices
    result.recorded = _add_outputs(rewrite, gm)
    return result


def _placed(miss: Miss, facts: Facts) -> Miss:
    """A miss with a source line: where no node is to blame (an option, a process group), that of the call."""
    return miss if miss.source else replace(miss, source=facts.called_from)


def _run_pass(each: Pass, rewrite: Rewrite, gm: GraphModule) -> tuple[Outcome, Rewrite]:
    """Runs a pass on a copy of the graph, which takes the graph's place if the pass changed something."""
    trial = rewrite.copy()
    try:
        outcome = each.run(trial)
        if not outcome.matches:
            return outcome, rewrite
        trial.graph.lint()
        gm.graph = trial.graph
        gm.recompile()
    except DoesNotApply as reason:
        return Outcome(misses=(reason.miss,)), rewrite
    except SegMoError:
        raise
    except Exception as error:  # whatever a pass trips over must not become a silent eager fallback
        raise CompileError(
            f"pass {each.name!r} failed: {type(error).__name__}: {error}. Switch it off with "
            f"disable={each.name!r}, and report this with the model's name and the versions of torch and transformers"
        ) from error
    return outcome, trial


def _add_outputs(rewrite: Rewrite, gm: GraphModule) -> tuple[str, ...]:
    """Appends what the report needs to the graph's outputs; the backend's wrapper takes it off again."""
    names = tuple(name for name in RECORDED if name in rewrite.nodes)
    if names:
        output = next(iter(reversed(gm.graph.nodes)))
        output.args = ((*output.args[0], *(rewrite.nodes[name] for name in names)),)
        gm.graph.lint()
        gm.recompile()
    return names
