"""The options of SegMo: one frozen dataclass, the same names in every entry point."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmo.errors import OptionError

SCORERS = ("embedding", "attention", "external")
LOWERINGS = ("auto", "flash", "reference", "inductor", "triton")
_EQUAL_SEGMENTS = re.compile(r"equal:([1-9][0-9]*)")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _is_segments(value: object) -> bool:
    if _is_int(value):
        return value >= 1  # type: ignore[operator]  # narrowed by _is_int
    return isinstance(value, str) and (value == "scene" or _EQUAL_SEGMENTS.fullmatch(value) is not None)


def _as_tuple(value: object) -> object:
    """A tuple of names from one name, a list, or None; anything else stays and is refused by the check."""
    if value is None or isinstance(value, str):
        return () if value is None else (value,)
    return tuple(value) if isinstance(value, list) else value


def _group_name(value: Any) -> Any:
    """Name of a process group, or of that of a device mesh; anything else stays and is refused by the check."""
    if hasattr(value, "get_group"):
        if value.ndim != 1:
            raise OptionError(
                f"ranks is a mesh of {value.ndim} dimensions ({value.mesh_dim_names}); hand in one of them, such as "
                'mesh["segments"]'
            )
        value = value.get_group()
    return getattr(value, "group_name", value)


def _is_pipeline(value: object) -> bool:
    return value is None or isinstance(value, str)


def _option(default: Any, check: Callable[[Any], bool], allowed: str, help_text: str) -> Any:
    return field(default=default, metadata={"check": check, "allowed": allowed, "help": help_text})


@dataclass(frozen=True)
class Options:
    """What SegMo should do to a model.

    The same names are used by ``torch.compile(options={...})``, :func:`segmo.compile` and the command line.
    Values are checked on construction; :class:`segmo.errors.OptionError` names the key, the allowed values
    and, for an unknown key, the nearest match.
    """

    keep: float = _option(
        0.25,
        lambda v: _is_number(v) and 0 < v <= 1,
        "a number with 0 < keep <= 1",
        "fraction of the video tokens that is kept (CAS)",
    )
    frames: float = _option(
        1.0,
        lambda v: _is_number(v) and 0 < v <= 1,
        "a number with 0 < frames <= 1",
        "fraction of each video's frames that the vision encoder sees; below 1, keep is at most frames",
    )
    segments: str | int = _option(
        "scene",
        _is_segments,
        '"scene", a number of segments >= 1 (scenes are grouped or split), or "equal:N"',
        "how the video is cut into attention segments (LSP)",
    )
    context: int = _option(
        2,
        lambda v: _is_int(v) and v >= 0,
        "a whole number >= 0",
        "number of scenes whose head frames every later token may see (GCI)",
    )
    tails: int = _option(
        2,
        lambda v: _is_int(v) and v >= 0,
        "a whole number >= 0",
        "number of last kept frames of each segment that every later token may see (GCI)",
    )
    scorer: str = _option(
        "embedding",
        lambda v: v in SCORERS,
        "one of " + ", ".join(f'"{name}"' for name in SCORERS),
        "how the relevance of a scene to the question is found",
    )
    layer: int = _option(
        3,
        lambda v: _is_int(v) and v >= 0,
        "a decoder layer index >= 0",
        'decoder layer at which scorer="attention" scores and selects',
    )
    balance: float = _option(
        0.5,
        lambda v: _is_number(v) and 0 <= v <= 1,
        "a number with 0 <= balance <= 1",
        "weight a of relevance against dynamics in a scene's budget: a * relevance + (1 - a) * dynamics",
    )
    lowering: str = _option(
        "auto",
        lambda v: v in LOWERINGS,
        "one of " + ", ".join(f'"{name}"' for name in LOWERINGS),
        "implementation of the inserted ops and of the rest of the graph",
    )
    pipeline: str | None = _option(
        None,
        _is_pipeline,
        'a pipeline such as "select-tokens,segment-attention{segments=8}"',
        "passes to run, in order, by name or as module:Class; the default pipeline when not given",
    )
    disable: tuple[str, ...] = _option(
        (),
        lambda v: isinstance(v, tuple) and all(isinstance(name, str) for name in v),
        "a pass name or a list of pass names",
        "passes of the pipeline that are switched off",
    )
    ranks: str | None = _option(
        None,
        lambda v: v is None or (isinstance(v, str) and v != ""),
        'None, "all" or a process group',
        "ranks that one prompt's segments are spread over; None is this process alone, whatever groups there are",
    )
    report: str | None = _option(
        None,
        lambda v: v is None or isinstance(v, str),
        "a folder",
        "folder into which the report is written as JSON and as a page after each prefill",
    )
    strict: bool = _option(
        False,
        lambda v: isinstance(v, bool),
        "True or False",
        "turn a pass that does not apply to a prefill into an error",
    )

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if getattr(value, "ndim", None) == 0:  # a number of numpy or torch, which no graph's code can hold as text
                value = value.item()
                object.__setattr__(self, option.name, value)
            if not option.metadata["check"](value):
                raise OptionError(f"option {option.name!r} is {value!r}; it must be {option.metadata['allowed']}")

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """Options from a plain mapping, as ``torch.compile(options=...)`` hands it over (None when empty).

        Lists are taken where the dataclass holds tuples, paths where it holds strings, a list of pass names as a
        pipeline, and a process group or a one-dimensional device mesh as the group's name.

        Raises:
            OptionError: a key is unknown, or a value has the wrong type or range.
        """
        if not (options is None or isinstance(options, Mapping)):
            raise OptionError(f"the options are {options!r}; they must be a mapping from names to values")
        known = [option.name for option in dataclasses.fields(cls)]
        values = dict(options or {})
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise OptionError(f"unknown option {key!r}{hint} Known options: {', '.join(known)}")
        if isinstance(values.get("pipeline"), (list, tuple)):
            values["pipeline"] = ",".join(map(str, values["pipeline"]))
        if "disable" in values:
            values["disable"] = _as_tuple(values["disable"])
        values["ranks"] = _group_name(values.get("ranks"))
        if hasattr(values.get("report"), "__fspath__"):
            values["report"] = values["report"].__fspath__()
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain, JSON-able form."""
        return {**dataclasses.asdict(self), "disable": list(self.disable)}


def check_frames(frames: float, scorer: str) -> None:
    """Frames are chosen before the encoder runs, so what scores them must not need the decoder.

    Raises:
        OptionError: ``frames`` below 1 with ``scorer="attention"``.
    """
    if frames < 1 and scorer == "attention":
        raise OptionError(
            'frames below 1 does not go with scorer="attention", which scores inside the decoder, behind the vision '
            'encoder; use scorer="embedding" or scorer="external"'
        )
