"""What a memory does with the options of :func:`segmo.compile`, and its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from segmo.errors import OptionError
from segmo.options import Options

PLACES = ("device", "host", "disk")
# Options that mean something for a memory; the others say how a graph is rewritten, and here none is.
READ = ("keep", "segments", "context", "tails", "scorer", "balance", "layer", "ranks")
EACH = "each"  # layer: every layer of the decoder chooses for itself

Place = str | Mapping[str, int | None]


@dataclass(frozen=True)
class QuestionOptions:
    """How a question chooses.

    Attributes:
        keep: fraction of the video's tokens.
        balance: weight of relevance against dynamics.
        scorer: where relevance comes from.
        layer: of the decoder, that ``scorer="attention"`` listens to; None for each of them, for itself.
    """

    keep: float
    balance: float
    scorer: str
    layer: int | None


@dataclass(frozen=True)
class MemoryOptions:
    """How a video is watched, and how questions choose by default.

    Attributes:
        options: of SegMo; those named in :data:`READ`.
        each_layer: with ``scorer="attention"``, every layer of the decoder chooses for itself.
        watch_keep: fraction of each segment's video tokens that is remembered when it is over, the newest ones first.
        place: where keys, values and features are: "device" (the model's), "host" or "disk"; or several of these, in
            this order, each with its budget in bytes: what is newest comes first.
        folder: for "disk".
        limit: bytes of keys, values and features, at most, on all ranks together; None for no limit. Old segments are
            thinned for it.
        longest: frames after which a segment ends without a cut; None for no limit.
        bits: that a key or value takes when its segment is over: 8, or None for as many as the model gives it.
    """

    options: Options
    each_layer: bool = False
    watch_keep: float = 1.0
    place: Place = "device"
    folder: Path | None = None
    limit: int | None = None
    longest: int | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        default = Options()
        for name, value in self.options.as_dict().items():
            if name not in READ and value != default.as_dict()[name]:
                raise OptionError(
                    f"option {name!r} has no meaning for a memory, which rewrites no graph; it takes {', '.join(READ)}"
                )
        _check_share("watch_keep", self.watch_keep)
        for name in ("limit", "longest"):
            _check_count(name, getattr(self, name))
        if self.bits not in (None, 8):
            raise OptionError(f"bits is {self.bits!r}; it must be None or 8")
        if self.bits is not None and self.whole:
            raise OptionError("bits=8 stores segments that are over; with segments=1 there is one, which never is")
        self._check_places()

    def _check_places(self) -> None:
        names = _named(self.place)
        if not names or any(name not in PLACES for name in names):
            raise OptionError(
                f"place is {self.place!r}; it must be one of {', '.join(PLACES)}, or several with budgets"
            )
        if names != sorted(names, key=PLACES.index):
            raise OptionError(f"place is {self.place!r}; places come in the order {', '.join(PLACES)}")
        for name, budget in self.places.items():
            _check_count(f"the budget of {name}", budget)
            if budget is None and name != names[-1]:
                raise OptionError(f"place is {self.place!r}; only the last place can go without a budget")
        if ("disk" in names) != (self.folder is not None):
            raise OptionError('a folder goes with place="disk", and the other way round')
        if self.options.ranks is not None and (self.folder is not None or self.places[names[0]] is not None):
            raise OptionError(
                "a memory over ranks is on their devices or on their hosts: leave out folder and budgets, and bound it "
                "by limit"
            )

    @property
    def places(self) -> Mapping[str, int | None]:
        """Each place, with its budget in bytes or None."""
        return {self.place: None} if isinstance(self.place, str) else self.place

    @property
    def whole(self) -> bool:
        """The whole video is one segment."""
        return self.options.segments in (1, "equal:1")

    def question(self, **given: Any) -> QuestionOptions:
        """How one question chooses: as these options say, but for those that were given for it.

        Raises:
            OptionError: one of them is out of range.
        """
        own = self.with_options({name: value for name, value in given.items() if value is not None})
        known = own.options
        layer = None if own.each_layer else known.layer
        return QuestionOptions(known.keep, known.balance, known.scorer, layer)

    def with_options(self, given: Mapping[str, Any]) -> MemoryOptions:
        """These, with other values of some of :data:`READ`."""
        options, each = parse({**self.options.as_dict(), **({"layer": EACH} if self.each_layer else {}), **given})
        return replace(self, options=options, each_layer=each)


def parse(given: Mapping[str, Any]) -> tuple[Options, bool]:
    """Options of SegMo, and whether ``layer="each"`` is among them.

    A segment is watched whole, so ``tails`` is 1 unless it is given: its last frame tells what it showed. Of a cut one
    the last kept frame may be a single token, so :class:`segmo.options.Options` takes two.

    Raises:
        OptionError: an unknown one, or a value out of range.
    """
    each = given.get("layer") == EACH
    return Options.parse(
        {"tails": 1} | {name: value for name, value in given.items() if not (each and name == "layer")}
    ), each


def _named(place: object) -> list[str]:
    """Names of the places; none where it is no place."""
    return [place] if isinstance(place, str) else list(place) if isinstance(place, Mapping) else []


def _check_share(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise OptionError(f"{name} is {value!r}; it must be a number with 0 < {name} <= 1")


def _check_count(name: str, value: object) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise OptionError(f"{name} is {value!r}; it must be None or a whole number >= 1")
