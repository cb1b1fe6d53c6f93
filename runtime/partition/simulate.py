"""The cost model replayed for many ranks and lengths of video: where more ranks stop paying, and why.

Nothing is run; every figure is a prediction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from segmo.checked import is_number
from segmo.errors import MemoryPlanError, PlanError
from segmo.runtime.cost.device import Device
from segmo.runtime.cost.model import CostModel
from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.partition.plan import Plan
from segmo.runtime.partition.planner import make_plan, replicated_memory
from segmo.runtime.partition.workload import Workload

MOST_FRAMES = 10_000_000


@dataclass(frozen=True)
class Video:
    """How a video becomes tokens.

    Attributes:
        tokens_per_frame: video tokens of a sampled frame, before selection.
        frames_per_second: sampled.
        keep: share of the video tokens that CAS keeps.
        scene_seconds: median length of a scene; lengths are log-normal with sigma 1, as those of edited
            video.
        context_scenes: scenes whose head frame is context.
        seed: of the scene lengths.

    Raises:
        PlanError: a value is out of range.
    """

    tokens_per_frame: int = 256
    frames_per_second: float = 1.0
    keep: float = 0.25
    scene_seconds: float = 8.0
    context_scenes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if not (is_number(self.keep) and 0 < self.keep <= 1):
            raise PlanError(f"keep is {self.keep!r}; it must be a number with 0 < keep <= 1")
        if not (is_number(self.frames_per_second) and self.frames_per_second > 0):
            raise PlanError(f"a video is sampled at more than 0 frames per second, got {self.frames_per_second!r}")
        if self.tokens_per_frame < 1:
            raise PlanError(f"a frame has at least one token, got {self.tokens_per_frame}")

    def workload(self, seconds: float, sinks: int = 20, query: int = 40) -> Workload:
        """The prefill of a video of that length.

        Raises:
            PlanError: it has more frames than can be simulated.
        """
        frames = max(1, round(seconds * self.frames_per_second))
        if frames > MOST_FRAMES:
            raise PlanError(f"{frames:,} frames are too many to simulate; sample {MOST_FRAMES:,} at most")
        rng = np.random.default_rng(self.seed)
        lengths: list[int] = []
        left = frames
        while left > 0:
            seconds_long = self.scene_seconds * rng.lognormal(0.0, 1.0)
            lengths.append(min(left, max(1, round(seconds_long * self.frames_per_second))))
            left -= lengths[-1]
        sizes = [length * self.tokens_per_frame for length in lengths]
        segments = [max(1, round(self.keep * tokens)) for tokens in sizes]
        chosen = rng.choice(len(segments), min(self.context_scenes, len(segments)), replace=False)
        head = max(1, round(self.keep * self.tokens_per_frame))
        context = [0] * len(segments)
        for scene in chosen.tolist():
            context[scene] = min(head, segments[scene])
        return Workload(sinks, query, tuple(segments), tuple(context), sum(sizes), self.tokens_per_frame)


@dataclass(frozen=True)
class Point:
    """One simulated prefill.

    Attributes:
        ranks, video_seconds: what was simulated.
        seconds: predicted time of encoding and prefill.
        speedup, efficiency: against one rank, or against the fewest ranks whose memory holds it.
        bytes_received: per rank.
        limit: what keeps it from being faster, in words; for a prefill that fits no memory "memory" (more ranks would
            help) or "memory: " and what is too much on every rank, such as "memory: embeddings".
    """

    ranks: int
    video_seconds: float
    seconds: float
    speedup: float
    efficiency: float
    bytes_received: int
    limit: str

    @property
    def fits(self) -> bool:
        """Whether the ranks' memory holds it; otherwise ``seconds`` is infinite."""
        return math.isfinite(self.seconds)


def limit_of(plan: Plan) -> str:
    """The largest reason why a plan takes longer than its share of the computing: in a word or two."""
    mean = sum(plan.busy) / plan.world
    replicated = _replicated(plan)
    parts = {
        "computing": mean - replicated,
        "imbalance": max(plan.busy) - mean,
        "replicated": replicated,
        "exchange": max(plan.seconds - max(plan.busy), 0.0),
    }
    if sum(not run for run in plan.pieces) > plan.world // 2:
        return "too few segments"
    return max(parts, key=parts.__getitem__)


def lacking(work: Workload, shape: ModelShape, device: Device, cache: str) -> str:
    """Why a prefill fits no memory, as in :class:`Point`: for want of ranks, or by what every rank holds."""
    need = replicated_memory(work, shape, cache)
    if need.total <= device.memory_bytes:
        return "memory"
    return f"memory: {max(need.parts(), key=need.parts().__getitem__)}"


def _replicated(plan: Plan) -> float:
    """Seconds of the rank with the least work, if it had no segments."""
    cost = CostModel(plan.shape, plan.devices[0])
    tokens = plan.workload.sinks + plan.workload.query
    return cost.dense_seconds(tokens) + cost.layer_overhead_seconds()


def simulate(
    shape: ModelShape, device: Device, ranks: list[int], video_seconds: list[float], video: Video, cache: str
) -> list[Point]:
    """Predicted prefills for every number of ranks and length; every one is in the list."""
    points = []
    for seconds in video_seconds:
        work = video.workload(seconds)
        base: Plan | None = None
        for count in sorted(ranks):
            try:
                plan = make_plan(work, shape, [device] * count, split=count <= 64, cache=cache)
            except MemoryPlanError:
                points.append(Point(count, seconds, math.inf, 0.0, 0.0, 0, lacking(work, shape, device, cache)))
                continue
            base = base or plan
            speedup = base.seconds * base.world / plan.seconds
            points.append(
                Point(
                    ranks=count,
                    video_seconds=seconds,
                    seconds=plan.seconds,
                    speedup=speedup,
                    efficiency=speedup / count,
                    bytes_received=plan.bytes_received,
                    limit=limit_of(plan),
                )
            )
    return points
