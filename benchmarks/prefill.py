"""Prefill times of a decoder of Qwen2-0.5B's shape: eager, inductor, LSP, CAS, CAS+LSP, beside the roofline.

    python benchmarks/prefill.py                      # make bench
    python benchmarks/prefill.py --lengths 16384 --dtypes bfloat16 --rounds 9

Everything is timed in one process. All ways are compiled first, and then take turns, because rates differ from minute
to minute where others use a machine; medians are given, of ratios within a round. The roofline is the time of the
FLOPs that remain at rates measured after each prefill, medians of a round: linear layers at the GEMM rate of the dtype,
visible pairs of tokens at the rate of flash attention. "untrimmed" computes every row of the last layer, as a model of
many layers does almost wholly: of its four layers, this one saves most of one. "untiled" has no tiles of rows.
``own`` is the share of SegMo's own operators (scenes, scores, selection, gathering) in the prefill that they leave;
``--profile`` shows each. Results are saved after every length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peak import memory, reset_peak
from rich.console import Console
from rich.table import Table
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import segmo
from segmo.compat import flags
from segmo.runtime.cost.gain import processor
from segmo.runtime.schedule import attention_schedule, visible_pairs

LAYERS, HIDDEN, INNER, HEADS, GROUPS, VOCABULARY = 4, 896, 4864, 14, 2, 1024
SIZE = HIDDEN // HEADS
VIDEO, START, END = 5, 7, 8
CELLS = 16  # of a frame's side, so 256 tokens a frame
SEGMENTS = 8

TRIM, TILE = "trim-last-layer", "tile-rows"
LSP_OFF = {"disable": ["segment-attention", "inject-context"]}
WAYS: dict[str, Mapping[str, Any] | None] = {
    "eager": None,
    "inductor": None,
    "LSP": {"keep": 1.0, "segments": SEGMENTS, "disable": ["inject-context"]},
    "LSP+GCI": {"keep": 1.0, "segments": SEGMENTS},
    "CAS 0.5": {"keep": 0.5, **LSP_OFF},
    "CAS 0.25": {"keep": 0.25, **LSP_OFF},
    "CAS+LSP 0.5": {"keep": 0.5, "segments": SEGMENTS},
    "CAS+LSP 0.25": {"keep": 0.25, "segments": SEGMENTS},
    "CAS+LSP 0.25, untrimmed": {"keep": 0.25, "segments": SEGMENTS, "disable": [TRIM]},
    "LSP, untiled": {"keep": 1.0, "segments": SEGMENTS, "disable": ["inject-context", TILE]},
    "CAS+LSP 0.25, untiled": {"keep": 0.25, "segments": SEGMENTS, "disable": [TILE]},
}


Rates = tuple[float, float]  # FLOP/s of matrix products, of flash attention


def build_model(dtype: torch.dtype) -> Any:
    """Qwen2-VL with four decoder layers of Qwen2-0.5B's shape and random weights."""
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "max_position_embeddings": 1 << 17,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config).to(dtype).eval()


def build_prompt(model: Any, tokens: int, dtype: torch.dtype) -> dict[str, Any]:
    """A prompt with ``tokens`` video tokens in ``SEGMENTS`` unequal scenes that hold still but for noise."""
    frames = tokens // CELLS**2
    generator = torch.Generator().manual_seed(0)
    bounds = torch.linspace(0, 1, SEGMENTS + 1) ** 1.3
    scene = torch.bucketize((torch.arange(frames) + 0.5) / frames, bounds[1:-1])
    still = torch.randn(SEGMENTS, CELLS**2, HIDDEN, generator=generator)
    features = still[scene] + 0.1 * torch.randn(frames, CELLS**2, HIDDEN, generator=generator)
    row = [20, 21, 22, START, *[VIDEO] * (frames * CELLS**2), END, *range(30, 62)]
    ids = torch.tensor([row])
    grid = torch.tensor([[frames, 2 * CELLS, 2 * CELLS]])
    kinds = torch.where(ids == VIDEO, 2, 0)
    positions, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, video_grid_thw=grid)
    encoded = BaseModelOutputWithPooling(pooler_output=(features.flatten(0, 1).to(dtype),))
    return {"input_ids": ids, "position_ids": positions, "mm_encoder_outputs": {"video": encoded}, "logits_to_keep": 1}


def seconds_of(run: Callable[[], Any]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def median_seconds(run: Callable[[], Any], runs: int, enough: float = 60.0) -> float:
    """Median over ``runs``, or over as many as fit into ``enough`` seconds."""
    seconds: list[float] = []
    while not seconds or (len(seconds) < runs and sum(seconds) < enough):
        seconds.append(seconds_of(run))
    return statistics.median(seconds)


def gemm_rate(dtype: torch.dtype) -> float:
    """FLOP/s of the MLP's matrix product."""
    x, weight = torch.randn(4096, HIDDEN, dtype=dtype), torch.randn(INNER, HIDDEN, dtype=dtype)
    flops = 2 * x.numel() * INNER
    torch.nn.functional.linear(x, weight)
    return flops / median_seconds(lambda: torch.nn.functional.linear(x, weight), 7)


def flash_rate(dtype: torch.dtype) -> float:
    """FLOP/s of causal flash attention, counting visible pairs only."""
    length = 4096
    q = torch.randn(1, HEADS, length, SIZE, dtype=dtype)
    k = torch.randn(1, GROUPS, length, SIZE, dtype=dtype)
    flops = pair_flops(length * (length + 1) // 2)
    attention = torch.nn.functional.scaled_dot_product_attention
    attention(q, k, k, is_causal=True, enable_gqa=True)
    return flops / median_seconds(lambda: attention(q, k, k, is_causal=True, enable_gqa=True), 5)


def rates_now(dtype: torch.dtype) -> Rates:
    """FLOP/s of matrix products and of flash attention."""
    return gemm_rate(dtype), flash_rate(dtype)


def pair_flops(pairs: int) -> int:
    """FLOPs of one layer's attention over so many visible pairs of tokens."""
    return 4 * pairs * SIZE * HEADS


def projection_flops() -> int:
    """FLOPs of one layer's queries, keys and values for one token."""
    return 2 * HIDDEN * (HIDDEN + 2 * GROUPS * SIZE)


def token_flops() -> int:
    """FLOPs of one layer's linear maps for one token."""
    return projection_flops() + 2 * HIDDEN * (HIDDEN + 3 * INNER)


def roofline_seconds(kept: int, pairs: int, trimmed: bool, rates: Rates) -> float:
    """Time of the FLOPs of a prefill at the rates of matrix products and of flash attention."""
    whole = LAYERS - 1 if trimmed else LAYERS
    linear = whole * kept * token_flops()
    attention = whole * pair_flops(pairs)
    if trimmed:  # of the last layer: projections of all tokens, the rest for one
        linear += (kept - 1) * projection_flops() + token_flops()
        attention += pair_flops(kept)
    return linear / rates[0] + attention / rates[1]


def own_operators(run: Callable[[], Any]) -> tuple[dict[str, tuple[int, float]], float]:
    """Calls and seconds of each of SegMo's operators in one run, those that took longest first; seconds of that run."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        seconds = seconds_of(run)
    events = [event for event in profile.key_averages() if event.key.startswith("segmo::")]
    events.sort(key=lambda event: -event.cpu_time_total)
    found = {event.key.removeprefix("segmo::"): (event.count, event.cpu_time_total / 1e6) for event in events}
    return found, seconds


@dataclass
class Way:
    """A compiled model that waits for its turns.

    Attributes:
        run: one prefill.
        first: seconds of the first one, which compiled.
        kept, pairs, trimmed: tokens and visible pairs that are left, and whether the last layer does one row only.
        turns: seconds of each.
        peak: bytes above what the process held before a turn.
    """

    name: str
    run: Callable[[], Any]
    first: float
    kept: int
    pairs: int
    trimmed: bool
    turns: list[float] = field(default_factory=list)
    peak: int = 0

    def take_turn(self) -> None:
        """One prefill."""
        reset_peak()
        held = memory("VmRSS")
        self.turns.append(seconds_of(self.run))
        self.peak = max(self.peak, memory("VmHWM") - held)

    def result(self, rates: Sequence[Rates]) -> dict[str, Any]:
        """The row of the table, with the rates of each round."""
        seconds = statistics.median(self.turns)
        ratios = [
            turn / roofline_seconds(self.kept, self.pairs, self.trimmed, rate)
            for turn, rate in zip(self.turns, rates, strict=True)
        ]
        operators, profiled = own_operators(self.run) if WAYS[self.name] is not None else ({}, seconds)
        own = sum(taken for name, (_, taken) in operators.items() if "segment_attention" not in name)
        return {
            "way": self.name,
            "kept": self.kept,
            "seconds": seconds,
            "turns": self.turns,
            "first_run_extra": max(0.0, self.first - seconds),
            "roofline_ratio": statistics.median(ratios),
            "own_share": own / profiled,
            "peak_mib": self.peak / 2**20,
            "operators": {name: (calls, taken / profiled, taken) for name, (calls, taken) in operators.items()},
        }


def prepare(model: Any, prompt: dict[str, Any], name: str) -> Way:
    """A model compiled in one way, by its first prefill."""
    options = WAYS[name]
    if name == "inductor":
        model.compile(dynamic=True)
    elif options is not None:
        segmo.compile(model, **options)

    def run() -> Any:
        with torch.no_grad():
            return model(**prompt, use_cache=True)

    first = seconds_of(run)
    kept = prompt["input_ids"].shape[1]
    pairs, trimmed = kept * (kept + 1) // 2, False
    if options is not None:
        report = segmo.last_report()
        kept = len(report.prefill.kept())
        pairs = kept * (kept + 1) // 2
        if report.prefill.segment is not None:
            pairs = visible_pairs(attention_schedule(report.prefill.segment, report.prefill.context, None))
        trimmed = any(each.name == TRIM and each.matches for each in report.graphs[0].passes)
    return Way(name, run, first, kept, pairs, trimmed)


def measure(names: Sequence[str], length: int, dtype: torch.dtype, rounds: int, enough: float) -> list[dict[str, Any]]:
    """All ways at one length, in turns: ``rounds`` of them, or as many as fit into ``enough`` seconds."""
    torch._dynamo.reset()
    prompt = build_prompt(build_model(dtype), length, dtype)
    ways = [prepare(build_model(dtype), prompt, name) for name in names]
    rates: list[Rates] = []
    start = time.perf_counter()
    while not rates or (len(rates) < rounds and time.perf_counter() - start < enough):
        measured = [rates_now(dtype)]
        for way in ways:
            way.take_turn()
            measured.append(rates_now(dtype))
        gemm, flash = (statistics.median(each) for each in zip(*measured, strict=True))
        rates.append((gemm, flash))
    return [{**way.result(rates), "gflops": _gflops(rates)} for way in ways]


def _gflops(rates: Sequence[Rates]) -> list[int]:
    return [round(statistics.median(each) / 1e9) for each in zip(*rates, strict=True)]


def show_operators(row: Mapping[str, Any], console: Console) -> None:
    """SegMo's own operators in one prefill, and their share of it; attention takes the place of the model's own."""
    if not row["operators"]:
        return
    table = Table(title=f"{row['way']}, {row['length']:,} video tokens: SegMo's operators", title_justify="left")
    for column in ("operator", "calls", "ms", "of the prefill"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for name, (calls, share, taken) in row["operators"].items():
        table.add_row(name, str(calls), f"{1e3 * taken:.2f}", f"{share:.1%}")
    console.print(table)


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """The table of all rows."""
    table = Table(title="Prefill, medians")
    for column in (
        "dtype",
        "video tokens",
        "way",
        "kept",
        "seconds",
        "over eager",
        "of roofline",
        "own",
        "MiB",
        "compile s",
    ):
        table.add_column(column, justify="left" if column in ("dtype", "way") else "right")
    eager = {(row["dtype"], row["length"]): row["turns"] for row in rows if row["way"] == "eager"}
    for row in rows:
        turns = zip(eager.get((row["dtype"], row["length"]), ()), row["turns"], strict=False)
        base = [a / b for a, b in turns]
        table.add_row(
            row["dtype"],
            f"{row['length']:,}",
            row["way"],
            f"{row['kept']:,}",
            f"{row['seconds']:.3f}",
            f"{statistics.median(base):.1f}x" if base else "",
            f"{row['roofline_ratio']:.2f}x",
            f"{row['own_share']:.1%}",
            f"{row['peak_mib']:,.0f}",
            f"{row['first_run_extra']:.1f}",
        )
    console.print(table)
    gemm, flash = rows[0]["gflops"]
    console.print(f"matrix products at {gemm} GFLOP/s, flash attention at {flash}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--seconds", type=float, default=240, help="after which no further round of a length begins")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="show the time of each of SegMo's operators")
    parser.add_argument("--out", type=Path, default=Path("out/prefill.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    flags.hold()  # for inductor's row: one graph there too, and no word of breaks
    console = Console(width=130)
    console.print(f"{processor()}, {arguments.threads} threads")
    rows: list[dict[str, Any]] = []
    machine = {"processor": processor(), "threads": arguments.threads}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        for length in arguments.lengths:
            found = measure(arguments.ways, length, dtype, arguments.rounds, arguments.seconds)
            rows += [{"dtype": name, "length": length, **row} for row in found]
            arguments.out.write_text(
                json.dumps({"torch": torch.__version__, "machine": machine, "rows": rows}, indent=1)
            )
            show(rows[-len(found) :], console)
            for row in found if arguments.profile else ():
                show_operators({"length": length, **row}, console)


if __name__ == "__main__":
    main()
