"""A video that goes on and on, watched with a limited memory: what an extend costs, and whether that grows.

Part of benchmarks/memory.py (``--live EXTENDS``). The seconds of an extend, the bytes that the memory holds and those
that the process has resident are each fitted by a line over the extends since the memory was turned over: a memory
that has just become full is of whole segments, and only later is its old half what is left of many. The same few
frames come round and round, and an extend costs more the later it comes in its segment, so what is fitted are means
over rounds. Resident bytes are read after each round, when what the allocator keeps of freed memory was given back.
"""

from __future__ import annotations

import copy
import gc
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from peak import memory as of_process
from peak import release
from prefill import END, VIDEO
from rich.console import Console
from rich.table import Table
from scipy import stats

import segmo

FRAME_TOKENS = 256
ROUND = 16  # frames that come round, and of a segment at most
FEWEST = 8  # rounds that show a trend
TURNED = 3  # times as many extends as fill a memory turn it over


@dataclass(frozen=True)
class Trend:
    """A line through a quantity.

    Attributes:
        what: and its unit.
        median: of the rounds.
        slope: growth with each extend.
        half: half of the slope's 95% interval.
        points: rounds that it was fitted to.
    """

    what: str
    median: float
    slope: float
    half: float
    points: int

    @property
    def flat(self) -> bool:
        """Whether 0 is in the interval."""
        return abs(self.slope) <= self.half


def frames(prompt: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The first frames of a prompt's video, one after the other, as a processor's outputs; round and round."""
    encoded, grid = prompt["mm_encoder_outputs"]["video"], prompt["video_grid_thw"]
    features, ids = encoded.pooler_output[0], prompt["input_ids"][0]
    sinks = ids[: int((ids == VIDEO).nonzero()[0])]
    row = torch.cat([sinks, torch.full((FRAME_TOKENS,), VIDEO), torch.tensor([END])])[None]
    while True:
        for part in features[: ROUND * FRAME_TOKENS].split(FRAME_TOKENS):
            frame = copy.copy(encoded)
            frame.pooler_output = (part,)
            yield {
                "input_ids": row,
                "video_grid_thw": torch.tensor([[1, *grid[0, 1:].tolist()]]),
                "mm_encoder_outputs": {"video": frame},
            }


def live(model: Any, prompt: dict[str, Any], extends: int, limit: int) -> dict[str, Any]:
    """Watches so many frames, one at a time, with ``limit`` bytes of memory; what each cost, and the trends.

    Raises:
        SystemExit: there are too few extends to see a trend.
    """
    source = frames(prompt)
    memory = segmo.watch(model, None, next(source), limit=limit, longest=ROUND)
    seconds: list[float] = []
    held: list[int] = []
    resident: list[int] = []
    for at in range(1, extends + 1):
        part = next(source)
        start = time.perf_counter()
        memory.extend(part)
        seconds.append(time.perf_counter() - start)
        held.append(memory.summary()["bytes"])
        if at % ROUND == 0:
            gc.collect()
            release()
            resident.append(of_process("VmRSS"))
    full = next((at for at, (a, b) in enumerate(pairwise(held)) if b < a), extends)
    since = TURNED * full // ROUND + 1  # rounds
    if len(resident) < since + FEWEST:
        raise SystemExit(f"the memory is full after {full} extends: a trend takes {ROUND * (since + FEWEST)} of them")
    means = {"seconds": over_rounds(seconds), "held bytes": over_rounds(held), "resident bytes": resident}
    series = {"seconds": seconds, "held bytes": held, "resident bytes": resident}
    trends = [trend(what, values[since:]) for what, values in means.items()]
    return {"extends": extends, "full": full, **series, "trends": [asdict(each) for each in trends]}


def over_rounds(values: Sequence[float]) -> list[float]:
    """Means over rounds that are whole."""
    return [statistics.mean(values[at : at + ROUND]) for at in range(0, len(values) - ROUND + 1, ROUND)]


def trend(what: str, values: Sequence[float]) -> Trend:
    """Least squares through a value for each round, with Student's interval.

    A machine that is slow in one round is slow in the next one too, so rounds are no independent witnesses: they count
    as as many as the correlation of successive residuals leaves of them (Santer et al., "Statistical significance of
    trends and trend differences in layer-average atmospheric temperature time series", 2000, section 4).
    """
    at = ROUND * np.arange(len(values))
    fit = stats.linregress(at, values)
    rest = np.asarray(values) - fit.intercept - fit.slope * at
    alike = max(0.0, float(rest[1:] @ rest[:-1] / (rest @ rest))) if rest.any() else 0.0
    count = max(3.0, len(values) * (1 - alike) / (1 + alike))
    error = fit.stderr * math.sqrt((len(values) - 2) / (count - 2))
    half = stats.t.ppf(0.975, count - 2) * error
    return Trend(what, statistics.median(values), float(fit.slope), float(half), len(values))


def show_live(found: dict[str, Any], console: Console) -> None:
    """The trends, each with a verdict."""
    table = Table(title=f"{found['extends']} extends by a frame, the memory full after {found['full']}")
    for column in ("", "median", "slope with each extend (95%)", "in 1,000 extends", "slope is"):
        table.add_column(column, justify="right" if table.columns else "left")
    for each in (Trend(**fields) for fields in found["trends"]):
        share = 1000 / each.median
        table.add_row(
            each.what,
            f"{each.median:,.3g}" if each.median < 1000 else f"{each.median:,.0f}",
            f"{each.slope:+.3g} +- {each.half:.2g}",
            f"{share * each.slope:+.2%} +- {share * each.half:.2%}",
            "0 within noise" if each.flat else "NOT 0",
        )
    console.print(table)
