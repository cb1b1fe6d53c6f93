"""The server, over HTTP: real files, streaming, many clients, faults of one request among others, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving.server import chat, serving

from segmo.sceneqa.files import write_sample
from segmo.sceneqa.model import MODEL_PATH
from segmo.sceneqa.task import DIFFICULTIES, samples

CLIENTS = 16
CELLS = 6  # of a frame of 48 x 32 pixels
TEXT = 9  # tokens around the video: of the template, and five words


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="module")
def address(log: Path) -> Iterator[str]:
    with serving(MODEL_PATH, "--trust-request-mm-kwargs", log=log) as found:
        yield found


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("films")
    shown = samples("test", DIFFICULTIES["easy"], 2)
    return [(sample, write_sample(sample, folder / f"{sample.index}.mp4").read_bytes()) for sample in shown]


def say(address: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=120)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["message"]["content"]).strip()


def test_files_are_answered(address: str, films: list[Any]) -> None:
    right = total = 0
    for sample, film in films:
        for question in sample.questions:
            reply = say(address, chat(question.text, film))
            right += text_of(reply) == question.answer
            total += 1
            video = len(sample.pictures) // 2 * CELLS
            assert reply.json()["usage"]["prompt_tokens"] == video // 4 + TEXT
    print(f"\nover HTTP, from mp4 files: {right} of {total} right")
    assert right > total / 2


def test_streaming_says_the_same(address: str, films: list[Any]) -> None:
    sample, film = films[0]
    body = chat(sample.questions[0].text, film, tokens=5, ignore_eos=True)
    whole = text_of(say(address, body))
    pieces = []
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=120) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                choices = json.loads(line.removeprefix("data: "))["choices"]
                pieces += [choice["delta"].get("content") or "" for choice in choices]
    assert len(pieces) > 2
    assert "".join(pieces).strip() == whole


def test_many_clients_and_a_bad_video_among_them(address: str, films: list[Any]) -> None:
    asked = [(q.text, film) for sample, film in films for q in sample.questions][:CLIENTS]
    alone = [text_of(say(address, chat(text, film))) for text, film in asked]
    bodies = [chat(text, film) for text, film in asked]
    bodies.insert(5, chat("which digit in red stripes", b"this is no film"))
    bodies.insert(9, chat(asked[0][0], asked[0][1], mm_processor_kwargs={"keep": 7}))
    with ThreadPoolExecutor(len(bodies)) as clients:
        replies = list(clients.map(lambda body: say(address, body), bodies))
    codes = [reply.status_code for reply in replies]
    assert codes.count(400) == 2, codes
    assert codes[5] == codes[9] == 400
    assert "'keep' is 7" in replies[9].json()["error"]["message"]
    assert replies[5].json()["error"]["message"]
    assert [text_of(reply) for at, reply in enumerate(replies) if at not in (5, 9)] == alone


def test_options_of_a_request(address: str, films: list[Any]) -> None:
    sample, film = films[0]
    video = len(sample.pictures) // 2 * CELLS
    half = say(address, chat(sample.questions[0].text, film, mm_processor_kwargs={"keep": 0.5}))
    assert half.json()["usage"]["prompt_tokens"] == video // 2 + TEXT


def test_metrics_and_log(address: str, films: list[Any], log: Path) -> None:
    def counted() -> dict[str, float]:
        lines = httpx.get(f"{address}/metrics", timeout=30).text.splitlines()
        return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("segmo:")}

    sample, film = films[1]
    before = counted()
    text_of(say(address, chat(sample.questions[0].text, film, mm_processor_kwargs={"keep": 0.125})))
    after = counted()
    video = len(sample.pictures) // 2 * CELLS
    assert after["segmo:video_tokens_total"] - before["segmo:video_tokens_total"] == video
    assert after["segmo:kept_video_tokens_total"] - before["segmo:kept_video_tokens_total"] == video // 8
    assert f"kept {video // 8} of {video} video tokens" in log.read_text()
