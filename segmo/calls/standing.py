"""Which compilation stands for a model when it is called: the one in place, or the one that it is called through.

``Module.compile`` compiles in place: whoever calls the model calls what was compiled. ``torch.compile`` gives another
object and leaves the model as it was; but its methods, ``generate`` above all, are those of the model, and these call
the model itself. So while such a method runs, the model's calls go to the compilation that the method was found at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from segmo.calls.attention import Attention
from segmo.calls.call import Call

STANDING = "_segmo"  # attribute of a model that is compiled in place
_THROUGH: ContextVar[Call | None] = ContextVar("segmo_through", default=None)


class Door:
    """Takes the place of a model's ``_compiled_call_impl`` once it was compiled by ``torch.compile``."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.in_place: Any = model._compiled_call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _THROUGH.get()
        if call is not None and call.model is self.model:
            return call(*args, **kwargs)
        return (self.in_place or self.model._call_impl)(*args, **kwargs)


@contextmanager
def through(call: Call) -> Iterator[None]:
    """Inside the block, in this thread, calls of the model are calls of this compilation."""
    model = call.model
    if not isinstance(model._compiled_call_impl, Door):  # the model may have been compiled in place meanwhile
        model._compiled_call_impl = Door(model)
    token = _THROUGH.set(call)
    try:
        with call.attention.held():
            yield
    finally:
        _THROUGH.reset(token)


class Standing:
    """A compilation in place, as an attribute of its model: it goes where the model is copied or pickled to.

    torch leaves out what was compiled, so a copy would run as the model was, without a word. The copy of this compiles
    the model's copy again, when that is called first.
    """

    def __init__(self, call: Call, how: dict[str, Any]) -> None:
        self.model: Any = call.model
        self.attention: Attention = call.attention
        self.how = how

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        vars(self.model)["_compiled_call_impl"] = self._again

    def stand(self) -> None:
        """Compiles the model if it is a copy that has not been called yet."""
        if self.model._compiled_call_impl == self._again:
            self.attention.back()
            self.model.compile(backend="segmo", **self.how)

    def _again(self, *args: Any, **kwargs: Any) -> Any:
        self.stand()
        return self.model(*args, **kwargs)


def stand_in_place(call: Call, how: dict[str, Any]) -> Any:
    """Puts a compilation in the place of an earlier one. Returns what the model's calls go to."""
    model = call.model
    door = model._compiled_call_impl
    leave(model)
    vars(model)[STANDING] = Standing(call, how)
    call.attention.hold()
    if isinstance(door, Door):
        door.in_place = call
        return door
    return call


def leave(model: torch.nn.Module) -> None:
    """Brings a model that was compiled in place back to how it was loaded."""
    untyped: Any = model
    standing = vars(model).pop(STANDING, None)
    if standing is not None:
        standing.attention.release()
    if isinstance(untyped._compiled_call_impl, Door):
        untyped._compiled_call_impl.in_place = None
    else:
        untyped._compiled_call_impl = None


def standing_call(model: torch.nn.Module) -> Call | None:
    """The compilation in place; None for a model that is as it was."""
    untyped: Any = model
    if STANDING in vars(model):
        vars(model)[STANDING].stand()
    found = untyped._compiled_call_impl
    found = found.in_place if isinstance(found, Door) else found
    return found if isinstance(found, Call) else None
