"""How long a process takes to its first token, and to the next, which has a graph of its own.

    python benchmarks/first_call.py                       # tiny Qwen2-VL models of 4, 28 and 80 decoder layers
    python benchmarks/first_call.py --layers 28 --lowering inductor --json out/first_call.json

Each row is a fresh process. *cold*: torch's caches on disk are empty. *warm*: a second process, with what the first has
left there. Torch keeps no graph of the eager lowering, so its two rows say how much they differ by chance. *each*: as
cold, and Dynamo reads, and inductor compiles, every decoder layer, in place of one of each kind. Columns:
seconds by the clock to import and to build the model, to the first token, to the second, and of a whole prefill
afterwards; of these, seconds that SegMo's passes take in both graphs; processor seconds of both tokens; calls in both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COLUMNS = {
    "way": "5",
    "layers": "7",
    "import_s": "9.1f",
    "first_token_s": "14.2f",
    "second_token_s": "15.2f",
    "passes_s": "9.2f",
    "processor_s": "12.2f",
    "again_s": "8.3f",
    "calls": "7",
}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The figures of this process, which has done nothing yet."""
    start = time.perf_counter()
    import torch

    import segmo
    from segmo.inspection.models import build, load_config, shrink
    from segmo.inspection.prompts import synthetic_prompt
    from segmo.runtime import one_layer

    if given.threads:
        torch.set_num_threads(given.threads)
    if given.each:
        one_layer.reader = lambda: None
    model = build(shrink(load_config(given.family, given.layers[0]), given.layers[0])).to(given.device)
    prompt = {name: value.to(given.device) for name, value in synthetic_prompt(model, given.frames).items()}
    segmo.compile(model, keep=0.25, lowering=given.lowering, disable="outline-layers" if given.each else ())
    found: dict[str, Any] = {"layers": given.layers[0], "import_s": time.perf_counter() - start}
    worked = time.process_time()
    for name, tokens in (("first_token_s", 1), ("second_token_s", 2), ("again_s", 1)):
        start = time.perf_counter()
        model.generate(**prompt, max_new_tokens=tokens, do_sample=False)
        found[name] = time.perf_counter() - start
        if tokens == 2:
            found["processor_s"] = time.process_time() - worked
    graphs = segmo.last_report().graphs
    found["passes_s"] = sum(record.seconds for graph in graphs for record in graph.passes)
    found["calls"] = sum(sum(graph.passes[-1].ops_after.values()) for graph in graphs)
    return found


def in_a_process(arguments: list[str], caches: Path) -> dict[str, Any]:
    """The figures of a fresh process whose caches on disk are in a folder."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(caches), "TRITON_CACHE_DIR": str(caches / "triton")}
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--here"], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each process as it ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 28, 80])
    parser.add_argument("--family", default="qwen2_vl")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--lowering", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="as many as torch takes by itself when left out")
    parser.add_argument("--json", type=Path, help="a file for the rows, written after each")
    parser.add_argument("--each", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # what a row's process is started with
    given = parser.parse_args(arguments)
    if given.here:
        print(json.dumps(measure(given)))
        return
    shared = [f"--{name}={getattr(given, name)}" for name in ("family", "frames", "lowering", "device", "threads")]
    print("".join(f"{name:>{width.partition('.')[0]}}" for name, width in COLUMNS.items()), flush=True)
    rows = []
    for layers in given.layers:
        with tempfile.TemporaryDirectory() as caches:
            for way, more in (("cold", []), ("warm", []), ("each", ["--each"])):
                place = Path(caches) / ("each" if more else "shared")
                rows.append({"way": way, **in_a_process([f"--layers={layers}", *shared, *more], place)})
                print("".join(f"{rows[-1][name]:>{width}}" for name, width in COLUMNS.items()), flush=True)
                if given.json:
                    given.json.parent.mkdir(parents=True, exist_ok=True)
                    given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
