"""Pipelines: which passes run, in which order, with which options; from a string such as ``"a,b{x=1}"``."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from itertools import pairwise
from typing import Any

from segmo.checked import hint
from segmo.errors import PipelineError
from segmo.options import Options
from segmo.passes.base import Pass
from segmo.passes.group_heads import GroupHeads
from segmo.passes.inject_context import InjectContext
from segmo.passes.lower_kernels import LowerKernels
from segmo.passes.outline_layers import OutlineLayers
from segmo.passes.push_selection import PushSelection
from segmo.passes.reuse_buffers import ReuseBuffers
from segmo.passes.segment_attention import SegmentAttention
from segmo.passes.select_tokens import SelectTokens
from segmo.passes.shard_segments import ShardSegments
from segmo.passes.tile_rows import TileRows
from segmo.passes.trim_last_layer import TrimLastLayer

ENTRY_POINTS = "segmo.passes"
OWN: tuple[type[Any], ...] = (
    PushSelection,
    SelectTokens,
    SegmentAttention,
    InjectContext,
    ShardSegments,
    LowerKernels,
    TrimLastLayer,
    GroupHeads,
    TileRows,
    ReuseBuffers,
    OutlineLayers,
)
DEFAULT = (
    "select-tokens,segment-attention,inject-context,shard-segments,lower-kernels,"
    "trim-last-layer,group-heads,tile-rows,reuse-buffers,outline-layers"
)
_ITEM = re.compile(r"\s*([A-Za-z0-9_.:-]+)\s*(?:\{([^{}]*)\})?\s*(?:,|$)")


def known_passes() -> dict[str, type[Any]]:
    """All passes by name: SegMo's own and those of other distributions (entry point group ``segmo.passes``).

    Raises:
        PipelineError: two modules register one name, or an entry point's name is not its pass's name.
    """
    passes: dict[str, type[Any]] = {cls.name: cls for cls in OWN}
    for entry in entry_points(group=ENTRY_POINTS):
        cls = entry.load()
        if getattr(cls, "name", None) != entry.name:
            raise PipelineError(
                f"entry point {entry.name!r} ({entry.value}) holds a pass named {getattr(cls, 'name', None)!r}; "
                "the two names must be the same"
            )
        other = passes.setdefault(entry.name, cls)
        if other is not cls:
            raise PipelineError(
                f"the pass name {entry.name!r} is registered twice, by {other.__module__} and {cls.__module__}"
            )
    return passes


def _from_module(place: str) -> type[Any]:
    """A pass by where it is, ``module:Class``.

    Raises:
        PipelineError: there is no such module or class, or it is not a pass.
    """
    module, _, name = place.partition(":")
    try:
        cls: type[Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PipelineError(f"the pipeline names the pass {place!r}, which cannot be imported: {error}") from error
    if any(not hasattr(cls, wanted) for wanted in ("__dataclass_fields__", "name", "tier", "run")):
        raise PipelineError(f"{place!r} is not a pass: a frozen dataclass with a name, a tier and run()")
    return cls


def own_name(name: str) -> str:
    """How a pass calls itself, as reports do, where it may be named by its place."""
    return str(_from_module(name).name) if ":" in name else name


def parse_pipeline(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names and fields of a pipeline string.

    Values are Python literals; what is not one is taken as text, so quotes can be left out.

    Raises:
        PipelineError: the text is not a pipeline.
    """
    items: list[tuple[str, dict[str, Any]]] = []
    at = 0
    while at < len(text):
        match = _ITEM.match(text, at)
        if match is None:
            raise PipelineError(
                f"cannot read the pipeline at {text[at:]!r}; write it as in {DEFAULT!r} or 'select-tokens{{keep=0.5}}'"
            )
        items.append((match[1], _fields(match[1], match[2] or "")))
        at = match.end()
    return items


def _fields(name: str, text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise PipelineError(f"pass {name!r}: {part!r} is not of the form field=value")
        try:
            fields[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            fields[key.strip()] = value.strip()
    return fields


def build_pipeline(options: Options) -> list[Pass]:
    """The passes of ``options.pipeline`` less ``options.disable``, in order.

    A pass of a script or a package that registers none is named by its place, ``module:Class``; to disable it, its own
    name will do too.

    A pass's field that is named as an option takes that option's value, unless the pipeline sets it.

    Raises:
        PipelineError: an unknown pass, or an unknown field of one.
    """
    items = parse_pipeline(DEFAULT if options.pipeline is None else options.pipeline)
    known = {**known_passes(), **{place: _from_module(place) for place, _ in items if ":" in place}}
    off, placed = {own_name(name) for name in options.disable}, {own_name(name) for name, _ in items if ":" in name}
    for name in (*sorted(off - placed), *(name for name, _ in items)):
        if name not in known:
            raise PipelineError(f"unknown pass {name!r}{hint(name, known)} Known passes: {', '.join(sorted(known))}")
    return [build_pass(known[name], options, fields) for name, fields in items if own_name(name) not in off]


def check_order(passes: Sequence[Pass]) -> None:
    """SegMo's own passes look for what those before them have put into the graph, once; others may stand anywhere.

    Raises:
        PipelineError: SegMo's own stand in another order, or one of them twice.
    """
    order = [cls.name for cls in OWN]
    own = [each.name for each in passes if isinstance(each, OWN)]
    for before, after in pairwise(own):
        if order.index(before) >= order.index(after):
            what = f"{after!r} twice" if before == after else f"{after!r} behind {before!r}"
            raise PipelineError(
                f"the pipeline has {what}; SegMo's passes build on each other and run once, in this order: "
                f"{', '.join(order)} (passes of your own may stand anywhere between them; behind tile-rows and "
                "outline-layers part of the graph lies in graphs of its own)"
            )


def build_pass(cls: type[Any], options: Options, given: Mapping[str, Any] | None = None) -> Pass:
    """A pass with the options' values in its fields, and what ``given`` sets.

    Raises:
        PipelineError: an unknown field.
    """
    given = given or {}
    names = [field.name for field in dataclasses.fields(cls)]
    for name in given:
        if name not in names:
            raise PipelineError(f"pass {cls.name!r} has no field {name!r}; its fields: {', '.join(names) or 'none'}")
    # Values set in the pipeline are checked as options are.
    checked = dataclasses.replace(options, **{k: v for k, v in given.items() if hasattr(options, k)})
    values = {name: getattr(checked, name) for name in names if hasattr(checked, name)}
    built: Pass = cls(**{**values, **{k: v for k, v in given.items() if k not in values}})
    return built
