"""A video for a model of whose family SegMo does not know how a video lies in its prompt: the processor's own inputs.

Each question's prompt is made by the processor, and the model encodes its pixels by itself. Nothing is kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segmo.ask.checkpoint import Checkpoint
from segmo.ask.context import Context, Request
from segmo.ask.encode import facts_of, process
from segmo.ask.features import VideoFacts
from segmo.ask.settings import checked_question
from segmo.errors import OptionError
from segmo.upstream.clips import frame_choice, moved


@dataclass(frozen=True)
class PlainInputs:
    """What the processor made of a question and its video.

    Attributes:
        made: the processor's inputs.
        facts: of the video.
    """

    made: Mapping[str, Any]
    facts: VideoFacts

    def inputs(self, loaded: Checkpoint, question: str) -> dict[str, Any]:
        """What ``generate`` takes for the question that this was made for."""
        del question
        return moved(self.made, loaded.model)


class PlainVideo:
    """From a file to the processor's inputs.

    Raises:
        OptionError: frames are to be chosen by the model's own encoder, whose rows cannot be told apart.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        settings, loaded = context.settings, context.loaded
        self.choose = settings.choose
        if settings.frames is None:
            return
        if settings.relevance is None:
            raise OptionError(
                f"--frames: SegMo cannot tell which rows of a {loaded.model.config.model_type!r} video belong to which "
                "frame; give a CLIP or SigLIP model that scores frames (--relevance PATH)"
            )
        balance = settings.options.balance
        self.choose = frame_choice(loaded.model, loaded.processor, settings.frames, settings.relevance, balance)

    def prepare(self, request: Request) -> PlainInputs:
        """All that needs no model, in the thread that runs ahead."""
        context, question = self.context, checked_question(request.question)
        clip = context.read(request)
        if self.choose is not None:
            with context.timeline.measure("choose", request.name):
                clip = clip.only(self.choose(clip, question))
        with context.timeline.measure("process", request.name):
            return PlainInputs(process(context.loaded, clip, question), facts_of(clip))

    def features(self, request: Request, ready: PlainInputs) -> tuple[PlainInputs, tuple[str, ...]]:
        """The inputs; nothing came from the cache."""
        del request
        return ready, ()
