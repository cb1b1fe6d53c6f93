"""A server as users start it, and what clients say to it."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from serving.engine import ENVIRONMENT

SERVER = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
SMALL = ["--max-model-len", "4096", "--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(128 << 20)]
API = "vllm.entrypoints.openai.api_server"
FRAMES = ["--media-io-kwargs", '{"video": {"num_frames": -1}}']  # as many as the file has


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(model: Path, *options: str, log: Path, segmo: bool = True) -> Iterator[str]:
    """Runs ``segmo serve``, or vLLM's own server, until the block ends; gives the address of its API."""
    port = free_port()
    more = [*SMALL, *FRAMES, "--port", str(port), "--host", "127.0.0.1", "--served-model-name", "m", *options]
    with log.open("w") as out:
        environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT} | SERVER
        program = ["-m", "segmo", "serve", str(model)] if segmo else ["-m", API, "--model", str(model)]
        process = subprocess.Popen([sys.executable, *program, *more], stdout=out, stderr=out, env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 300
            while not _ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
                time.sleep(1)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def chat(question: str, *videos: bytes, tokens: int = 1, **more: Any) -> dict[str, Any]:
    """Body of a request, the videos as the bytes of files."""
    urls = [f"data:video/mp4;base64,{base64.b64encode(video).decode()}" for video in videos]
    parts: list[dict[str, Any]] = [{"type": "video_url", "video_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": question}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0}
    return body | more
