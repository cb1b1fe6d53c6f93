"""Tensors on disk: bounded, the least recently used leave first, several processes at once."""

from __future__ import annotations

import logging.handlers
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segmo.ask.cache import TensorCache
from segmo.errors import OptionError
from segmo.video.given import as_source

TENSOR = torch.arange(1000, dtype=torch.float32)


def used(store: TensorCache, key: str, seconds: int) -> None:
    """Sets when an entry was used last."""
    os.utime(store.folder / f"{key}.safetensors", (seconds, seconds))


def test_what_was_put_comes_back(tmp_path: Path) -> None:
    store = TensorCache(tmp_path)
    assert store.get("one") is None
    store.put("one", {"a": TENSOR, "b": torch.ones(2, 3, dtype=torch.bfloat16)}, "text: {}")
    tensors, text = store.get("one") or ({}, "")
    assert text == "text: {}"
    assert torch.equal(tensors["a"], TENSOR)
    assert tensors["b"].dtype == torch.bfloat16
    assert store.size() > TENSOR.nbytes


def test_the_least_recently_used_leave_first(tmp_path: Path) -> None:
    store = TensorCache(tmp_path, max_bytes=14_000)
    for number, key in enumerate(("one", "two", "three")):
        store.put(key, {"a": TENSOR}, "")
        used(store, key, 1000 + number)
    assert store.get("one") is not None  # now the most recently used
    store.put("four", {"a": TENSOR}, "")
    assert [key for key in ("one", "two", "three", "four") if store.get(key)] == ["one", "three", "four"]
    assert store.size() <= 14_000


def test_an_entry_that_is_too_large_is_not_kept_and_drives_no_other_out(tmp_path: Path) -> None:
    store = TensorCache(tmp_path, max_bytes=6000)
    store.put("small", {"a": TENSOR}, "")
    store.put("large", {"a": TENSOR.repeat(3)}, "")
    assert store.get("small") is not None
    assert store.get("large") is None


def test_a_disk_that_does_not_take_an_entry_is_logged(tmp_path: Path) -> None:
    store, told = TensorCache(tmp_path), logging.handlers.BufferingHandler(9)
    (tmp_path / "taken.safetensors").mkdir()  # a file cannot be put in a folder's place
    log = logging.getLogger("segmo.ask.cache")
    log.addHandler(told)
    store.put("taken", {"a": TENSOR}, "")
    log.removeHandler(told)
    assert ["cannot be written" in record.getMessage() for record in told.buffer] == [True]


@given(sizes=st.lists(st.integers(1, 3000), max_size=12), limit=st.integers(1, 12_000))
def test_there_are_never_more_bytes_than_allowed(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int
) -> None:
    store = TensorCache(tmp_path_factory.mktemp("store"), limit)
    for number, size in enumerate(sizes):
        store.put(str(number), {"a": torch.zeros(size, dtype=torch.uint8)}, "")
        assert store.size() <= limit
    assert not list(store.folder.glob("*.part"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 40, b"not safetensors at all"])
def test_an_entry_that_cannot_be_read_counts_as_missing(tmp_path: Path, damage: bytes) -> None:
    store = TensorCache(tmp_path)
    store.put("one", {"a": TENSOR}, "")
    (tmp_path / "one.safetensors").write_bytes(damage)
    assert store.get("one") is None
    store.put("one", {"a": TENSOR}, "")
    assert store.get("one") is not None


def test_unfinished_files_of_dead_processes_go(tmp_path: Path) -> None:
    store = TensorCache(tmp_path)
    (tmp_path / "dead.part").write_bytes(b"half")
    os.utime(tmp_path / "dead.part", (1000, 1000))
    (tmp_path / "alive.part").write_bytes(b"half")
    store.put("one", {"a": TENSOR}, "")
    assert [path.name for path in tmp_path.glob("*.part")] == ["alive.part"]


def test_a_limit_below_one_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="at least one byte"):
        TensorCache(tmp_path, 0)


def test_an_entry_that_another_process_removes_while_it_is_opened_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header is read, then torch opens the file again, and says that it is gone with a RuntimeError."""
    store = TensorCache(tmp_path)
    store.put("key", {"a": TENSOR}, "")

    def open_late(path: Path, framework: str) -> Any:
        del framework
        path.unlink()
        return torch.UntypedStorage.from_file(str(path), shared=False, nbytes=8)

    monkeypatch.setattr("segmo.ask.cache.safe_open", open_late)
    assert store.get("key") is None


WORK = """
import sys, torch
from pathlib import Path
from segmo.ask.cache import TensorCache
store, made = TensorCache(Path(sys.argv[1]), 30_000), 0
for number in range(40):
    key = f"{number % 8}-entry"
    found = store.get(key)
    if found is None:
        with store.making(key):
            found = store.get(key)
            if found is None:
                store.put(key, {"a": torch.full((1000,), float(number % 8))}, str(number % 8))
                made += 1
                continue
    tensors, text = found
    assert text == str(number % 8) and bool((tensors["a"] == number % 8).all())
print(made)
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    """Three at a time, with room for seven of eight entries: none sees half an entry or another one's."""
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert int(out) >= 0
    assert TensorCache(tmp_path).size() <= 30_000


def test_making_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    store = TensorCache(tmp_path)
    code = (
        "import sys; from pathlib import Path; from segmo.ask.cache import TensorCache\n"
        "store = TensorCache(Path(sys.argv[1]))\n"
        "print('started', flush=True)\n"
        "with store.making('key'): print('got it', store.get('key') is not None)\n"
    )
    with store.making("key"):
        other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "started"
        assert other.poll() is None
        store.put("key", {"a": TENSOR}, "")
    assert other.communicate(timeout=300)[0].strip() == "got it True"


def test_a_files_hash_is_that_of_its_bytes(tmp_path: Path) -> None:
    one, same, other = tmp_path / "one", tmp_path / "same", tmp_path / "other"
    one.write_bytes(b"abc")
    same.write_bytes(b"abc")
    other.write_bytes(b"abd")
    assert as_source(one).digest() == as_source(same).digest() != as_source(other).digest()
