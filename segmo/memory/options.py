"""What a memory does with the options of :func:`segmo.compile`, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmo.errors import OptionError
from segmo.options import Options

PLACES = ("device", "host", "disk")
# Options that mean something for a memory; the others say how a graph is rewritten, and here none is.
READ = ("keep", "segments", "context", "tails", "scorer", "balance")


@dataclass(frozen=True)
class MemoryOptions:
    """How a video is watched, and how questions choose by default.

    Attributes:
        options: of SegMo; those named in :data:`READ`.
        watch_keep: fraction of each segment's video tokens that is remembered when it is over, the newest ones first.
        place: where keys, values and features are: "device" (the model's), "host" or "disk".
        folder: for "disk".
        limit: bytes of keys, values and features, at most; None for no limit. Old segments are thinned for it.
        longest: frames after which a segment ends without a cut; None for no limit.
    """

    options: Options
    watch_keep: float = 1.0
    place: str = "device"
    folder: Path | None = None
    limit: int | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        default = Options()
        for name, value in self.options.as_dict().items():
            if name not in READ and value != default.as_dict()[name]:
                raise OptionError(
                    f"option {name!r} has no meaning for a memory, which rewrites no graph; it takes {', '.join(READ)}"
                )
        if self.options.scorer == "attention":
            raise OptionError('a memory takes scorer="embedding" or scorer="external", not "attention"')
        if not 0 < self.watch_keep <= 1:
            raise OptionError(f"watch_keep is {self.watch_keep!r}; it must be a number with 0 < watch_keep <= 1")
        if self.place not in PLACES:
            raise OptionError(f"place is {self.place!r}; it must be one of {', '.join(PLACES)}")
        if (self.place == "disk") != (self.folder is not None):
            raise OptionError('a folder goes with place="disk", and the other way round')
        for name in ("limit", "longest"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OptionError(f"{name} is {value!r}; it must be None or a whole number >= 1")

    @property
    def whole(self) -> bool:
        """The whole video is one segment."""
        return self.options.segments in (1, "equal:1")

    def question(self, **given: Any) -> Options:
        """The options of one question: these, with those that were given for it.

        Raises:
            OptionError: one of them belongs to the watching, or is out of range.
        """
        return Options.parse(
            self.options.as_dict() | {name: value for name, value in given.items() if value is not None}
        )
