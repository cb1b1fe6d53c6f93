"""The server, over HTTP: real files, streaming, many clients, faults of one request among others, metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
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


@pytest.fixture(scope="module")
def site(films: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first film as a file on a server of its own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "film.mp4").write_bytes(films[0][1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_frames_by_scene_from_an_address(address: str, films: list[Any], site: str) -> None:
    """One file at one address, in as many frames as each request asks for: the same question, then others."""
    right = 0
    sample, _ = films[0]
    asked = [sample.questions[at] for at in (0, 0, 0, 1, 2, 3, 4, 5, 6)]
    for at, question in enumerate(asked):
        pictures = (32, 16, -1)[at % 3]
        body = chat(question.text, media_io_kwargs={"video": {"video_backend": "segmo", "num_frames": pictures}})
        body["messages"][0]["content"].insert(0, {"type": "video_url", "video_url": {"url": f"{site}/film.mp4"}})
        reply = say(address, body)
        right += text_of(reply) == question.answer
        shown = len(sample.pictures) if pictures == -1 else pictures
        assert reply.json()["usage"]["prompt_tokens"] == shown // 2 * CELLS // 4 + TEXT
    print(f"\nover HTTP, frames by scene: {right} of {len(asked)} right")
    assert right > len(asked) / 3


def test_faults_of_a_file_and_of_the_loader(address: str, films: list[Any]) -> None:
    asked, film = films[0][0].questions[0].text, films[0][1]

    def fault(film: bytes, **options: Any) -> str:
        reply = say(address, chat(asked, film, media_io_kwargs={"video": {"video_backend": "segmo", **options}}))
        assert reply.status_code == 400, reply.text
        return str(reply.json()["error"]["message"])

    assert "video" in fault(b"this is no film")
    assert "num_frames of the video loader 'segmo' is 0" in fault(film, num_frames=0)
    assert "no option colour" in fault(film, colour=3)


def test_metrics_and_log(address: str, films: list[Any], log: Path) -> None:
    def counted() -> Counter[str]:
        lines = httpx.get(f"{address}/metrics", timeout=30).text.splitlines()
        found: Any = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("segmo:")}
        return Counter(found)  # what was never counted is not there yet

    sample, film = films[1]
    before = counted()
    text_of(say(address, chat(sample.questions[0].text, film, mm_processor_kwargs={"keep": 0.125})))
    after = counted()
    video = len(sample.pictures) // 2 * CELLS
    assert after["segmo:video_tokens_total"] - before["segmo:video_tokens_total"] == video
    assert after["segmo:kept_video_tokens_total"] - before["segmo:kept_video_tokens_total"] == video // 8
    assert f"kept {video // 8} of {video} video tokens" in log.read_text()
    # From the worker's process: one selection more, of a video that has scenes, and it took time.
    assert after["segmo:selection_seconds_count"] - before["segmo:selection_seconds_count"] == 1
    assert after["segmo:selection_seconds_sum"] > before["segmo:selection_seconds_sum"]
    assert after["segmo:scenes_total"] > before["segmo:scenes_total"]
