"""What was done to a model, as data: for every graph what fired, what did not and why, and what the last prefill kept.

It knows no page: pages and texts are made from it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from segmo.options import Options
from segmo.report.prefill import FrameCounts, Prefill
from segmo.report.setup import Setup
from segmo.report.timeline import Timeline
from segmo.runtime.runs import runs

if TYPE_CHECKING:
    from segmo.passes.reasons import Miss
    from segmo.passes.runner import PassRecord, Result
    from segmo.runtime.attention.choice import Choice
    from segmo.runtime.partition.plan import Plan


@dataclass(frozen=True)
class GraphReport:
    """One captured graph.

    Attributes:
        kind: "prefill", "decode" or "other".
        passes: the record of each pass, in order.
        notes: choices that were made, in words.
        choices: the implementation of attention, and what it was chosen for.
        by_inductor: inductor has compiled what the passes left.
    """

    kind: str
    passes: tuple[PassRecord, ...]
    notes: tuple[str, ...]
    choices: tuple[Choice, ...] = ()
    by_inductor: bool = False

    @property
    def rewritten(self) -> bool:
        return any(record.matches for record in self.passes)

    def unexpected(self) -> list[tuple[str, Miss]]:
        """Passes that should have applied and did not; one entry per reason."""
        seen: dict[str, tuple[str, Miss]] = {}
        for record in self.passes:
            for miss in record.misses:
                if not miss.expected:
                    seen.setdefault(miss.reason, (record.name, miss))
        return list(seen.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form, without the graphs' texts."""
        return {
            "kind": self.kind,
            "passes": [
                {
                    "name": record.name,
                    "tier": record.tier,
                    "matches": record.matches,
                    "misses": [
                        {
                            "code": miss.code,
                            "reason": miss.reason,
                            "remedy": miss.remedy,
                            "node": miss.node,
                            "source": miss.source,
                        }
                        for miss in record.misses
                    ],
                    "seconds": record.seconds,
                    "ops": op_changes(record),
                }
                for record in self.passes
            ],
            "notes": list(self.notes),
        }


def op_changes(record: PassRecord) -> dict[str, int]:
    """How many calls of each op a pass added (or took away), ops without a change left out."""
    names = sorted({*record.ops_before, *record.ops_after})
    deltas = {name: record.ops_after.get(name, 0) - record.ops_before.get(name, 0) for name in names}
    return {name: delta for name, delta in deltas.items() if delta}


@dataclass
class Record:
    """All graphs of one compiled model, and its last prefill.

    Attributes:
        options: what was asked for.
        setup: what was set in Dynamo.
        graphs: in the order in which they were captured.
        prefill: the last prefill that was rewritten, None before it has run.
        timeline: of a run from video files, by ``segmo run``.
        answers: of such a run.
        frames: which frames were encoded for it; None with ``frames=1``.
        plan: how the ranks shared that prefill; None in one process.
    """

    options: Options
    setup: Setup
    model: str = ""
    graphs: list[GraphReport] = field(default_factory=list)
    prefill: Prefill | None = None
    timeline: Timeline | None = None
    answers: list[dict[str, Any]] = field(default_factory=list)
    frames: FrameCounts | None = None
    plan: Plan | None = None

    def add(self, kind: str, result: Result, by_inductor: bool = False) -> GraphReport:
        """Adds a graph that was compiled."""
        graph = GraphReport(kind, tuple(result.records), tuple(result.notes), tuple(result.choices), by_inductor)
        self.graphs.append(graph)
        return graph

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and stable: what was asked and set, each graph, and of the last prefill its tokens, the question,
        scenes and segments.
        """
        prefill = self.prefill
        return {
            "model": self.model,
            "options": self.options.as_dict(),
            "setup": {
                "dynamo_flags_set": list(self.setup.flags),
                "one_graph_for_all_lengths": self.setup.one_graph_for_all_lengths,
            },
            "graphs": [graph.to_dict() for graph in self.graphs],
            "frames": asdict(self.frames) if self.frames else None,
            "tokens": prefill.tokens() if prefill else None,
            "question": prefill.asked() if prefill else None,
            "scenes": prefill.scenes() if prefill else [],
            "segments": prefill.segments() if prefill else [],
            "timeline": self.timeline.to_dict() if self.timeline else [],
            "answers": self.answers,
        }

    def __str__(self) -> str:
        lines = [f"SegMo report{': ' + self.model if self.model else ''}"]
        lines += [
            f"  torch._dynamo.config.{flag} is set while it runs, so that every prefill is one graph"
            for flag in self.setup.flags
        ]
        if not self.setup.one_graph_for_all_lengths:
            lines.append("  this version of torch compiles again for every length of video")
        for number, graph in enumerate(self.graphs):
            lines += _graph_lines(number, graph)
        if self.frames:
            kept = sum(map(len, self.frames.kept))
            lines.append(f"  frames: {self.frames.video}, {self.frames.encoded} of them encoded, {kept} kept")
        if self.prefill:
            lines += _prefill_lines(self.to_dict())
        else:
            lines.append("  no prefill with video was rewritten yet")
        return "\n".join(lines)


def _graph_lines(number: int, graph: GraphReport) -> list[str]:
    lines = [f"  graph {number}: {graph.kind}" + ("" if graph.rewritten else ", runs as it was")]
    lines += [
        f"    {record.name} ({record.tier}): {record.matches} matches, {1e3 * record.seconds:.0f} ms"
        for record in graph.passes
        if record.matches
    ]
    reasons: dict[str, list[str]] = {}
    for record in graph.passes:
        for miss in record.misses:
            place = f" at {miss.place}" if miss.place else ""
            reasons.setdefault(f"{miss.reason}{place}; {miss.remedy}", []).append(record.name)
    lines += [f"    not applied: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return lines + [f"    {note}" for note in graph.notes]


def _prefill_lines(report: dict[str, Any]) -> list[str]:
    tokens = report["tokens"]
    share = tokens["kept"] / tokens["video"] if tokens["video"] else 1
    line = (
        f"  last rewritten prefill: {tokens['prompt']:,} tokens, {tokens['video']:,} of video, {tokens['kept']:,} of "
        f"them kept ({share:.1%}); {len(report['scenes'])} scenes"
    )
    if report["segments"]:
        context = sum(segment["context"] for segment in report["segments"])
        line += f", {len(report['segments'])} segments, {context} context tokens"
    return [line, _question_line(report["question"])]


def _question_line(question: dict[str, Any]) -> str:
    words = "" if question["text"] is None else f" {question['text']!r},"
    places = ", ".join(
        str(first) if first + 1 == end else f"{first} to {end - 1}" for first, end in runs(question["positions"])
    )
    count = len(question["positions"])
    return f"  question:{words} {count} tokens at {places or 'no place'}; told by {question['source']}"
