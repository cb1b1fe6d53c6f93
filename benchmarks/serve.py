"""Throughput and time to the first token of a server: with all tokens, and with three ways to choose a quarter of them.

    python benchmarks/serve.py [--clients 1 4 16] [--requests 2] [--frames 128] [--model FOLDER] [--json FILE]

Run it where vLLM is installed ("make test-vllm" makes such an environment). Every method gets a server of its own, one
after another, with the same model, films and questions; EVS and VidCom2 are vLLM's own, without the plugin. Without
``--model``, a random Qwen3-VL is built, the one family for which vLLM has both. Each request asks something else about
one of a few films, as streams of a server's users do, so the vision encoder may run again only where a method needs it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
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
FILMS = 4
SIDE = 64  # pixels: 64 tokens a frame


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


def ask(address: str, question: str, url: str, tokens: int) -> tuple[float, float]:
    """Seconds to the first token and to the last."""
    prompt = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "stream": True}
    begin, first = time.perf_counter(), 0.0
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"ignore_eos": True}, timeout=600) as reply:
        reply.raise_for_status()
        for line in reply.iter_lines():
            if first or not line.startswith("data: {"):
                continue
            said = json.loads(line[6:])
            if "choices" not in said:
                raise httpx.HTTPError(f"the server failed: {said}")
            if said["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def load(address: str, clients: int, requests: int, urls: list[str], tokens: int, asked: Iterator[str]) -> Any:
    """Requests a minute, and the median time to the first token, of so many clients at once."""
    lock, seconds, faults = threading.Lock(), [], []

    def client(number: int) -> None:
        for at in range(requests):
            with lock:
                question = next(asked)
            try:
                seconds.append(ask(address, question, urls[(number + at) % len(urls)], tokens))
            except httpx.HTTPError as error:
                faults.append(error)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    whole = time.perf_counter() - begin
    return {"per_minute": 60 * len(seconds) / whole, "first_token": statistics.median(first for first, _ in seconds)}


def measure(model: Path, films: list[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Results by method and number of clients."""
    urls = [f"data:video/mp4;base64,{base64.b64encode(data).decode()}" for data in films]
    results: dict[str, Any] = {}
    for name, (options, plugin) in METHODS.items():
        if name not in arguments.methods:
            continue
        os.environ["VLLM_PLUGINS"] = "segmo" if plugin else "segmo_cpu"
        log = Path(tempfile.mkdtemp()) / f"{name}.log"
        more = [*options, "--chat-template", str(model / "chat_template.jinja"), "--max-num-seqs", "16"]
        with serving(model, *more, log=log, segmo=False) as address:
            asked = questions()
            try:
                load(address, 1, 1, urls, arguments.tokens, asked)  # what is compiled on first use
                results[name] = {
                    clients: load(address, clients, arguments.requests, urls, arguments.tokens, asked)
                    for clients in arguments.clients
                }
            except httpx.HTTPError as error:  # a method that cannot serve this model is a line of the table
                print(f"{name} failed: {error}; see {log}", file=sys.stderr)
                results[name] = {}
    return results


def show(results: dict[str, Any], clients: list[int]) -> None:
    table = Table("method", *(f"{n} clients: requests/min, first token" for n in clients))
    for name, rows in results.items():
        cells = [f"{rows[n]['per_minute']:.1f}, {rows[n]['first_token']:.2f} s" if rows else "failed" for n in clients]
        table.add_row(name, *cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--frames", type=int, default=128, help="pictures of a film; two make a frame of the model")
    parser.add_argument("--tokens", type=int, default=8, help="generated for each request")
    parser.add_argument("--hidden", type=int, default=512, help="size of the random model")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--model", type=Path, help="folder of a Qwen3-VL, with its chat template")
    parser.add_argument("--json", type=Path, help="also write the results into this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if model is None:
            model = Path(folder) / "model"
            tiny.build("qwen3_vl", model, hidden=arguments.hidden, layers=8)
        films = [film(arguments.frames, at, Path(folder) / f"{at}.mp4") for at in range(FILMS)]
        results = measure(model, films, arguments)
    show(results, arguments.clients)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
