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
from segmo.passes.graph import count_ops
from segmo.passes.reasons import DoesNotApply, Miss
from segmo.passes.snapshot import Snapshot
from segmo.runtime.attention.choice import Choice
from segmo.scoped import Scoped

log = logging.getLogger(__name__)

# Outputs that are added to a rewritten prefill for the report, where the passes have put them.
_OF_PROMPT = ("frame", "cell", "novelty", "scene", "question", "ids", "positions")
RECORDED = (*_OF_PROMPT, "relevance", "chosen", "index", "segment", "context")

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
    observers = _OBSERVERS.values()
    if observers:
        gm.recompile()  # who looks may look at its code
    for observer in observers:
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
        before, after: the graph as it stood; the same object when nothing changed.
    """

    name: str
    tier: str
    matches: int
    misses: tuple[Miss, ...]
    seconds: float
    ops_before: dict[str, int]
    ops_after: dict[str, int]
    before: Snapshot
    after: Snapshot

    @property
    def text_before(self) -> str:
        """The graph as code before the pass; written when it is read first."""
        return self.before.text

    @property
    def text_after(self) -> str:
        """The same after the pass; the same object when nothing changed."""
        return self.after.text


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
    before, ops = Snapshot(gm), count_ops(gm.graph)
    for each in passes:
        _tell("before", each, gm)
        start = time.perf_counter()
        outcome, rewrite = _run_pass(each, rewrite, gm, before)
        misses = tuple(_placed(miss, facts) for miss in outcome.misses)
        after, after_ops = (Snapshot(gm), count_ops(gm.graph)) if outcome.matches else (before, ops)
        seconds = time.perf_counter() - start
        result.records.append(
            PassRecord(each.name, each.tier.value, outcome.matches, misses, seconds, ops, after_ops, before, after)
        )
        log.info("%s: %d matches, %d misses, %.3f s", each.name, outcome.matches, len(misses), seconds)
        for miss in misses:
            place = f" at {miss.place}" if miss.place else ""
            log.debug("%s: not applied (%s): %s%s; %s", each.name, miss.code, miss.reason, place, miss.remedy)
        before, ops = after, after_ops
        _tell("after", each, gm)
    result.notes, result.choices = rewrite.notes, rewrite.choices
    result.recorded = _add_outputs(rewrite, gm)
    if any(record.matches for record in result.records):
        gm.recompile()
    return result


def _placed(miss: Miss, facts: Facts) -> Miss:
    """A miss with a source line: where no node is to blame (an option, a process group), that of the call."""
    return miss if miss.source else replace(miss, source=facts.called_from)


def _run_pass(each: Pass, rewrite: Rewrite, gm: GraphModule, before: Snapshot) -> tuple[Outcome, Rewrite]:
    """Runs a pass; if it does not apply, the graph is as it was ``before``, whatever was done to it by then."""
    trial = rewrite.copy()
    try:
        outcome = each.run(trial)
        if outcome.matches:
            gm.graph.lint()
            return outcome, trial
    except DoesNotApply as reason:
        outcome = Outcome(misses=(reason.miss,))
    except SegMoError:
        raise
    except Exception as error:  # whatever a pass trips over must not become a silent eager fallback
        raise CompileError(
            f"pass {each.name!r} failed: {type(error).__name__}: {error}. Switch it off with "
            f"disable={each.name!r}, and report this with the model's name and the versions of torch and transformers"
        ) from error
    if before.is_of(gm.graph):
        return outcome, rewrite
    nodes = before.restore()
    return outcome, rewrite.moved(gm.graph, nodes)


def _add_outputs(rewrite: Rewrite, gm: GraphModule) -> tuple[str, ...]:
    """Appends what the report needs to the graph's outputs; the backend's wrapper takes it off again."""
    names = tuple(name for name in RECORDED if name in rewrite.nodes)
    if names:
        output = next(iter(reversed(gm.graph.nodes)))
        output.args = ((*output.args[0], *(rewrite.nodes[name] for name in names)),)
        gm.graph.lint()
    return names
