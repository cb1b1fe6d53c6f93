"""One question after another: the next video is read while the current answer is computed."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segmo
from segmo.api import compiled_with
from segmo.ask.encode import encode, process
from segmo.ask.features import Facts, Features
from segmo.ask.generate import Generated, generate
from segmo.ask.loaded import Loaded
from segmo.ask.settings import Settings, checked_question
from segmo.ask.store import Store, file_hash
from segmo.errors import SegMoError
from segmo.frames.clips import frame_choice
from segmo.timeline import Timeline
from segmo.video import Clip, read
from segmo.video.source import check_file

VERSION = 1  # raised whenever the same file and settings would give other features

FULL = "full attention: "  # before the names of stages that ran without SegMo

Progress = Callable[[str, int, int], None]


class UnexpectedError(SegMoError):
    """Something other than SegMo failed on one request; the cause is attached."""


@dataclass(frozen=True)
class Request:
    """A question about a video file, and its name in the time line."""

    video: Path
    question: str
    name: str = ""


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        request: what was asked.
        text: the answer through SegMo.
        full: with full attention, if that was asked for too.
        facts: of the video.
        tokens: of the prompt, of the video, and kept of the video.
        cached: the video's features were on the disk.
        seconds: busy seconds by stage.
    """

    request: Request
    text: str
    full: Generated | None
    facts: Facts
    tokens: dict[str, int]
    cached: bool
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Ready:
    """What the processors made of a request: features from the disk, or a clip with the model's inputs."""

    key: str
    features: Features | None
    clip: Clip | None = None
    inputs: dict[str, Any] | None = None


class Asker:
    """Answers questions with one model.

    Args:
        loaded: the model.
        settings: how.
        store: keeps features of videos for further questions; None keeps none.
        timeline: gets every stage.
        progress: called with (stage, done, total).
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        store: Store | None = None,
        timeline: Timeline | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        self.loaded, self.settings = loaded, settings
        self.store = store if loaded.fingerprint else None
        self.timeline = Timeline() if timeline is None else timeline
        self._progress = progress
        self._making: set[str] = set()
        self._lock = threading.Lock()
        self._warm = False
        self._choose = settings.choose
        if settings.frames is not None:
            balance = settings.options.balance
            self._choose = frame_choice(loaded.model, loaded.processor, settings.frames, settings.relevance, balance)
        if compiled_with(loaded.model) != settings.options:  # its graphs serve further videos and questions
            segmo.compile(loaded.model, **settings.options.as_dict())

    def ask(self, video: Path | str, question: str) -> Answer:
        """The answer to one question.

        Raises:
            SegMoError: the question is empty, or the file is not a video; see :mod:`segmo.video.source`.
        """
        (found,) = self.answers([Request(Path(video), question)])
        if isinstance(found, SegMoError):
            raise found.__cause__ if isinstance(found, UnexpectedError) and found.__cause__ else found
        return found

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer | SegMoError]:
        """An answer, or what was wrong, for each request in order.

        While the model works on one request, the next one's video is hashed, decoded and processed in another thread,
        unless it is the video that the model is just working on.
        """
        with ThreadPoolExecutor(1, "segmo-next") as pool:
            waiting: Future[_Ready] | None = None
            current: Request | None = None
            for following in [*requests, None]:
                ready = waiting
                waiting = pool.submit(self._prepare, following) if following else None
                if current is not None and ready is not None:
                    yield self._settle(current, ready)
                current = following

    def _settle(self, request: Request, ready: Future[_Ready]) -> Answer | SegMoError:
        try:
            return self._answer(request, ready.result())
        except SegMoError as error:
            return error
        except Exception as error:  # noqa: BLE001  # one bad request does not stop the rest; ask() raises it
            wrapped = UnexpectedError(f"{request.video}: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            return wrapped

    def _prepare(self, request: Request, again: bool = False) -> _Ready:
        """All that needs no model, in the thread that runs ahead."""
        question = checked_question(request.question)
        check_file(request.video)
        with self.timeline.measure("hash", request.name):
            key = self._key(request.video, question) if self.store else ""
        if self.store:
            found = self.store.get(key)
            if found is not None:
                return _Ready(key, Features.from_disk(*found))
            with self._lock:
                if key in self._making and not again:
                    return _Ready(key, None)  # the request before is about to encode this video
                self._making.add(key)
        clip = self._read(request)
        if self._choose is not None:
            with self.timeline.measure("choose", request.name):
                clip = clip.only(self._choose(clip, question))
        with self.timeline.measure("process", request.name):
            return _Ready(key, None, clip, process(self.loaded, clip, question))

    def _read(self, request: Request) -> Clip:
        settings, inner = self.settings, Timeline()
        offset = self.timeline.now()
        clip = read(
            request.video,
            settings.fps or self.loaded.fps,
            self.loaded.size,
            max_pixels=self.loaded.max_pixels,
            max_frames=settings.max_frames,
            scenes=settings.scenes,
            workers=settings.workers,
            progress=lambda done, total: self._progress("decode, scenes", done, total),
            timeline=inner,
        )
        for event in inner.events:
            self.timeline.add(event.stage, event.start + offset, event.end + offset, request.name, event.busy)
        return clip

    def _key(self, video: Path, question: str) -> str:
        """Of the features: the file's bytes, the model, and all that changes which frames the model sees."""
        settings, loaded = self.settings, self.loaded
        parts: list[Any] = [VERSION, file_hash(video), loaded.fingerprint, settings.fps or loaded.fps, loaded.size]
        parts += [loaded.max_pixels, settings.max_frames, dataclasses.astuple(settings.scenes)]
        if self._choose is not None:
            parts += [question, getattr(self._choose, "key", repr(self._choose))]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _features(self, request: Request, ready: _Ready) -> tuple[Features, bool]:
        """Features of the video, and whether they were on the disk."""
        if ready.features is not None:
            return ready.features, True
        if self.store is None:
            return self._encode(request, ready), False
        with self.store.making(ready.key):
            found = self.store.get(ready.key)  # another request or process may have been faster
            if found is not None:
                return Features.from_disk(*found), True
            features = self._encode(request, ready)
            self.store.put(ready.key, *features.to_disk())
            with self._lock:
                self._making.discard(ready.key)
            return features, False

    def _encode(self, request: Request, ready: _Ready) -> Features:
        if ready.clip is None or ready.inputs is None:  # the request before failed to encode this video
            ready = self._prepare(request, again=True)
        assert ready.clip is not None
        assert ready.inputs is not None
        with self.timeline.measure("encode", request.name):
            return encode(
                self.loaded,
                ready.inputs,
                ready.clip,
                checked_question(request.question),
                lambda done, total: self._progress("encode", done, total),
            )

    def _answer(self, request: Request, ready: _Ready) -> Answer:
        features, cached = self._features(request, ready)
        inputs = features.inputs(self.loaded, checked_question(request.question))
        full = self._compared(inputs, request.name) if self.settings.compare else None
        found = self._generate(inputs, request.name, "")
        seconds = self.timeline.seconds(request.name)
        return Answer(request, found.text, full, features.facts, self._tokens(inputs), cached, seconds)

    def _generate(self, inputs: dict[str, Any], name: str, label: str) -> Generated:
        def step(done: int, total: int) -> None:
            if done == 1:
                self._progress(f"{label}prefill", 1, 1)
            self._progress(f"{label}generate", done, total)

        loaded, tokens = self.loaded, self.settings.new_tokens
        self._progress(f"{label}prefill", 0, 1)
        return generate(loaded.model, loaded.processor, inputs, tokens, self.timeline, name, label, step)

    def _compared(self, inputs: dict[str, Any], name: str) -> Generated:
        """The answer of the model as it is. Both ways run once beforehand, so that both are timed alike."""
        loaded, aside = self.loaded, Timeline()
        with _as_it_is(loaded.model):
            if not self._warm:
                generate(loaded.model, loaded.processor, inputs, 1, aside)
            full = self._generate(inputs, name, FULL)
        if not self._warm:
            generate(loaded.model, loaded.processor, inputs, min(2, self.settings.new_tokens), self.timeline, "warm-up")
        self._warm = True
        return full

    def _tokens(self, inputs: dict[str, Any]) -> dict[str, int]:
        """Of the last prefill, which keep=1 with one segment leaves as it was."""
        prefill = segmo.last_report().prefill
        if prefill is not None:
            return prefill.tokens()
        ids = inputs["input_ids"]
        video = int((ids == self.loaded.video_token).sum())
        return {"prompt": ids.shape[1], "video": video, "kept": video}


@contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """The model without SegMo, and then compiled as it was, with the graphs that it has."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
