"""No finished answer is lost and no half line is written, whoever is killed, however full the disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from segmo.ask.answer_file import AnswerFile, read_answers
from segmo.errors import OptionError

WRITER = """
import resource, signal, sys
from pathlib import Path
from segmo.ask.answer_file import AnswerFile
name, count, size, limit = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
file = AnswerFile(Path(sys.argv[1]))
file.start()
print("ready", flush=True)
for number in range(count):
    file.add({"answer": "x" * size, "line": number, "by": name})
    print(number, flush=True)
"""


def start(path: Path, name: str, count: int, size: int, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(count), str(size), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def whole(path: Path) -> list[dict]:
    """All lines, none of which may be half."""
    data = path.read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.split(b"\n")[:-1]]


def test_a_killed_writer_loses_nothing(tmp_path: Path) -> None:
    path, rng, finished = tmp_path / "out.jsonl", random.Random(0), 0
    for number in range(8):
        writer = start(path, str(number), 10_000, 300_000)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        finished += len(writer.communicate()[0].split())
        records = whole(path)
        assert len(records) >= finished  # at most one more, which was written and not yet said
        finished = len(records)
    assert finished > 8
    file = AnswerFile(path)
    assert len(file.start()) == finished
    assert sorted(each.name for each in tmp_path.iterdir()) == [".out.jsonl.lock", "out.jsonl"]


def test_what_another_writer_wrote_meanwhile_is_not_written_again(tmp_path: Path) -> None:
    path, lines, both = tmp_path / "out.jsonl", range(60), threading.Barrier(2)

    def write() -> None:
        file = AnswerFile(path)
        for line in lines:
            both.wait()  # both have the same answer at the same moment
            file.add({"answer": "red", "line": line}, lambda there, line=line: any(r["line"] == line for r in there))

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [record["line"] for record in whole(path)] == list(lines)


def test_two_writers_at_a_time_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    writers = [start(path, name, 40, 5000) for name in ("one", "two")]
    for writer in writers:
        _, errors = writer.communicate(timeout=300)
        assert writer.returncode == 0, errors
    found = [(record["by"], record["line"]) for record in whole(path)]
    assert sorted(found) == [(name, number) for name in ("one", "two") for number in range(40)]


def test_a_full_disk_leaves_whole_lines_and_says_what_is_missing(tmp_path: Path) -> None:
    """A limit on the size of files ends a write in its middle, as a full disk does."""
    path = tmp_path / "out.jsonl"
    writer = start(path, "one", 100, 30_000, limit=200_000)
    out, errors = writer.communicate(timeout=300)
    assert writer.returncode != 0
    records = whole(path)
    assert len(records) == len(out.split()) - 1 == 6
    assert "cannot be written" in errors
    assert '"line": 6' in errors  # the answer in hand is not lost either
    assert not (tmp_path / "out.jsonl.part").exists()


def test_half_lines_and_errors_of_an_earlier_run_go(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"answer": 1}\n{"error": "x"}\n[1]\n{"answer": 2}\n{"answer": "ha')
    assert AnswerFile(path).start() == [{"answer": 1}, {"answer": 2}]
    assert whole(path) == read_answers(path) == [{"answer": 1}, {"answer": 2}]
    before = path.stat().st_ino
    AnswerFile(path).start()
    assert path.stat().st_ino == before  # nothing to do


def test_a_link_and_a_mode_stay(tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("")
    (tmp_path / "real.jsonl").chmod(0o640)
    (tmp_path / "out.jsonl").symlink_to("real.jsonl")
    file = AnswerFile(tmp_path / "out.jsonl")
    file.start()
    file.add({"answer": 1})
    assert (tmp_path / "out.jsonl").is_symlink()
    assert whole(tmp_path / "real.jsonl") == [{"answer": 1}]
    assert (tmp_path / "real.jsonl").stat().st_mode & 0o777 == 0o640


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        AnswerFile(tmp_path / "file" / "out.jsonl")
