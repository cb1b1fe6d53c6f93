"""Prefill over ranks, measured in one run: full attention and its parallel forms against LSP and CAS+LSP.

Every rank is a process with one thread on a core of its own, over gloo. Times are the best of some runs, since other
work on the machine only ever slows one down; a run's time is that of its slowest rank. PyTorch's own context
parallelism is not in the table: it has no sharding strategy for the CPU's flash attention.

    python benchmarks/distributed.py --tokens 16384 --ranks 2
    python benchmarks/distributed.py --plans 12 --tokens 8192    # how well the cost model predicts and chooses
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from peak import memory, release, reset_peak
from rank_clock import clocked, exchange
from rank_model import DTYPES, SHAPE, Decoder, Prompt, make_prompt
from rank_plans import predict, show_plans
from rank_ways import (
    Outcome,
    Way,
    gathered_attention,
    ring_attention,
    segments,
    sequence_parallel,
    ulysses_attention,
    whole,
)
from rich.console import Console
from rich.table import Table

from segmo.runtime.cost.device import Device
from segmo.runtime.cost.link import measure_link
from segmo.runtime.cost.measure import measure_device
from segmo.runtime.distributed.ranks import Ranks


@dataclass(frozen=True)
class Result:
    """One way, measured.

    Attributes:
        seconds: best run of the slowest rank, per prompt.
        cpu_seconds: processor time of the busiest rank in its best run, per prompt: what the wall time would be on
            cores that nothing else uses, but for waiting.
        bytes_received: by the rank that receives most, in one prefill.
        imbalance: largest over mean of the ranks' processor time.
        memory_mib: of each rank that takes part, its peak above what it held before (weights and prompt).
        error: difference of the question's hidden states from the single process, relative to their size.
    """

    name: str
    ranks: int
    seconds: float
    cpu_seconds: float
    bytes_received: int
    imbalance: float
    memory_mib: tuple[float, ...]
    error: float | None


def calibrate(ranks: Ranks, dtype: torch.dtype) -> Device:
    """The rates of the slowest rank, measured on all of them at once, as they will run."""
    dist.barrier()
    mine = measure_device(torch.device("cpu"), dtype, SHAPE)
    latency, rate = measure_link(ranks, torch.device("cpu"))
    fields = {
        "gemm_flops": min,
        "attention_flops": min,
        "memory_bytes_per_s": min,
        "tile_keys": max,
        "call_seconds": max,
    }
    shared = {name: pick(exchange(getattr(mine, name))) for name, pick in fields.items()}
    link = {"link_seconds": max(exchange(latency)), "link_bytes_per_s": min(exchange(rate))}
    return Device(**{**asdict(mine), **shared, **link})


def nothing(decoder: Decoder, prompt: Prompt, ranks: Ranks) -> Outcome:
    """What the other ranks do while one runs alone."""
    return Outcome(torch.zeros(0, 1), 0)


class Comparison:
    """Ways on one prompt, measured one after the other.

    Attributes:
        alone: the ranks object of a single process. results: what was measured, in order.
    """

    def __init__(self, args: argparse.Namespace, ranks: Ranks, decoder: Decoder) -> None:
        self.args, self.ranks, self.decoder = args, ranks, decoder
        self.alone = Ranks(None)
        self.prompt = make_prompt(args.tokens, args.scenes, DTYPES[args.dtype])
        self.results: list[Result] = []
        self._question: dict[str, torch.Tensor] = {}

    def single(self, name: str, way: Way) -> None:
        """One process; the others wait."""
        mine = way if self.ranks.rank == 0 else nothing
        outcome = self._add(name, 1, mine, self.alone, 1, None)
        if outcome is not None:
            self._question[name] = outcome.question

    def parallel(self, name: str, way: Way, same_as: str, prompts: int = 1) -> None:
        """All ranks; ``prompts`` > 1 when each does a prompt of its own. Compared with a single process's way."""
        group = self.alone if prompts > 1 else self.ranks
        self._add(name, self.ranks.world, way, group, prompts, same_as)

    def _add(self, name: str, used: int, way: Way, group: Ranks, prompts: int, same_as: str | None) -> Outcome | None:
        if not re.search(self.args.only, name):
            return None
        group.traffic.bytes_received = 0
        release()
        reset_peak()
        before = memory("VmRSS")
        clock = clocked(lambda: way(self.decoder, self.prompt, group), self.args.runs)
        peaks = exchange((memory("VmHWM") - before) / 2**20)
        moved = int(max(exchange(group.traffic.bytes_received)) / self.args.runs)
        busy = clock.cpu[:used]
        self.results.append(
            Result(
                name,
                used,
                clock.wall / prompts,
                max(busy) / prompts,
                moved,
                max(busy) / statistics.mean(busy),
                tuple(peaks[:used]),
                self._error(clock.outcome, same_as),
            )
        )
        if self.ranks.rank == 0:
            Console(stderr=True).print(f"{name}: {clock.wall / prompts:.3f} s", highlight=False)
        return clock.outcome

    def _error(self, outcome: Outcome, same_as: str | None) -> float | None:
        """On the rank that holds the question; with full attention over ranks only the last one may."""
        mine = float("nan")
        if same_as in self._question and self.ranks.rank == 0:
            expected = self._question[str(same_as)].float()
            if outcome.question.shape == expected.shape and outcome.has_question:
                mine = float((outcome.question.float() - expected).norm() / expected.norm())
        error = exchange(mine)[0]
        return None if error != error else error


def compare(args: argparse.Namespace, ranks: Ranks, decoder: Decoder, device: Device) -> list[Result]:
    """All ways on one prompt."""
    it, devices, keep = Comparison(args, ranks, decoder), [device] * ranks.world, args.keep

    def lsp(keep: float, method: str, split: bool = True) -> Way:
        return segments(keep, args.segments, (args.context, args.tails), method, devices, split)

    it.single("full attention", whole)
    it.parallel("full attention, data parallel", whole, "full attention", prompts=ranks.world)
    it.parallel("full, ring (zigzag)", sequence_parallel(ring_attention, True), "full attention")
    it.parallel("full, all-gather of K/V (zigzag)", sequence_parallel(gathered_attention, True), "full attention")
    if SHAPE.kv_heads % ranks.world == 0:
        it.parallel("full, Ulysses", sequence_parallel(ulysses_attention, False), "full attention")
    it.single("LSP", lsp(1.0, "best"))
    it.parallel("LSP, equal token counts", lsp(1.0, "equal"), "LSP")
    it.parallel("LSP, by the cost model", lsp(1.0, "best"), "LSP")
    it.single(f"CAS {keep} + LSP", lsp(keep, "best"))
    it.parallel(f"CAS {keep} + LSP, whole segments", lsp(keep, "best", split=False), f"CAS {keep} + LSP")
    it.parallel(f"CAS {keep} + LSP, by the cost model", lsp(keep, "best"), f"CAS {keep} + LSP")
    return it.results


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that was asked for, on this rank's core; the same answer on every rank but for rounding."""
    ranks = Ranks.of()
    device = calibrate(ranks, DTYPES[args.dtype])
    decoder = Decoder(DTYPES[args.dtype])
    answer: dict[str, Any] = {"device": asdict(device)}
    if args.plans:
        answer["plans"] = predict(args, ranks, decoder, device)
    else:
        answer["results"] = [asdict(result) for result in compare(args, ranks, decoder, device)]
    return answer


def work(rank: int, args: argparse.Namespace, folder: str) -> None:
    """One rank: a process with one thread on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(f"{folder}/store", args.ranks),
        rank=rank,
        world_size=args.ranks,
        timeout=datetime.timedelta(minutes=10),
    )
    answer = measure(args)
    if rank == 0:
        Path(folder, "answer.json").write_text(json.dumps(answer))
    dist.barrier()
    dist.destroy_process_group()


def show_results(results: list[dict[str, Any]]) -> Table:
    """The ways side by side, speedups by wall time and by processor time of the busiest rank.

    MiB is the peak of the rank that holds most, above its weights and the prompt.
    """
    table = Table(title="prefill, one thread per rank")
    for column in ("way", "ranks", "wall s", "x", "CPU s", "x", "MB received", "max/mean", "MiB", "error"):
        table.add_column(column, justify="left" if column == "way" else "right")
    first = results[0]
    for one in results:
        table.add_row(
            one["name"],
            str(one["ranks"]),
            f"{one['seconds']:.3f}",
            f"{first['seconds'] / one['seconds']:.2f}",
            f"{one['cpu_seconds']:.3f}",
            f"{first['cpu_seconds'] / one['cpu_seconds']:.2f}",
            f"{one['bytes_received'] / 1e6:.3f}",
            f"{one['imbalance']:.3f}",
            f"{max(one['memory_mib']):.0f}",
            "" if one["error"] is None else f"{one['error']:.1e}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="video tokens of the prompt; with --plans at most")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--segments", default="8", help='as the option "segments"')
    parser.add_argument("--context", type=int, default=2, help="scenes whose head frames are context")
    parser.add_argument("--tails", type=int, default=1, help="last frames of each segment that are context")
    parser.add_argument("--only", default="", help="ways whose name matches this regular expression")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--plans", type=int, default=0, help="compare predictions on that many videos, instead")
    parser.add_argument("--json", type=Path, help="write everything here too")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, (args, folder), nprocs=args.ranks)
        answer = json.loads(Path(folder, "answer.json").read_text())
    console = Console(width=120)
    if args.plans:
        for line in show_plans(answer["plans"]):
            console.print(line, highlight=False)
    else:
        console.print(show_results(answer["results"]))
    if args.json:
        args.json.write_text(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
