"""What SegMo did to a model: for every graph what fired, what did not and why; and what the last prefill kept.

Legend: B batch, N prompt tokens, K kept tokens, S scenes.
"""

from __future__ import annotations

import html
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmo.errors import NotRewrittenError
from segmo.options import Options
from segmo.timeline import Timeline

if TYPE_CHECKING:
    from torch import Tensor

    from segmo.capture import Setup
    from segmo.passes.reasons import Miss
    from segmo.passes.runner import PassRecord, Result
    from segmo.runtime.attention.choice import Choice
    from segmo.runtime.partition.plan import Plan
    from segmo.shown import Shown


_FRAME = "width:100%;height:720px;border:1px solid #dde2e6;border-radius:8px"


@dataclass(frozen=True)
class GraphReport:
    """One captured graph.

    Attributes:
        kind: "prefill", "decode" or "other".
        passes: the record of each pass, in order.
        notes: choices that were made, in words.
        choices: the implementation of attention, and what it was chosen for.
    """

    kind: str
    passes: tuple[PassRecord, ...]
    notes: tuple[str, ...]
    choices: tuple[Choice, ...] = ()

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


class Prefill:
    """The tokens of one prefill, as the rewritten graph handed them out. Row 0 of the batch is what is summed up.

    Attributes:
        frame, cell: frame and cell of each prompt token, (B, N) int64; text has cell -1.
        novelty: 1 - cosine with the same cell of the previous frame, (B, N) fp32.
        scene: scene of each token, (B, N) int64.
        relevance: relevance of each scene, (B, S) fp32, -inf where there is none; None if no pass needed it.
        index: positions of the kept tokens, (B, K) int64; None if all were kept.
        segment: attention segment of each kept token, (B, K) int64; None without segments.
        context: whether a kept token is context, (B, K) bool; None without context.
        positions: M-RoPE position ids, (3 or 4, B or 1, N) int, wherever the model has them; None for 1-D positions.
        shown: what :func:`segmo.show_prompt` said of this prompt.
    """

    def __init__(self, recorded: dict[str, Tensor], shown: Shown | None = None) -> None:
        self.shown = shown
        # An input of the graph, which only a picture needs: it is not copied here.
        self.positions: Tensor | None = recorded.get("positions")
        moved = {name: tensor.detach().cpu() for name, tensor in recorded.items() if name != "positions"}
        self.frame, self.cell, self.scene = moved["frame"], moved["cell"], moved["scene"]
        self.novelty = moved["novelty"]
        self.relevance: Tensor | None = moved.get("relevance")
        self.index: Tensor | None = moved.get("index")
        self.segment: Tensor | None = moved.get("segment")
        self.context: Tensor | None = moved.get("context")

    def kept(self) -> Tensor:
        """Positions of row 0's kept tokens, ascending."""
        import torch

        return torch.arange(self.frame.shape[1]) if self.index is None else self.index[0]

    def tokens(self) -> dict[str, int]:
        """Prompt tokens, video tokens among them, and video tokens kept."""
        return {
            "prompt": int(self.frame.shape[1]),
            "video": int((self.cell[0] >= 0).sum()),
            "kept": int((self.cell[0, self.kept()] >= 0).sum()),
        }

    def scenes(self) -> list[dict[str, Any]]:
        """The scenes in order."""
        video = self.cell[0] >= 0
        kept = self.kept()
        kept = kept[video[kept]]
        found = []
        for scene in range(int(self.scene[0].max()) + 1 if bool(video.any()) else 0):
            inside = video & (self.scene[0] == scene)
            frames = self.frame[0, inside]
            relevance = None if self.relevance is None else float(self.relevance[0, scene])
            found.append(
                {
                    "start_frame": int(frames.min()),
                    "end_frame": int(frames.max()) + 1,
                    "tokens": int(inside.sum()),
                    "kept": int((self.scene[0, kept] == scene).sum()),
                    "relevance": relevance if relevance is None or math.isfinite(relevance) else None,
                    "novelty": float(self.novelty[0, inside].mean()),
                }
            )
        return found

    def segments(self) -> list[dict[str, int]]:
        """The attention segments in order; tokens are kept ones, text between frames included."""
        if self.segment is None:
            return []
        segment = self.segment[0]
        frame = self.frame[0, self.kept()]
        context = self.context[0] if self.context is not None else segment < -2
        found = []
        for number in range(int(segment.max()) + 1):
            inside = segment == number
            found.append(
                {
                    "start_frame": int(frame[inside].min()),
                    "end_frame": int(frame[inside].max()) + 1,
                    "tokens": int(inside.sum()),
                    "context": int((inside & context).sum()),
                }
            )
        return found


@dataclass(frozen=True)
class FrameCounts:
    """What the vision encoder saw of the last prompt's videos.

    Attributes:
        video: frames there were.
        encoded: frames that were encoded; all of them where the encoder does not treat frames alone.
        kept: the frames whose tokens may be kept, for each video.
    """

    video: int
    encoded: int
    kept: tuple[tuple[int, ...], ...]


@dataclass
class Report:
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

    def add(self, kind: str, result: Result) -> GraphReport:
        """Adds a graph that was compiled."""
        graph = GraphReport(kind, tuple(result.records), tuple(result.notes), tuple(result.choices))
        self.graphs.append(graph)
        return graph

    def to_dict(self) -> dict[str, Any]:
        """JSON-able and stable: what was asked and set, each graph, and the last prefill's tokens, scenes, segments."""
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
            "scenes": prefill.scenes() if prefill else [],
            "segments": prefill.segments() if prefill else [],
            "timeline": self.timeline.to_dict() if self.timeline else [],
            "answers": self.answers,
        }

    def save(self) -> None:
        """Writes ``segmo-report.json`` and ``segmo-report.html`` into the folder of the option ``report``, if given."""
        if self.options.report is None:
            return
        folder = Path(self.options.report)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "segmo-report.json").write_text(json.dumps(self.to_dict(), indent=1))
        (folder / "segmo-report.html").write_text(self.to_html(), encoding="utf-8")

    def to_html(self, targets: Sequence[str] = ()) -> str:
        """The report as one HTML page that needs no other file and no network.

        Args:
            targets: architectures (``"sm_90"``, ...) for which the generated kernels are compiled, to show what the
                compiler made of them. Takes seconds for each; no GPU is needed.

        Raises:
            KernelError: a target that is not known.
        """
        from segmo.html.page import render_page

        return render_page(self, targets)

    def _repr_html_(self) -> str:
        """For notebooks: the page in a frame of its own, which can reach neither the notebook nor the network."""
        page = html.escape(self.to_html())
        return f'<iframe sandbox="allow-scripts" srcdoc="{page}" style="{_FRAME}" title="SegMo report"></iframe>'

    def __str__(self) -> str:
        lines = [f"SegMo report{': ' + self.model if self.model else ''}"]
        lines += [
            f"  torch._dynamo.config.{flag} was set, so that every prefill is compiled" for flag in self.setup.flags
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
            place = f" at {miss.source or miss.node}" if miss.node else ""
            reasons.setdefault(f"{miss.reason}{place}; {miss.remedy}", []).append(record.name)
    lines += [f"    not applied: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return lines + [f"    {note}" for note in graph.notes]


def _prefill_lines(report: dict[str, Any]) -> list[str]:
    tokens = report["tokens"]
    share = tokens["kept"] / tokens["video"] if tokens["video"] else 1
    line = (
        f"  last prefill: {tokens['prompt']:,} tokens, {tokens['video']:,} of video, {tokens['kept']:,} of them kept "
        f"({share:.1%}); {len(report['scenes'])} scenes"
    )
    if report["segments"]:
        context = sum(segment["context"] for segment in report["segments"])
        line += f", {len(report['segments'])} segments, {context} context tokens"
    return [line]


def complain(graph: GraphReport, options: Options) -> None:
    """A pass that should have applied and did not is an error under ``strict``, and one warning otherwise.

    Raises:
        NotRewrittenError: see above.
    """
    lost = graph.unexpected()
    if not lost:
        return
    text = "; ".join(f"{name}: {miss.reason} (to change that: {miss.remedy})" for name, miss in lost)
    part = "a part of " if graph.rewritten else ""
    message = f"SegMo left {part}a {graph.kind} graph as it was. {text}"
    if options.strict:
        raise NotRewrittenError(message)
    warnings.warn(message, stacklevel=2)
