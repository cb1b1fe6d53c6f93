"""``segmo run --batch`` as it is started: two runs on one file at a time, a full disk, SIGKILL, and one more run."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

from video_files import noise_shots, write_file

LINES, LIMIT = 24, 9_000  # bytes of a file, of some 1200 a line
QUICK = ["--max-new-tokens", "1", "--segments", "1", "--pipeline", "select-tokens", "--no-cache", "--device", "cpu"]


def start(folder: Path, limit: int | None = None) -> subprocess.Popen[str]:
    """A run on in.jsonl; a limit ends a write in its middle, as a full disk does."""
    command = [sys.executable, "-m", "segmo", "run", "--batch", "in.jsonl", "--out", "out.jsonl", *QUICK]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limited,  # nothing else runs in this process
    )


def told(line: str) -> int | None:
    """The line of the input that a line of the output tells the answer of."""
    words = line.split()
    return int(words[2].rstrip(":")) if len(words) > 3 and words[1] == "line" and "/" in words[0] else None


def answered(folder: Path) -> list[int]:
    """Lines of the input that the file has answers of; every line of it is whole."""
    data = (folder / "out.jsonl").read_bytes()
    assert data.endswith(b"\n")
    return [record["line"] for record in map(json.loads, data.split(b"\n")[:-1]) if "answer" in record]


def test_no_answer_is_lost_or_written_by_half(tmp_path: Path) -> None:
    for number in range(2):
        write_file(tmp_path / f"{number}.mp4", noise_shots([10 + number], 48, 32), fps=10)
    lines = [{"video": f"{number % 2}.mp4", "question": "which digit in red stripes"} for number in range(LINES)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    full, killed = start(tmp_path, LIMIT), start(tmp_path)
    assert killed.stdout is not None
    last, finished = random.Random(0).randint(5, 12), set()
    for line in killed.stdout:
        finished.add(told(line))
        if told(line) == last:
            break
    killed.send_signal(signal.SIGKILL)
    finished |= {told(line) for line in killed.communicate()[0].splitlines()}
    out, errors = full.communicate(timeout=600)
    finished |= {told(line) for line in out.splitlines()}
    found = answered(tmp_path)
    assert "cannot be written" in errors or len(found) == LINES  # where the other was too fast to be killed
    assert finished - {None} <= set(found)
    assert len(found) == len(set(found))

    out, errors = start(tmp_path).communicate(timeout=600)
    assert f"{len(found)} answered before, {LINES - len(found)} now, 0 failed" in out, errors
    assert sorted(answered(tmp_path)) == list(range(1, LINES + 1))
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == [".out.jsonl.lock", "out.jsonl"]
