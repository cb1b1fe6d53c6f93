"""Frames that are chosen before the vision encoder runs: ``generate`` has to say which prompt it runs for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from segmo.calls.call import Call
from segmo.calls.pictures import no_video
from segmo.calls.standing import standing_call
from segmo.upstream.encoder import encode_all, encoding


class Generate:
    """Takes the place of ``generate`` of a model that was compiled in place, where frames are chosen."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.original = model.generate

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = standing_call(self.model)
        if call is None:
            return self.original(*args, **kwargs)
        with prompt_of(call, self.original, args, kwargs):
            return self.original(*args, **kwargs)


@contextmanager
def prompt_of(
    call: Call, generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[None]:
    """Inside the block, frames are chosen for the prompt of these arguments of ``generate``."""
    if call.encoder is None:
        yield
        return
    bound = inspect.signature(generate).bind_partial(*args, **kwargs).arguments
    inputs = {**bound, **bound.get("kwargs", {})}
    if no_video(call.model, {**inputs, "input_ids": inputs.get("input_ids", inputs.get("inputs"))}) is not None:
        yield  # pictures that are no frames, or may be none: all are encoded
        return
    with encoding(call.encoder, inputs):
        yield


def choose_in_generate(model: Any) -> None:
    """Puts :class:`Generate` in the place of a model's own."""
    if hasattr(model, "generate") and not isinstance(vars(model).get("generate"), Generate):
        model.generate = Generate(model)


def choose_nowhere(model: Any) -> None:
    """Takes what stands before the vision encoder away again."""
    encode_all(model)
    if isinstance(vars(model).get("generate"), Generate):
        del model.generate
