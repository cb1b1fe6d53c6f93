"""Whether a decoder layer may be stamped out from another one that Dynamo has read.

Torch asks whether what it has read of a nested compile region depends on anything that is different where the region is
called again. Of a decoder layer more is asked here: it has to be alike in all that it holds, and its weights have to be
found at the same places in it. And it gets all the conditions ("guards") that the first one has: of those that torch
stamps out by itself nobody notices later that a number in them was changed, or a module replaced.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.guards import install_guard
from torch._dynamo.source import is_from_source
from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationExisting
from torch._dynamo.variables.builder import VariableBuilder
from torch._dynamo.variables.misc import CellVariable
from torch._guards import ChainedSource, Source
from torch.utils._ordered_set import OrderedSet

from segmo.compat.alike import counterparts
from segmo.compat.regions import regions
from segmo.compat.stored_tensors import is_cache, is_cache_class

GUARD_VALUE_DISPATCH: Any
GuardCheckSpec: Any
try:  # from torch 2.14 on
    from torch._dynamo.guards import GUARD_VALUE_DISPATCH, GuardCheckSpec
except ImportError:
    GUARD_VALUE_DISPATCH, GuardCheckSpec = {}, None

WHAT = "torch._dynamo.guards, and how Dynamo stamps out regions"
VERSIONS = "torch 2.14; before it there are no regions"


def note(tx: Any, decoder: Any, condition: Any, fingerprint: Any) -> None:
    """Keeps with what was read, right behind it, all that is asked of other layers later.

    Args:
        tx: Dynamo's tracer.
        decoder: that of the function that calls the layers.
        condition: that the region was read under.
        fingerprint: of the arguments that it was read with.
    """
    layer = fingerprint.arg_sources[0]
    condition.segmo_surroundings = _surroundings(fingerprint)
    condition.segmo_written, condition.segmo_objects = _written(tx, decoder), _objects(tx)
    # All guards on what the layer holds. What Dynamo asks of the layer from now on has nothing to do with the region.
    condition.segmo_guards = [
        _with_check(tx, guard) for guard in tx.output.guards if is_from_source(guard.originating_source, layer)
    ]
    condition.segmo_elsewhere = OrderedSet(each for each in condition.traced_sources if not is_from_source(each, layer))
    condition.segmo_ordered = [each for each in tx.output.guard_on_key_order if is_from_source(each, layer)]


def _with_check(tx: Any, guard: Any) -> tuple[Any, Any, Any]:
    """A guard, its check and what that expects. One of a kind that has no check (None) holds for no other layer."""
    check = GUARD_VALUE_DISPATCH.get(guard.create_fn_name())
    more = (*getattr(guard.create_fn, "args", ()), *getattr(guard.create_fn, "keywords", {}).values())
    if not isinstance(check, GuardCheckSpec) or any(isinstance(each, Source) for each in more):
        return guard, None, None
    return guard, check, check.get_metadata_fn(guard, tx.output.resolve_source_value(guard.originating_source))


def _surroundings(fingerprint: Any) -> tuple[Any, ...]:
    """What torch does not ask: which arguments are one tensor, and the modes of torch."""
    symbolic = (regions.InputTag.TENSOR, regions.InputTag.SYMNODE)
    nodes = [given.as_proxy().node for tag, given in fingerprint.flat_vts if tag in symbolic]
    casts = [(torch.is_autocast_enabled(each), torch.get_autocast_dtype(each)) for each in ("cpu", "cuda")]
    modes = casts, torch.is_inference_mode_enabled(), torch.get_default_dtype()
    return [nodes.index(node) for node in nodes], modes


def _written(tx: Any, decoder: Any) -> dict[tuple[int, str], tuple[Any, list[Any]]]:
    """What has been written: attributes, by object and name, and what is in lists and dicts; all of Dynamo's own.

    Not into transformers' caches, whose keys go into a layer by themselves. And not the variables that the decoder's
    function shares with functions inside of it: it hands none of these to a layer.
    """
    effects, shared = tx.output.side_effects, set(map(id, decoder.symbolic_locals.values()))
    written = {
        (id(owner), name): (owner, _parts(value))
        for owner, fields in list(effects.store_attr_mutations.items())
        if not _is_known_cache(owner) and not (isinstance(owner, CellVariable) and id(owner) in shared)
        for name, value in fields.items()
    }
    scope, values = _scope(tx), dict[Any, Any]()
    for each in list(effects.id_to_variable.values()):  # more are met while these are asked
        modified = isinstance(each.mutation_type, ValueMutationExisting) and each.mutation_type.is_modified
        if modified and not _is_kept_by_cache(each.source, scope, values):
            written[id(each), ""] = each, _parts(each)
    return written


def _scope(tx: Any) -> dict[str, Any]:
    """What a source's value is looked up in."""
    return {"G": tx.output.root_tx.f_globals, "L": tx.output.root_tx.f_locals}


def _is_kept_by_cache(place: Source | None, scope: dict[str, Any], values: dict[Any, Any]) -> bool:
    """Whether a list or a dict is an attribute of one of transformers' caches or of its layers.

    ``values``: of sources that were looked up before.
    """
    try:
        return isinstance(place, ChainedSource) and _is_known_kind(type(place.base.get_value(scope, {}, values)))
    except Exception:  # noqa: BLE001  # not every source can be looked up, and each says so in its own way
        return False


def _parts(value: Any) -> list[Any]:
    """A value, and what is in it if it is a list or a dict, and in these."""
    parts, left, entered = list[Any](), [value], set[int]()
    while left:
        parts.append(left.pop())
        items = getattr(parts[-1], "__dict__", {}).get("items")  # not by name: a constant has methods of these names
        if id(parts[-1]) in entered:  # a list may hold itself
            continue
        entered.add(id(parts[-1]))
        if isinstance(items, dict):
            left += [getattr(key, "vt", key) for key in items] + list(items.values())
        elif isinstance(items, list):
            left += items
    return parts


def _is_known_cache(owner: Any) -> bool:
    """Whether Dynamo's record of an object is one of transformers' caches, or of its layers, and not a user's own."""
    return is_cache(owner) and _is_known_kind(owner.python_type())


def _is_known_kind(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("transformers", "segmo") and is_cache_class(kind)


def _are(parts: list[Any], others: list[Any]) -> bool:
    return len(parts) == len(others) and all(part is other for part, other in zip(parts, others, strict=True))


def _objects(tx: Any) -> set[int]:
    """The objects that Dynamo has met, or made, by now."""
    return {id(each) for each in tx.output.side_effects.id_to_variable.values()}


class Stamp:
    """One layer that may be stamped out from another one that was read.

    Args:
        tx: Dynamo's tracer.
        decoder: that of the function that calls the layers.
        condition: that the region was read under.
        fingerprint: of the arguments that it is called with now.
        entry: the region, and the arguments that it was read with.
    """

    def __init__(self, tx: Any, decoder: Any, condition: Any, fingerprint: Any, entry: Any) -> None:
        self.tx, self.decoder = tx, decoder
        self.condition, self.fingerprint, self.entry = condition, fingerprint, entry
        self.read, self.now = entry.arg_sources[0], fingerprint.arg_sources[0]
        self.scope = _scope(tx)
        self.values: dict[Any, Any] = {}
        self.moved: dict[Any, Any] = {self.read: self.now}

    def made(self, reusable: Callable[..., bool]) -> bool:
        """Whether the layer is stamped out; then it has its guards."""
        known = self.read is not None and self.now is not None and self._called_alike(reusable)
        wanted = self._guards() if known and self._alike() else None
        if wanted is None:
            return False
        for guard, create, place in wanted:
            if guard.create_fn_name() == "TENSOR_MATCH":  # which knows of tensors that are inputs of the graph
                VariableBuilder(self.tx, place)(self._value(place))
            else:
                again = place.make_guard(create)
                again.user_stack = guard.user_stack
                install_guard(again)
        self.tx.output.guard_on_key_order.update(map(self._moved, self.condition.segmo_ordered))
        return True

    def _called_alike(self, reusable: Callable[..., bool]) -> bool:
        """What torch asks of arguments, and of what was changed since the region was read; but nothing of guards."""
        others = [each for each in self.fingerprint.arg_sources[1:] if each is not None]
        apart = (*self.tx.output.side_effects.mutated_sources, *others)  # from what a layer holds
        if any(is_from_source(each, self.now) or is_from_source(each, self.read) for each in apart):
            return False
        if self.condition.segmo_surroundings != _surroundings(self.fingerprint) or not self._written_alike():
            return False
        checks, arguments = self.condition.input_checks[1:], self.fingerprint.flat_vts[1:]
        sources = self.entry.arg_sources[1:], self.fingerprint.arg_sources[1:]
        for (tag, before), (_, argument), old, new in zip(checks, arguments, *sources, strict=False):
            if tag is regions.InputTag.CONSTANT and before[1] != getattr(argument, "value", None):
                return False
            if tag is regions.InputTag.OBJECT and old != new:
                return False
        condition = dataclasses.replace(self.condition, guards=[], traced_sources=self.condition.segmo_elsewhere)
        return bool(reusable(self.tx, condition, self.fingerprint, self.entry))

    def _written_alike(self) -> bool:
        """Whether nothing was written since the region was read, but to objects that were made since: no layer has seen
        these, unless something that was there before holds them now, which is written too.
        """
        then, now = self.condition.segmo_written, _written(self.tx, self.decoder)
        kept = {
            place: parts
            for place, (owner, parts) in now.items()
            if place[0] in self.condition.segmo_objects or not isinstance(owner.mutation_type, AttributeMutationNew)
        }
        return kept.keys() == then.keys() and all(_are(parts, then[place][1]) for place, parts in kept.items())

    def _alike(self) -> bool:
        """Whether both layers hold the same, and the region's inputs are the second one's tensors in its places."""
        read, now = self._value(self.read), self._value(self.now)
        tensors = counterparts(read, now) if now is self.fingerprint.flat_vts[0][1].value else None
        if tensors is None:
            return False
        given = (*self.entry.arg_sources[1:], *self.fingerprint.arg_sources[1:])
        arguments = {id(self._value(each)) for each in given if each is not None}
        if arguments & {*tensors, *map(id, tensors.values())}:  # torch takes these for arguments in every layer
            return False
        return all(self._same_place(each, tensors) for each in self.entry.subgraph_input_mapping)

    def _same_place(self, given: Any, tensors: dict[int, torch.Tensor]) -> bool:
        """Whether one input of the region is found where it belongs."""
        if isinstance(given, regions.LiftedCapturedSource):
            before = self._value(given.source)
            return self._value(self._moved(given.source)) is tensors.get(id(before), before)
        return isinstance(given, (regions.LiftedUserArg, regions.LiftedBoundSymbol))

    def _guards(self) -> list[tuple[Any, Any, Source]] | None:
        """The guards of the layer that was read, how and where each is made for this one; None if one does not hold."""
        found = []
        for guard, check, expected in self.condition.segmo_guards:
            place, create = self._moved(guard.originating_source), guard.create_fn
            try:
                value = self._value(place)
            except (AttributeError, KeyError, IndexError, TypeError):  # there is no such place here
                return None
            if guard.create_fn_name() == "DUPLICATE_INPUT":
                twin = self._moved(create.keywords["source_b"])
                create, holds = functools.partial(create.func, source_b=twin), self._value(twin) is value
            else:
                holds = check is not None and check.eval_fn(value, expected)
            if not holds:
                return None
            found.append((guard, create, place))
        return found

    def _value(self, place: Source) -> Any:
        return place.get_value(self.scope, {}, self.values)

    def _moved(self, place: Source) -> Source:
        """The same place in the layer that may be stamped out."""
        found = self.moved.get(place)
        if found is None:
            found = place
            if isinstance(place, ChainedSource):
                base = self._moved(place.base)
                found = place if base is place.base else dataclasses.replace(place, base=base)
            self.moved[place] = found
        return found


def fits() -> str | None:
    """What Dynamo knows of a region's inputs and conditions must be what is looked at here."""
    if regions is None:
        return None
    kinds = {"LiftedCapturedSource", "LiftedUserArg", "LiftedBoundSymbol", "InputTag"}
    if not kinds <= set(vars(regions)) or not GUARD_VALUE_DISPATCH:
        return "a region's inputs or guards are of other kinds"
    known = {field.name for field in dataclasses.fields(regions.InvokeSubgraphReuseCondition)}
    return None if {"input_checks", "guards", "traced_sources"} <= known else "a region has other conditions"
