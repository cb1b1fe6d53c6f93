"""Throughput and time to the first token of a server: with all tokens, and with three ways to choose a quarter of them.

    python benchmarks/serve.py [--clients 1 4 16] [--frames 32] [--methods dense SegMo] [--model FOLDER] [--json FILE]

Run it where vLLM is installed ("make test-vllm" makes such an environment). Every method gets a server of its own, one
after another, with the same model, films and questions; EVS and VidCom2 are vLLM's own, without the plugin. Without
``--model``, a random Qwen3-VL is built, the one family for which vLLM has both: a decoder of 109 million parameters
behind a small tower, so that prefill is most of the work. Each request shows a film that no other shows, so neither
prefixes nor features are there already. Each client asks twice, or once where there are many.

A row that fails or takes longer than ``--limit`` seconds says so, and the others go on; results are written as they
come. The prompts have a system turn, as real ones do: vLLM 0.32 looks for the first frame's time in front of the first
mark of a vision turn, and its own pruning ends the server where less text than a time stands there.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from serving import tiny  # noqa: E402  # lies below tests, which stands on the path only now
from serving.server import serving  # noqa: E402  # likewise

RATE = ["--video-pruning-rate", "0.75"]
# Name, command line beside the model, and whether the plugin is loaded.
METHODS: dict[str, tuple[list[str], bool]] = {
    "dense": ([], False),
    "EVS": ([*RATE, "--video-pruning-method", "evs"], False),
    "VidCom2": ([*RATE, "--video-pruning-method", "vidcom2"], False),
    "SegMo": (RATE, True),
}
SIDE = 128  # pixels: 256 tokens a frame
SYSTEM = "<|im_start|>" + "".join(f" w{word}" for word in range(10, 34)) + "<|im_end|>"


def film(frames: int, seed: int, path: Path) -> bytes:
    """An H.264 film of scenes of eight pictures, with noise."""
    random = np.random.default_rng(seed)
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=2, options={"preset": "veryfast"})
        stream.height = stream.width = SIDE
        stream.pix_fmt = "yuv420p"
        for at in range(frames):
            if at % 8 == 0:
                still = random.integers(0, 255, (8, 8, 3)).repeat(SIDE // 8, 0).repeat(SIDE // 8, 1)
            pixels = np.clip(still + random.integers(-9, 9, still.shape), 0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 2)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def questions() -> Iterator[str]:
    """Never the same one twice."""
    random = np.random.default_rng(0)
    while True:
        yield " ".join(f"w{word}" for word in random.integers(9, tiny.WORDS, 12))


def body_of(question: str, film: bytes, tokens: int) -> dict[str, Any]:
    url = f"data:video/mp4;base64,{base64.b64encode(film).decode()}"
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return {"model": "m", "messages": messages, "max_tokens": tokens, "ignore_eos": True}


def ask(address: str, body: dict[str, Any], deadline: float) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    begin, first = time.perf_counter(), 0.0
    left = httpx.Timeout(max(1.0, deadline - begin))
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=left) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if time.perf_counter() > deadline:
                raise httpx.ReadTimeout("the row's time is over")
            if first or not line.startswith("data: {"):
                continue
            said = json.loads(line[6:])
            if "choices" not in said:
                raise httpx.HTTPError(f"the server failed: {said}")
            if said["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def load(address: str, clients: int, bodies: list[dict[str, Any]], deadline: float) -> dict[str, float]:
    """Requests a minute, and the median time to the first token, of so many clients at once.

    Raises:
        httpx.HTTPError: a request failed, or the deadline came.
    """
    waiting, lock = list(bodies), threading.Lock()
    seconds: list[tuple[float, float]] = []
    faults: list[httpx.HTTPError] = []

    def client() -> None:
        while True:
            with lock:
                if not waiting or faults:
                    return
                body = waiting.pop(0)
            try:
                seconds.append(ask(address, body, deadline))
            except httpx.HTTPError as error:
                faults.append(error)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    whole = time.perf_counter() - begin
    return {
        "requests": len(seconds),
        "per_minute": 60 * len(seconds) / whole,
        "first_token": statistics.median(first for first, _ in seconds),
        "last_token": statistics.median(last for _, last in seconds),
    }


def requests_of(clients: int) -> int:
    return 2 * clients if clients < 4 else clients


def measure(name: str, model: Path, bodies: list[dict[str, Any]], arguments: argparse.Namespace, save: Any) -> None:
    """One row: a server from its start to its end; ``save`` is called with all that is known of it, again and again."""
    options, plugin = METHODS[name]
    os.environ["VLLM_PLUGINS"] = "segmo" if plugin else "segmo_cpu"
    log = Path(tempfile.mkdtemp()) / f"{name}.log"
    row: dict[str, Any] = {"fault": None, "log": str(log), "clients": {}}
    template = ["--chat-template", str(model / "chat_template.jinja")]
    room = ["--max-model-len", "8192", "--max-num-batched-tokens", "8192", "--kv-cache-memory-bytes", str(4 << 30)]
    waiting = list(bodies)
    try:
        with serving(model, *options, *template, *room, "--max-num-seqs", "16", log=log, segmo=False) as address:
            deadline = time.perf_counter() + arguments.limit
            first = httpx.post(f"{address}/v1/chat/completions", json=waiting.pop(0), timeout=arguments.limit)
            first.raise_for_status()  # what is made on first use is made now
            row["prompt_tokens"] = first.json()["usage"]["prompt_tokens"]
            for clients in arguments.clients:
                part = [waiting.pop(0) for _ in range(requests_of(clients))]
                row["clients"][clients] = load(address, clients, part, deadline)
                save(row)
    except httpx.TimeoutException:
        row["fault"] = f"over {arguments.limit} s"
    except (httpx.HTTPError, RuntimeError, OSError) as error:
        row["fault"] = f"crashes: {_reason(log) or error}"
    save(row)


def _reason(log: Path) -> str:
    """The last error that a server's log tells of."""
    found = [
        line for line in log.read_text(errors="replace").splitlines() if re.search(r"\b\w+(Error|Exception): ", line)
    ]
    return found[-1].split(")", 1)[-1].strip()[-200:] if found else ""


def show(results: dict[str, Any], clients: list[int]) -> None:
    table = Table("method", "prompt", *(f"{n} clients: requests/min, first token" for n in clients))
    dense = results.get("dense", {}).get("clients", {})
    for name, row in results.items():
        cells = []
        for n in clients:
            found = row["clients"].get(n)
            if found is None:
                cells.append(row["fault"] or "")
                continue
            times = f" ({found['per_minute'] / dense[n]['per_minute']:.2f}x)" if n in dense else ""
            cells.append(f"{found['per_minute']:.1f}{times}, {found['first_token']:.2f} s")
        table.add_row(name, str(row.get("prompt_tokens", "")), *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--frames", type=int, default=32, help="pictures of a film; two make a frame of the model")
    parser.add_argument("--tokens", type=int, default=8, help="generated for each request")
    parser.add_argument("--hidden", type=int, default=1024, help="size of the random model")
    parser.add_argument("--layers", type=int, default=14, help="of its decoder")
    parser.add_argument("--limit", type=float, default=270, help="seconds for a row, from when its server is ready")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--model", type=Path, help="folder of a Qwen3-VL, with its chat template")
    parser.add_argument("--json", type=Path, help="also write the results into this file, as they come")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that no server is left behind
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = Path(folder) / "model"
            tiny.build("qwen3_vl", model, hidden=arguments.hidden, layers=arguments.layers)
            (model / "chat_template.jinja").write_text(SYSTEM + tiny.CHAT)
        count = 1 + sum(map(requests_of, arguments.clients))
        films = [film(arguments.frames, at, Path(folder) / f"{at}.mp4") for at in range(count)]
        bodies = [body_of(asked, shown, arguments.tokens) for asked, shown in zip(questions(), films, strict=False)]
        for name in arguments.methods:

            def save(row: dict[str, Any], name: str = name) -> None:
                results[name] = row
                if arguments.json:
                    arguments.json.write_text(json.dumps(results, indent=1))

            measure(name, model, bodies, arguments, save)
            show(results, arguments.clients)


if __name__ == "__main__":
    main()
