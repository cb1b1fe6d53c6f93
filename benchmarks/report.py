"""Size of the HTML report, the time to make it, and the time in which Chromium opens it.

    python benchmarks/report.py                          # 10 and 80 layers, 32 and 3,000 frames
    python benchmarks/report.py --layers 10 --frames 32

Each line is a real prefill of a narrow Qwen2.5-VL with random weights and made-up frames. "opened" is from the start of
loading until everything on the page is laid out (the first frame after the load event), and how long the processor
worked for that; medians of five openings, each in a fresh tab.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import segmo
from segmo.errors import SegMoError
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import prompt_of
from segmo.report.report import Report

PICTURE = (90, 160)  # height and width of a frame
OPENINGS = 5
_OPENED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now()))))"


def make_report(layers: int, frames: int) -> Report:
    """The report of a prefill with so many decoder layers and frames of the model."""
    model = build(shrink(load_config("qwen2_5_vl", layers)))
    scenes = np.random.default_rng(0).integers(0, 255, (-(-frames // 12), *PICTURE, 3), dtype=np.uint8)
    pictures = scenes.repeat(24, axis=0)[: 2 * frames]  # the model merges two into one
    inputs = prompt_of(model, torch.from_numpy(pictures))
    segmo.compile(model, keep=0.25)
    with torch.no_grad(), segmo.show_prompt(pictures, question="What happens?", name="made up"):
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return segmo.last_report()


def seconds_to_open(page: Path) -> tuple[float, float]:
    """Seconds in which headless Chromium has laid out a page from disk, by the clock and of the processor."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise SegMoError("there is no Chromium on this machine; 'make browser' installs it as root")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        times = [_open(browser, page) for _ in range(OPENINGS)]
        browser.close()
    clock, processor = (statistics.median(each) for each in zip(*times, strict=True))
    return clock, processor


def _open(browser: Any, page: Path) -> tuple[float, float]:
    tab = browser.new_page()
    client = tab.context.new_cdp_session(tab)
    client.send("Performance.enable")
    tab.goto(page.as_uri())
    milliseconds = float(tab.evaluate(_OPENED))
    values = {each["name"]: each["value"] for each in client.send("Performance.getMetrics")["metrics"]}
    tab.close()
    return milliseconds / 1e3, float(values["ProcessTime"])


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each number of layers and frames."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 80])
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 3000])
    given = parser.parse_args(arguments)
    for layers, frames in itertools.product(given.layers, given.frames):
        report = make_report(layers, frames)
        start = time.perf_counter()
        page = report.to_html()
        made = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "report.html"
            file.write_text(page, encoding="utf-8")
            size, (clock, processor) = file.stat().st_size / 1e6, seconds_to_open(file)
        print(
            f"{layers} layers, {frames:,} frames: {size:.2f} MB, made in {made:.2f} s, "
            f"opened in {clock:.2f} s ({processor:.2f} s of the processor)",
            flush=True,
        )
        torch._dynamo.reset()


if __name__ == "__main__":
    main()
