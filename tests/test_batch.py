"""A batch's lines, and when an answer of an earlier run still holds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from video_files import noise_shots, write_file

import segmo
from segmo.ask.answer_file import read_answers
from segmo.ask.ask import Asker
from segmo.ask.batch import read_lines, run_batch
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.settings import Settings
from segmo.errors import OptionError
from segmo.options import Options
from segmo.sceneqa.model import MODEL_PATH
from segmo.video import SceneOptions

OPTIONS = Options(keep=0.5, segments=1, pipeline="select-tokens")
QUESTION = "which digit in red stripes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that tests may replace."""
    return Path(shutil.copytree(MODEL_PATH, tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Iterator[Checkpoint]:
    torch._dynamo.reset()
    yield load(folder)
    torch._dynamo.reset()


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    """Two questions about two videos."""
    for name, seed in (("a.mp4", 20), ("b.mp4", 30)):
        write_file(tmp_path / name, noise_shots([seed, 20], 48, 32), fps=10)
    lines = [{"video": name, "question": QUESTION, "id": name} for name in ("a.mp4", "b.mp4")]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return tmp_path / "in.jsonl"


def run(loaded: Checkpoint, batch: Path, **settings: Any) -> tuple[int, int]:
    """How many lines were answered now, and how many answers were taken over."""
    told: list[Any] = []
    asker = Asker(loaded, Settings(settings.pop("options", OPTIONS), new_tokens=1, **settings))
    records = list(run_batch(asker, batch, batch.with_name("out.jsonl"), None, told.append))
    assert all("answer" in record for record in records)
    return len(records), len(told)


def test_what_an_answer_depends_on(loaded: Checkpoint, batch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change is answered anew, and nothing else is; what was answered before stays."""
    out = batch.with_name("out.jsonl")
    assert run(loaded, batch) == (2, 0)
    assert run(loaded, batch) == (0, 2)
    assert run(loaded, batch, workers=1) == (0, 2)

    os.utime(batch.with_name("a.mp4"))  # written again with the same bytes
    assert run(loaded, batch) == (0, 2)
    state = batch.with_name("a.mp4").stat()
    shutil.copy(batch.with_name("b.mp4"), batch.with_name("a.mp4"))
    os.utime(batch.with_name("a.mp4"), ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(loaded, batch) == (1, 1)

    assert run(loaded, batch, compare=True) == (2, 0)
    assert run(loaded, batch, scenes=SceneOptions(min_content_val=40.0)) == (2, 0)
    assert run(loaded, batch, fps=1.0) == (2, 0)
    assert run(loaded, batch, options=Options(keep=0.25, segments=1, pipeline="select-tokens")) == (2, 0)
    assert run(loaded, batch) == (0, 2)
    with monkeypatch.context() as patch:
        patch.setattr(segmo, "__version__", "9.9.9")
        assert run(loaded, batch) == (2, 0)
    batch.write_text(batch.read_text().replace('"id": "a.mp4"', '"id": "another"'))
    assert run(loaded, batch) == (1, 1)

    records = read_answers(out)
    assert len(records) == 2 + 1 + 2 + 2 + 2 + 2 + 2 + 1
    assert {record["settings"]["compare"] for record in records} == {True, False}
    assert {record["settings"]["versions"]["segmo"] for record in records} == {segmo.__version__, "9.9.9"}
    assert len({record["video_sha256"] for record in records}) == 2
    assert len({record["settings"]["weights"] for record in records}) == 1


def test_other_weights_answer_anew(loaded: Checkpoint, folder: Path, batch: Path) -> None:
    """Also where the new file has the size and the time of the old one."""
    assert run(loaded, batch) == (2, 0)
    (weights,) = folder.glob("*.safetensors")
    before, old = weights.stat(), weights.read_bytes()
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    other = load(folder)
    assert other.fingerprint != loaded.fingerprint
    assert run(loaded, batch) == (2, 0)  # by what the folder holds now
    weights.write_bytes(old)
    assert run(loaded, batch) == (0, 2)


def test_a_video_that_is_gone_is_asked_again_and_its_answer_kept(loaded: Checkpoint, batch: Path) -> None:
    out = batch.with_name("out.jsonl")
    assert run(loaded, batch) == (2, 0)
    batch.with_name("a.mp4").unlink()
    asker = Asker(loaded, Settings(OPTIONS, new_tokens=1))
    (record,) = run_batch(asker, batch, out)
    assert "there is no file" in record["error"]
    assert ["answer" in each for each in read_answers(out)] == [True, True, False]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\u2029", "\x0c", "\x1c", "\r"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "in.jsonl"
    fields = {"video": f"a{separator}b.mp4", "question": f"one{separator}two?"}
    texts = [json.dumps(fields, ensure_ascii=separator == "\r"), "", json.dumps(fields)]
    for end in ("\n", "\r\n"):
        path.write_bytes(b"\xef\xbb\xbf" + end.join(texts).encode())
        lines = read_lines(path)
        assert [(line.number, line.fields, line.error) for line in lines] == [(1, fields, ""), (3, fields, "")]


def test_an_answer_may_hold_any_separator(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    records = [{"answer": "one\u2028two\u0085three"}, {"answer": "\udcff"}]
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(record).encode() + b"\n" for record in records))
    assert read_answers(path) == records
    path.write_bytes(json.dumps(records[0], ensure_ascii=False).encode() + b'\n{"answer": "h\xc3')
    assert read_answers(path) == records[:1]


def test_a_file_in_another_encoding_is_said(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"video": "a.mp4"}', encoding="utf-16")
    with pytest.raises(OptionError, match="cannot be read as a file of JSON lines"):
        read_lines(tmp_path / "in.jsonl")


def test_fields_that_are_named_as_the_outputs_own_are_handed_on_apart(loaded: Checkpoint, batch: Path) -> None:
    """A set with its right answers, of which one film is missing."""
    own = {"answer": "4", "error": None, "tokens": "mine", "line": 99, "given": 1}
    lines = [{"video": name, "question": QUESTION, "id": 7, **own} for name in ("a.mp4", "nope.mp4")]
    batch.write_text("\n".join(map(json.dumps, lines)) + '\n{"video": "a.mp4", "question": "which", "score": NaN}\n')
    asker, out = Asker(loaded, Settings(OPTIONS, new_tokens=1)), batch.with_name("out.jsonl")
    found = list(run_batch(asker, batch, out))
    assert ["answer" in record for record in found] == [True, False, False]
    assert ["error" in record for record in found] == [False, True, True]
    for record in found[:2]:
        assert record["given"] == own
        assert record["id"] == 7
    assert "no number of JSON" in found[2]["error"]
    told: list[Any] = []
    list(run_batch(asker, batch, out, None, told.append))
    assert [record["line"] for record in told] == [1]
