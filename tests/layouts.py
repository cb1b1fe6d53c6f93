"""Hypothesis strategies for attention layouts: sinks, segments, context, question and padding in one row."""

from __future__ import annotations

from hypothesis import strategies as st

from segmo.runtime.schedule import RowSchedule


@st.composite
def rows(draw: st.DrawFn, length: int) -> RowSchedule:
    """A row of ``length`` tokens: any of the parts may be empty, segments may be one token or none."""
    start = draw(st.integers(0, length // 4))
    end = draw(st.integers(start + 1, length))
    sink_end = draw(st.integers(start, min(end, start + 12)))
    query_start = draw(st.integers(sink_end, end))
    inner = draw(st.lists(st.integers(sink_end, query_start), max_size=5))
    segments = (*sorted(inner), query_start) if draw(st.booleans()) or inner else ()
    if not segments:  # no video: all text after the sinks belongs to the question
        return RowSchedule(start, sink_end, (), end, ())
    video = list(range(sink_end, query_start))
    chosen = draw(st.sampled_from(["none", "all", "some"]))
    if chosen == "all":
        context = tuple(video)
    elif chosen == "some" and video:
        context = tuple(sorted(draw(st.sets(st.sampled_from(video), max_size=40))))
    else:
        context = ()
    edges = sorted(draw(st.sets(st.integers(sink_end, query_start), max_size=4)))
    turns = tuple(zip(edges[::2], edges[1::2], strict=False))
    context = tuple(sorted({*context, *(place for first, last in turns for place in range(first, last))}))
    return RowSchedule(start, sink_end, segments, end, context, turns)
