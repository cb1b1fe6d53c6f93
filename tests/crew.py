"""Real ranks for tests: processes with one gloo group that wait for functions to run."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist


class CrewError(Exception):
    """A function failed on some ranks; ``errors`` maps the rank to the exception."""

    def __init__(self, errors: dict[int, BaseException]) -> None:
        super().__init__("; ".join(f"rank {rank}: {error!r}" for rank, error in errors.items()))
        self.errors = errors


def _work(rank: int, world: int, port: int, seconds: float, pipe: Any) -> None:
    os.environ.update(OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=600))
    timeout = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timeout)
    while (task := pipe.recv()) is not None:
        function, args = task
        try:
            pipe.send((True, function(rank, world, *args)))
        except BaseException as error:  # noqa: BLE001  # handed to the test
            error.add_note(traceback.format_exc())
            pipe.send((False, error))
    dist.destroy_process_group()


class Crew:
    """``world`` ranks. The store lives in the test's own process, as torchrun's does in its agent.

    Ranks are forked off a process without threads that has read the libraries once, and not ten seconds a rank. Its
    environment is that of the first crew: ``fresh`` ranks read everything anew, in the environment as it is now.
    """

    def __init__(self, world: int, timeout_seconds: float = 600, *, fresh: bool = False) -> None:
        self.world = world
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        context = multiprocessing.get_context("spawn" if fresh else "forkserver")
        context.set_forkserver_preload(["crew", "models", "segmo.api"])
        pipes = [context.Pipe() for _ in range(world)]
        self._pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_work, args=(rank, world, port, timeout_seconds, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """``function(rank, world, *args)`` on every rank; the results in order of the ranks."""
        for pipe in self._pipes:
            pipe.send((function, args))
        results: list[Any] = []
        errors: dict[int, BaseException] = {}
        for rank, pipe in enumerate(self._pipes):
            try:
                done, value = pipe.recv()
            except EOFError:
                done, value = False, EOFError(f"rank {rank} died")
            results.append(value)
            if not done:
                errors[rank] = value
        if errors:
            raise CrewError(errors)
        return results

    def run_with_hangs(self, function: Callable[..., Any], *args: Any, patience: float) -> None:
        """Like :meth:`run` where a rank never returns; waits at most ``patience`` seconds for the others."""
        for pipe in self._pipes:
            pipe.send((function, args))
        deadline = time.monotonic() + patience
        errors: dict[int, BaseException] = {}
        open_ranks = set(range(self.world))
        while open_ranks and time.monotonic() < deadline and len(errors) < self.world - 1:
            for rank in sorted(open_ranks):
                if not self._pipes[rank].poll(0.05):
                    continue
                open_ranks.discard(rank)
                try:
                    done, value = self._pipes[rank].recv()
                except EOFError:
                    continue
                if not done:
                    errors[rank] = value
        for rank in open_ranks:
            self.processes[rank].kill()
        raise CrewError(errors)

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self.processes, strict=True):
            try:
                pipe.send(None)
            except OSError:
                process.kill()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
