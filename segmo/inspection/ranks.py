"""What sharing the last prefill over ranks would look like, planned by the cost model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from segmo.errors import OptionError

if TYPE_CHECKING:
    from segmo.report.report import Report
    from segmo.runtime.partition.plan import Plan


def plan_for(report: Report, config: Any, ranks: int, device: str) -> Plan:
    """A plan of the report's last prefill for so many equal devices.

    Args:
        report: of a prefill whose attention was replaced by segments.
        config: the model's config, which says how large its layers are.
        ranks: world size.
        device: as for ``segmo plan``.

    Raises:
        OptionError: no prefill with segments has run.
    """
    import torch

    from segmo.runtime.cost.shape import shape_of
    from segmo.runtime.cost.store import planning_device
    from segmo.runtime.layout import QUERY, SINK, TURN
    from segmo.runtime.partition.planner import make_plan
    from segmo.runtime.partition.workload import Workload

    prefill = report.prefill
    if prefill is None or prefill.segment is None:
        raise OptionError("--ranks needs a prefill with segments, and attention was left as it was")
    segments, roles = prefill.segments(), prefill.segment[0]
    work = Workload(
        sinks=int((roles == SINK).sum()),
        query=int(((roles == QUERY) | (roles == TURN)).sum()),
        segments=tuple(segment["tokens"] for segment in segments),
        context=tuple(segment["context"] for segment in segments),
    )
    dtype = torch.bfloat16
    here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return make_plan(work, shape_of(config, dtype.itemsize), [planning_device(device, here, dtype)] * ranks)
