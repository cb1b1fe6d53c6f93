"""One question after another: the next video is read while the current answer is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch

import segmo
from segmo.api import compiled_with
from segmo.ask.cache import TensorCache
from segmo.ask.checkpoint import Checkpoint
from segmo.ask.chosen_frames import ChosenFrames
from segmo.ask.context import Context, Progress, Request
from segmo.ask.features import VideoFacts
from segmo.ask.generate import Generated, generate
from segmo.ask.plain_video import PlainVideo
from segmo.ask.settings import Settings, checked_question
from segmo.ask.whole_video import WholeVideo
from segmo.errors import SegMoError
from segmo.report.timeline import Timeline
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.host import made_here
from segmo.video import fetch
from segmo.video.given import Given
from segmo.video.source import readable

PICTURE = 160 * 90  # pixels of a frame on the report's page, at most
FULL = "full attention: "  # before the names of stages that ran without SegMo


class UnexpectedError(SegMoError):
    """Something other than SegMo failed on one request; the cause is attached."""


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Attributes:
        request: what was asked.
        text: the answer through SegMo.
        full: with full attention, if that was asked for too.
        facts: of the video.
        tokens: of the prompt, of the video, and kept of the video.
        cached: what came from the cache, in words.
        seconds: busy seconds by stage.
    """

    request: Request
    text: str
    full: Generated | None
    facts: VideoFacts
    tokens: dict[str, int]
    cached: tuple[str, ...]
    seconds: dict[str, float]


class Asker:
    """Answers questions with one model.

    Args:
        loaded: the model.
        settings: how.
        store: keeps features of videos for further questions; None keeps none.
        timeline: gets every stage.
        progress: called with (stage, done, total).
        ranks: that answer the same questions together, each with an asker of its own; None for this process alone.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        settings: Settings,
        store: TensorCache | None = None,
        timeline: Timeline | None = None,
        progress: Progress = lambda stage, done, total: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.loaded, self.settings = loaded, settings
        self.store = store if loaded.fingerprint else None
        self.timeline = Timeline() if timeline is None else timeline
        self._progress = progress
        self._warm = False
        self._names: Counter[str] = Counter()
        context = Context(loaded, settings, self.store, self.timeline, progress, ranks or Ranks(None))
        self._way = _way(context)
        options = settings.options
        if ranks is not None and ranks.group is not None:
            options = replace(options, ranks=ranks.group.group_name)
        if compiled_with(loaded.model) != options:  # its graphs serve further videos and questions
            segmo.compile(loaded.model, **options.as_dict())

    def ask(self, video: Given, question: str) -> Answer:
        """The answer to one question.

        Args:
            video: in any form that :func:`segmo.video.read` takes.
            question: what is asked about it.

        Raises:
            SegMoError: the question is empty, or the video cannot be read; see :mod:`segmo.video.source`.
        """
        (found,) = self.answers([Request(video, question)])
        if isinstance(found, SegMoError):
            raise found.__cause__ if isinstance(found, UnexpectedError) and found.__cause__ else found
        return found

    def answers(self, requests: Iterable[Request]) -> Iterator[Answer | SegMoError]:
        """An answer, or what was wrong, for each request in order.

        While the model works on one request, the next one's video is hashed, decoded and processed in another thread,
        unless it is the video that the model is just working on.
        """
        with ThreadPoolExecutor(1, "segmo-next") as pool:
            waiting: Future[Any] | None = None
            current: Request | None = None
            for given in chain(requests, [None]):
                following = given and self._named(given)
                ready = waiting
                waiting = pool.submit(self._prepare, following) if following else None
                if current is not None and ready is not None:
                    yield self._settle(current, ready)
                current = following

    def _named(self, request: Request) -> Request:
        """The request under a name that no earlier one has: seconds are added up by name."""
        self._names[request.name] += 1
        again = self._names[request.name]
        return request if again == 1 else replace(request, name=f"{request.name} ({again})".strip())

    def _settle(self, request: Request, ready: Future[Any]) -> Answer | SegMoError:
        try:
            return self._answer(request, ready.result())
        except SegMoError as error:
            return error
        except Exception as error:  # noqa: BLE001  # one bad request does not stop the rest; ask() raises it
            wrapped = UnexpectedError(f"{_name_of(request)}: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            return wrapped

    def _prepare(self, request: Request) -> Any:
        """All that needs no model, in the thread that runs ahead."""
        checked_question(request.question)
        request.source.check()
        return self._way.prepare(request)

    @made_here()
    def _answer(self, request: Request, ready: Any) -> Answer:
        features, cached = self._way.features(request, ready)
        inputs = features.inputs(self.loaded, checked_question(request.question))
        full = self._compared(inputs, request.name) if self.settings.compare else None
        with self._shown(request, features.facts):
            found = self._generate(inputs, request.name, "")
        seconds = self.timeline.seconds(request.name)
        return Answer(request, found.text, full, features.facts, self._tokens(inputs), cached, seconds)

    def _shown(self, request: Request, facts: VideoFacts) -> AbstractContextManager[None]:
        """What the report shows of the prompt. Its frames are read once more, small: no cache holds pictures."""
        if self.settings.options.report is None:
            return nullcontext()
        frames = None
        if not facts.damaged:  # in such a file, seeking may end at another frame
            with self.timeline.measure("pictures", request.name):
                frames = fetch(request.source, facts.seconds, max_pixels=PICTURE)
        return segmo.show_prompt(frames, question=request.question, name=str(request.source))

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
        video = int(torch.isin(ids, torch.tensor(self.loaded.placeholders, device=ids.device)).sum())
        return {"prompt": ids.shape[1], "video": video, "kept": video}


def _way(context: Context) -> WholeVideo | ChosenFrames | PlainVideo:
    """From a file to a prompt: by features that serve many questions, where the model's family allows it."""
    if not context.loaded.takes_features:
        return PlainVideo(context)
    return WholeVideo(context) if context.settings.frames is None else ChosenFrames(context)


def _name_of(request: Request) -> str:
    """What a message calls the video; it may be in no form that can be read."""
    return request.source.name if "source" in vars(request) else readable(str(request.video))


@contextmanager
def _as_it_is(model: Any) -> Iterator[None]:
    """The model without SegMo, and then compiled as it was, with the graphs that it has."""
    compiled, model._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
