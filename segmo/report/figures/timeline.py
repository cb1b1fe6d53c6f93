"""A plan as a timeline: one row per rank and one for the link."""

from __future__ import annotations

from pathlib import Path

from segmo.report.figures.saving import save_figure
from segmo.report.stage_names import STAGE_NAMES
from segmo.runtime.partition.plan import Plan

# Okabe and Ito's palette, which colour-blind readers can tell apart; one colour per kind of stage.
COLOURS = {
    "encode": "#0072B2",
    "dense": "#56B4E9",
    "query": "#E69F00",
    "own": "#009E73",
    "shared": "#F0E442",
    "features": "#999999",
    "context": "#999999",
    "merge": "#999999",
    "cache": "#999999",
}
MAX_ROWS = 32


def draw_timeline(plan: Plan, file: Path) -> Path:
    """Draws the plan's stages over time; stages of the critical path have a dark edge. Layers are summed up.

    Args:
        file: where to write; the suffix decides the format (png, svg, pdf).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = min(plan.world, MAX_ROWS)
    figure = Figure(figsize=(10, 1.6 + 0.38 * (shown + 1)), layout="constrained")
    axes = figure.add_subplot()
    critical = set(plan.critical_path)
    for name, stage in plan.graph.nodes(data=True):
        start, end = plan.times[name]
        row = stage["rank"] if stage["rank"] >= 0 else shown
        if end <= start or row > shown or (stage["rank"] >= shown):
            continue
        axes.barh(
            row,
            1e3 * (end - start),
            left=1e3 * start,
            height=0.7,
            color=COLOURS[stage["label"]],
            edgecolor="black" if name in critical else "white",
            linewidth=1.2 if name in critical else 0.4,
            hatch="//" if stage["rank"] < 0 else None,
        )
    labels = [f"rank {rank}: {plan.loads[rank].tokens} tokens" for rank in range(shown)]
    axes.set_yticks(range(shown + 1), [*labels, "link"])
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, predicted by the cost model")
    hidden = f", first {shown} of {plan.world} ranks" if shown < plan.world else ""
    axes.set_title(
        f"{plan.method} plan: {1e3 * plan.seconds:.1f} ms, imbalance {plan.imbalance:.3f}{hidden}",
        loc="left",
    )
    handles = [Patch(color=COLOURS[label], label=text) for label, text in STAGE_NAMES.items()]
    axes.legend(handles=handles, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, file)
