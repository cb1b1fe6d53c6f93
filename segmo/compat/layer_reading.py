"""Dynamo reads one decoder layer of each kind, and stamps out the others from what it has read.

A layer's call is made a nested compile region. :mod:`segmo.compat.stamping` says which layer may be stamped out; what
leaves Dynamo are plain graphs again (:func:`segmo.compat.regions.expand`). Where a layer cannot be read so, all of its
kind are read one by one, as they are without this file.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch._dynamo.exc import RestartAnalysis, UnspecializeRestartAnalysis
from torch._dynamo.utils import _make_inlined
from torch._dynamo.variables import ConstantVariable, nn_module

from segmo.compat import alike, stamping
from segmo.compat import regions as compat_regions
from segmo.compat.regions import entries, regions

log = logging.getLogger(__name__)

WHAT = "torch._dynamo.variables.nn_module.UnspecializedNNModuleVariable and invoke_subgraph"
VERSIONS = "torch 2.14; before it every layer is read"

# So many kinds of layers are told apart in one graph. A model in which each is another kind is read one by one.
_KINDS = 8


# So often in one call a graph is begun anew because a layer could not be a region; each time what was read is lost.
_RESTARTS = 2

# In so many calls of a model layers are read so. A model of which a number in the layers is another in every call would
# be traced again each time, as these numbers are part of what was read; from then on they are inputs of the graph.
_CALLS = 8


@dataclass
class Reader:
    """How the decoder layers of one model are made such that one can be read for all.

    Attributes:
        places: what ``call`` has to know of a module; None for one that cannot be read so.
        call: ``call(layer, *places, *args, **kwargs)`` is ``layer(*args, **kwargs)``, with a region in it.
        calls: of the model in which layers were read so.
        refused: kinds of layers for which a graph was begun anew, by the classes of all that they are made of.
    """

    places: Callable[[torch.nn.Module], tuple[int | str | None, ...] | None]
    call: Callable[..., Any]
    calls: int = 0
    refused: set[tuple[type, ...]] = field(default_factory=set)


@dataclass
class _Session:
    """One call of a model, in which Dynamo may trace several graphs.

    Attributes:
        reader: how it reads decoder layers.
        one_by_one: layers that are no regions in it, by the classes of all that they are made of.
        counted: whether this is among the reader's calls.
        restarts: how often a graph was begun anew.
    """

    reader: Reader
    counted: bool = False
    restarts: int = 0
    one_by_one: set[tuple[type, ...]] = field(default_factory=set)


@dataclass
class _Reading:
    """One call of a layer while Dynamo reads it: by which function, and whether it was stamped out or read."""

    decoder: Any
    stamped: bool = False
    read: bool = False


_SESSION: ContextVar[_Session | None] = ContextVar("segmo_session", default=None)
_READING: ContextVar[_Reading | None] = ContextVar("segmo_reading", default=None)


@contextmanager
def stamped(reader: Reader | None) -> Iterator[None]:
    """Inside the block, in this context, Dynamo reads decoder layers through ``reader``; without it, one by one."""
    if reader is None or reader.calls >= _CALLS or not _set_up():
        yield
        return
    token, undo = _SESSION.set(_Session(reader)), _keep_regions()()
    try:
        yield
    finally:
        undo()
        _SESSION.reset(token)


@functools.cache
def _keep_regions() -> Callable[[], Callable[[], None]]:
    """Dynamo itself puts regions in their place that are called once, with all that it has noted of sizes in them."""
    keep: Callable[[], Callable[[], None]]
    keep = torch._dynamo.config._make_closure_patcher(inline_single_use_invoke_subgraph=False)
    return keep


@functools.cache
def _set_up() -> bool:
    """From now on Dynamo asks here. Returns whether it is as this file knows it."""
    if regions is None or any(part.fits() is not None for part in (alike, compat_regions, stamping)) or fits():
        return False
    variable: Any = nn_module.UnspecializedNNModuleVariable
    call, reusable, conditions = variable.call_function, regions.is_reusable, regions.build_reuse_condition
    eligible = regions.is_reuse_eligible

    @functools.wraps(call)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        session = _SESSION.get()
        if session is None or not _may_be_read(session, self, tx, kwargs) or len(entries(tx)) >= _KINDS:
            return call(self, tx, args, kwargs)
        places = session.reader.places(self.value)
        if places is None:
            return call(self, tx, args, kwargs)
        known = (ConstantVariable.create(each) for each in places)
        return _read(session, self, tx, [*known, *args], kwargs)

    @functools.wraps(reusable)
    def is_reusable(tx: Any, condition: Any, fingerprint: Any, entry: Any) -> bool:
        reading = _READING.get()
        if reading is None:
            return bool(reusable(tx, condition, fingerprint, entry))
        reading.stamped = stamping.Stamp(tx, reading.decoder, condition, fingerprint, entry).made(reusable)
        return reading.stamped

    @functools.wraps(eligible)
    def is_reuse_eligible(*args: Any, **kwargs: Any) -> bool:
        reading = _READING.get()
        if reading is not None:
            reading.read = True
        return bool(eligible(*args, **kwargs))

    @functools.wraps(conditions)
    def build_reuse_condition(tx: Any, fingerprint: Any, *args: Any) -> Any:
        reading = _READING.get()
        if reading is None:
            return conditions(tx, fingerprint, *args)
        try:
            found: Any = conditions(tx, fingerprint, *args)
        except RuntimeError:  # of a guard that cannot be asked of another layer: so none is stamped out
            return None
        if found is not None:
            stamping.note(tx, reading.decoder, found, fingerprint)
        return found

    variable.call_function = call_function
    regions.is_reusable, regions.build_reuse_condition = is_reusable, build_reuse_condition
    regions.is_reuse_eligible = is_reuse_eligible
    return True


def _may_be_read(session: _Session, variable: Any, tx: Any, kwargs: Any) -> bool:
    """Whether a decoder of transformers calls a module of a list with a cache, and no gradients are recorded."""
    if "past_key_values" not in kwargs or _READING.get() is not None or torch.is_grad_enabled():
        return False
    if not tx.f_globals.get("__name__", "").startswith("transformers."):
        return False
    if session.restarts >= _RESTARTS or _kind(variable.value) in session.one_by_one | session.reader.refused:
        return False
    place = variable.source.name if variable.source is not None else ""
    return bool(re.search(r"\._modules\['\d+'\]$", place))


def _kind(module: torch.nn.Module) -> tuple[type, ...]:
    return tuple(type(part) for part in module.modules())


def _read(session: _Session, variable: Any, tx: Any, args: Any, kwargs: Any) -> Any:
    """A layer's call as a region. What cannot be one is read one by one, in this graph too, which is begun again."""
    module, stack_source = variable.value, variable.get_nn_module_stack_source()
    session.reader.calls += not session.counted
    session.counted = True
    for given in (*args, *kwargs.values()):
        given.realize()  # as they would be read elsewhere
    known, reading = len(entries(tx)), _Reading(tx)
    token = _READING.set(reading)
    try:
        # Numbers that layers hold are numbers in the graph: of others torch cannot stamp out a layer.
        numbers = torch._dynamo.config.patch(specialize_float=True)
        with numbers, nn_module.record_nn_module_stack(str(id(module)), stack_source, tx, module):
            result = _make_inlined(tx, session.reader.call)(variable, *args, **kwargs)
    except RestartAnalysis:
        raise
    except Exception as error:
        _refuse(session, module, f"{type(error).__name__}: {error}")
        raise UnspecializeRestartAnalysis from error
    finally:
        _READING.reset(token)
    if reading.stamped:
        return result
    if len(entries(tx)) > known:
        compat_regions.count_read(tx)
        return result
    if reading.read:  # with effects that Dynamo cannot have outside of the region
        _refuse(session, module, "what was read of it holds for no other layer")
        raise UnspecializeRestartAnalysis
    _leave(session.one_by_one, module, "the cache is of another kind")
    return result


def _refuse(session: _Session, module: torch.nn.Module, why: str) -> None:
    """For later calls of the model, too: each would begin its graph anew."""
    session.restarts += 1
    _leave(session.reader.refused, module, why)


def _leave(kinds: set[tuple[type, ...]], module: torch.nn.Module, why: str) -> None:
    kinds.add(_kind(module))
    log.info("layers of the kind of this %s are read one by one: %s", type(module).__name__, why)


def fits() -> str | None:
    """Where torch has regions, they have to be asked for as this file does it."""
    if regions is None:
        return None
    asked = list(inspect.signature(inspect.unwrap(regions.is_reusable)).parameters)
    if asked != ["tx", "condition", "fingerprint", "cached_entry"]:
        return "a region is asked for in another way"
    if not hasattr(torch._dynamo.config, "inline_single_use_invoke_subgraph"):
        return "regions cannot be kept"
    return None
