"""Questions about video files to the trained model that ships: right answers, caching, overlap, bad input."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from video_files import flat, noise_shots, write_file

import segmo
from segmo.api import compiled_with
from segmo.ask.answer_file import read_answers
from segmo.ask.ask import Answer, Asker, UnexpectedError
from segmo.ask.batch import run_batch
from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import Checkpoint, load
from segmo.ask.console import sentences, stage_table
from segmo.ask.context import Request
from segmo.ask.encode import process
from segmo.ask.features import Features
from segmo.ask.rank_encode import encode
from segmo.ask.settings import Settings
from segmo.demo.clips import clip_path
from segmo.errors import OptionError, SegMoError
from segmo.options import Options
from segmo.report.timeline import WIDTH
from segmo.sceneqa.files import write_sample
from segmo.sceneqa.model import build_prompts
from segmo.sceneqa.task import DIFFICULTIES, Sample, make_sample
from segmo.video import read
from segmo.video.source import VideoError

CAS = Options(keep=0.5, disable=("segment-attention", "inject-context"))
QUESTION = "which digit in red stripes"


@pytest.fixture(scope="module")
def loaded() -> Iterator[Checkpoint]:
    """One model, whose graphs serve all tests."""
    torch._dynamo.reset()
    yield load()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def sample() -> Sample:
    return make_sample("test", DIFFICULTIES["easy"], 1, 2)


@pytest.fixture(scope="module")
def lossless(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(sample, tmp_path_factory.mktemp("sceneqa") / "lossless.mp4", crf=None)


def asker(loaded: Checkpoint, store: TensorCache | None = None, options: Options = CAS, **more: object) -> Asker:
    return Asker(loaded, Settings(options, new_tokens=1, **more), store)  # type: ignore[arg-type]


def load_features(loaded: Checkpoint, path: Path) -> Features:
    clip = read(path, loaded.fps, loaded.size)
    return encode(loaded, process(loaded, clip, QUESTION), clip, QUESTION)


def answers_through_tensors(loaded: Checkpoint, sample: Sample) -> list[str]:
    """The way of ``segmo eval``: pictures as an array, no file."""
    asker(loaded)  # compiles the model
    prompts = build_prompts(loaded.model, loaded.processor, sample.pictures, sample.questions)
    found = []
    for number in range(len(sample.questions)):
        with torch.no_grad():
            logits = loaded.model(**prompts.only(number).inputs()).logits[0, -1]
        found.append(str(loaded.processor.tokenizer.decode([int(logits.argmax())])))
    return found


def test_answers_through_a_file_are_those_through_tensors(
    loaded: Checkpoint, sample: Sample, lossless: Path, tmp_path: Path
) -> None:
    """Exactly those where the file loses nothing, and nearly all of them where it loses what H.264 does."""
    expected = answers_through_tensors(loaded, sample)
    ask = asker(loaded, TensorCache(tmp_path / "cache"))
    assert [ask.ask(lossless, question.text).text for question in sample.questions] == expected
    lossy = write_sample(sample, tmp_path / "lossy.mp4", crf=10)
    found = [ask.ask(lossy, question.text).text for question in sample.questions]
    assert sum(one == other for one, other in zip(found, expected, strict=True)) >= len(expected) - 1
    assert sum(one == question.answer for one, question in zip(found, sample.questions, strict=True)) > 3


def test_a_second_question_neither_decodes_nor_encodes(
    loaded: Checkpoint, sample: Sample, lossless: Path, tmp_path: Path
):
    store = TensorCache(tmp_path)
    first, second = (question.text for question in sample.questions[:2])
    before = asker(loaded, store)
    assert not before.ask(lossless, first).cached
    assert {"decode", "scenes", "process", "encode"} <= set(before.timeline.seconds())
    plain = asker(loaded).ask(lossless, second)
    again = asker(loaded, store)  # as another run would
    found = again.ask(lossless, second)
    assert found.cached
    assert not {"index", "decode", "scenes", "process", "encode"} & set(again.timeline.seconds())
    assert (found.text, found.facts, found.tokens) == (plain.text, plain.facts, plain.tokens)


def test_a_copy_of_the_file_is_the_same_video_and_other_options_are_not(
    loaded: Checkpoint, lossless: Path, tmp_path: Path
) -> None:
    store = TensorCache(tmp_path / "cache")
    asker(loaded, store).ask(lossless, QUESTION)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(lossless.read_bytes())
    assert asker(loaded, store).ask(copy, QUESTION).cached
    assert asker(loaded, store, Options(keep=1.0, segments=1)).ask(copy, QUESTION).cached  # after the encoder
    assert not asker(loaded, store, fps=1.0).ask(copy, QUESTION).cached
    copy.write_bytes(lossless.read_bytes() + b"\0\0\0\x08free")
    assert not asker(loaded, store).ask(copy, QUESTION).cached


def test_seconds_belong_to_one_question_and_bars_fit_them(loaded: Checkpoint, lossless: Path, tmp_path: Path) -> None:
    """The graph of single tokens is made between the first answer's first token and the others."""
    ask = Asker(loaded, Settings(CAS, new_tokens=3), TensorCache(tmp_path))
    first = ask.ask(lossless, QUESTION)
    events = [ask.timeline.events[:]]
    second = ask.ask(lossless, QUESTION)
    events.append(ask.timeline.events[len(events[0]) :])
    assert first.request.name != second.request.name
    for answer, own in zip((first, second), events, strict=True):
        assert {event.request for event in own} == {answer.request.name}
        for stage, seconds in answer.seconds.items():
            assert seconds == pytest.approx(sum(event.busy for event in own if event.stage == stage))
    stages = {event.stage: event for event in events[0]}  # the last of each
    assert stages["prefill"].end <= stages["compile"].start < stages["compile"].end <= stages["generate"].start
    whole = max(event.end for event in ask.timeline.events) - min(event.start for event in ask.timeline.events)
    drawn = re.findall(r"(?:compile|prefill|generate) +\| *(#+) *\| +([\d.]+) s", str(ask.timeline))
    assert len(drawn) == sum(event.stage in ("compile", "prefill", "generate") for event in ask.timeline.events)
    for bar, said in drawn:
        assert len(bar) == pytest.approx(max(1.0, float(said) / whole * WIDTH), abs=1)


def test_one_video_asked_twice_in_a_row_is_encoded_once(loaded: Checkpoint, lossless: Path, tmp_path: Path) -> None:
    ask = asker(loaded, TensorCache(tmp_path))
    found = list(ask.answers([Request(lossless, QUESTION, str(number)) for number in range(3)]))
    assert [bool(answer.cached) for answer in found if isinstance(answer, Answer)] == [False, True, True]
    for stage in ("index", "decode", "scenes", "process", "encode"):
        assert {event.request for event in ask.timeline.events if event.stage == stage} == {"0"}


def test_the_next_video_is_decoded_while_the_model_works(loaded: Checkpoint, lossless: Path, tmp_path: Path) -> None:
    """The first answer waits until the second video is being decoded; were they done in turn, it would wait forever."""
    other = write_file(tmp_path / "other.mp4", noise_shots([30, 30], 48, 32))
    began, reads = threading.Event(), iter([False, True])
    second = next(reads)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal second
        if stage == "decode, scenes" and done == 1:
            if second:
                began.set()
            second = next(reads, True)
        if stage == "prefill" and done == 0:
            assert began.wait(timeout=300)

    ask = Asker(loaded, Settings(CAS, new_tokens=1, workers=1), progress=progress)
    found = list(ask.answers([Request(lossless, QUESTION, "first"), Request(other, QUESTION, "second")]))
    assert all(isinstance(answer, Answer) for answer in found)
    assert "second decode" in str(ask.timeline)


def test_frames_can_be_chosen_before_they_are_encoded(loaded: Checkpoint, lossless: Path) -> None:
    asked = []

    def choose(clip, question):  # type: ignore[no-untyped-def]
        asked.append(question)
        return clip.index_at(0.0) + torch.arange(8).numpy()

    found = asker(loaded, choose=choose).ask(lossless, QUESTION)
    assert asked == [QUESTION]
    assert found.facts.frames == 8
    assert found.tokens["video"] == 4 * 6


def test_what_came_from_the_cache_is_said(loaded: Checkpoint, lossless: Path, tmp_path: Path) -> None:
    ask = asker(loaded, TensorCache(tmp_path), frames=4)
    assert not ask.ask(lossless, "which digit in red stripes").cached
    found = ask.ask(lossless, "which shape in blue dots")
    assert "from the cache: scenes, features for relevance" in "\n".join(sentences(found))
    assert found.tokens["video"] == 4 * 6
    assert "cache" in ask.timeline.seconds()
    assert "cache" in [stage for row in stage_table(found).columns[:1] for stage in row.cells]


def test_full_attention_beside_it(loaded: Checkpoint, lossless: Path) -> None:
    found = asker(loaded, compare=True).ask(lossless, QUESTION)
    assert found.full is not None
    assert found.full.seconds["prefill"] > 0
    assert found.seconds["prefill"] > 0
    assert found.tokens["kept"] == found.tokens["video"] // 2
    assert compiled_with(loaded.model) == CAS
    segmo.uncompile(loaded.model)
    features = load_features(loaded, lossless)
    ids = loaded.model.generate(**features.inputs(loaded, QUESTION), max_new_tokens=1, do_sample=False)
    assert loaded.processor.tokenizer.decode(ids[0, -1:]) == found.full.text


@pytest.mark.parametrize("question", ["", "   ", "\n\t"])
def test_an_empty_question_is_refused(loaded: Checkpoint, question: str) -> None:
    with pytest.raises(OptionError, match="the question is empty"):
        asker(loaded).ask(clip_path("bikes"), question)


def test_a_question_of_two_thousand_words(loaded: Checkpoint, lossless: Path) -> None:
    found = asker(loaded).ask(lossless, " ".join(["which digit in red stripes"] * 400))
    assert found.tokens["prompt"] > 2000
    assert found.text


@pytest.mark.parametrize(("width", "height"), [(1, 1), (333, 17)])
def test_odd_pictures_are_answered(loaded: Checkpoint, tmp_path: Path, width: int, height: int) -> None:
    path = write_file(tmp_path / "odd.mkv", noise_shots([2], width, height), codec="ffv1", pix_fmt="bgr0")
    assert asker(loaded).ask(path, QUESTION).tokens["video"] > 0


def test_one_frame_is_answered(loaded: Checkpoint, tmp_path: Path) -> None:
    found = asker(loaded).ask(write_file(tmp_path / "one.mp4", flat([99])), QUESTION)
    assert found.facts.frames == 1
    assert found.text


def test_what_is_wrong_with_a_file_is_said(loaded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="there is no file"):
        asker(loaded).ask(tmp_path / "none.mp4", QUESTION)


@pytest.fixture
def batch_file(lossless: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    lines = [
        json.dumps({"video": str(lossless), "question": QUESTION, "id": "a"}),
        json.dumps({"video": "text.mp4", "question": QUESTION}),
        "",
        "{not json",
        json.dumps({"video": str(lossless)}),
        json.dumps([1, 2]),
        json.dumps({"video": str(lossless), "question": " "}),
        json.dumps({"video": str(lossless), "question": "which shape in blue dots"}),
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(lines))
    return path


def batch(loaded: Checkpoint, source: Path, out: Path, told: list) -> Iterator[dict]:
    return run_batch(asker(loaded, TensorCache(out.parent / "cache")), source, out, {"keep": 0.5}, told.append)


def test_one_bad_line_or_file_does_not_stop_the_rest(loaded: Checkpoint, batch_file: Path) -> None:
    records = list(batch(loaded, batch_file, batch_file.with_name("out.jsonl"), []))
    assert [record["line"] for record in records] == [1, 2, 4, 5, 6, 7, 8]
    assert ["answer" in record for record in records] == [True, False, False, False, False, False, True]
    assert records[0]["id"] == "a"
    assert "not a video" in records[1]["error"]
    assert [record["error"].split(":")[0][:10] for record in records[2:6]] == [
        "line 4 is ",
        "line 5 has",
        "line 6 is ",
        "the questi",
    ]
    assert read_answers(batch_file.with_name("out.jsonl")) == records


def test_a_batch_goes_on_where_it_ended(loaded: Checkpoint, batch_file: Path, lossless: Path) -> None:
    out = batch_file.with_name("out.jsonl")
    running = batch(loaded, batch_file, out, [])
    first = next(running)
    running.close()
    with out.open("a") as file:
        file.write('{"video": "half a li')  # as when the process was killed while it wrote
    (batch_file.parent / "text.mp4").write_bytes(lossless.read_bytes())  # mended meanwhile
    told: list[dict] = []
    rest = list(batch(loaded, batch_file, out, told))
    assert told == [first]
    assert "answer" in rest[0]
    assert len(read_answers(out)) == 7
    again: list[dict] = []
    assert [record["line"] for record in batch(loaded, batch_file, out, again)] == [4, 5, 6, 7]
    assert [record["line"] for record in again] == [1, 2, 8]


def test_other_settings_are_answered_anew(loaded: Checkpoint, batch_file: Path) -> None:
    out = batch_file.with_name("out.jsonl")
    list(batch(loaded, batch_file, out, []))
    ask = asker(loaded, TensorCache(out.parent / "cache"))
    assert len(list(run_batch(ask, batch_file, out, {"keep": 0.25}))) == 7
    answered = [record for record in read_answers(out) if "answer" in record]
    assert [record["settings"]["keep"] for record in answered] == [0.5, 0.5, 0.25, 0.25]


def test_what_else_fails_is_kept_apart(loaded: Checkpoint, lossless: Path) -> None:
    def choose(clip, question):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("in the choice")

    ask = asker(loaded, choose=choose)
    (found,) = ask.answers([Request(lossless, QUESTION)])
    assert isinstance(found, UnexpectedError)
    assert "ZeroDivisionError: in the choice" in str(found)
    with pytest.raises(ZeroDivisionError):
        ask.ask(lossless, QUESTION)


def test_read_and_write_give_the_samples_pictures(sample: Sample, lossless: Path) -> None:
    clip = read(lossless, 2.0)
    assert (clip.frames == sample.pictures).all()


def test_a_missing_batch_is_an_error(loaded: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(SegMoError, match="cannot be read"):
        list(run_batch(asker(loaded), tmp_path / "none.jsonl", tmp_path / "out.jsonl", {}))
