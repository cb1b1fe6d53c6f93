"""Measures the link between ranks: an all-gather's latency and bandwidth."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from segmo.compat.groups import FileStore
from segmo.runtime.cost.device import Device
from segmo.runtime.distributed.ranks import Ranks

_SMALL, _LARGE, _RUNS = 1024, 2**21, 20


def measure_link(ranks: Ranks, device: torch.device) -> tuple[float, float]:
    """Latency (s) and rate (bytes/s) of an all-gather between the ranks of a group; all must call it."""
    seconds = {}
    for size in (_SMALL, _LARGE):
        value = torch.zeros(size, device=device, dtype=torch.float32)
        taken = []
        for _ in range(_RUNS):
            start = time.perf_counter()
            ranks.gather(value, "calibrate")
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            taken.append(time.perf_counter() - start)
        seconds[size] = statistics.median(taken[2:])
    steps = max(1, (ranks.world - 1).bit_length())
    extra_bytes = (ranks.world - 1) * 4 * (_LARGE - _SMALL)
    rate = extra_bytes / max(seconds[_LARGE] - seconds[_SMALL], 1e-9)
    return seconds[_SMALL] / steps, rate


def _pair(rank: int, folder: str, kind: str) -> None:
    cuda = kind == "cuda"
    device = torch.device("cuda", rank) if cuda else torch.device("cpu")
    store = FileStore(f"{folder}/store", 2)
    backend = "nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=timedelta(minutes=10))
    latency, rate = measure_link(Ranks.of(), device)
    if rank == 0:
        Path(folder, "link").write_text(f"{latency} {rate}")
    dist.barrier()  # nobody leaves while another one still measures
    dist.destroy_process_group()


def with_link(measured: Device, device: torch.device) -> Device:
    """The device with the link between two local ranks measured, or as it was with a single GPU.

    Two processes are started and joined in a group of their own.
    """
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return dataclasses.replace(measured, source=f"{measured.source}; link not measured: one GPU")
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_pair, (folder, device.type), nprocs=2)  # type: ignore[no-untyped-call]
        except ProcessExitedException:  # torch 2.11 was seen to abort a process as it left its group
            if not Path(folder, "link").exists():
                raise
        latency, rate = map(float, Path(folder, "link").read_text().split())
    return dataclasses.replace(measured, link_seconds=latency, link_bytes_per_s=rate, network_bytes_per_s=rate)
