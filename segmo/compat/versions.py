"""Which versions of torch and transformers SegMo is for, and what happens outside of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from segmo.errors import VersionError


@dataclass(frozen=True)
class Range:
    """Minor versions of one package that the tests were run with, both ends included.

    Attributes:
        package: name of the distribution.
        oldest, newest: "major.minor".
        why: what goes wrong below.
    """

    package: str
    oldest: str
    newest: str
    why: str

    def place(self, found: str) -> int:
        """-1, 0 or 1: below, inside or above. Only major and minor count, so builds of a vendor are inside too."""
        minor = Version(found).release[:2]
        return (minor > Version(self.newest).release) - (minor < Version(self.oldest).release)

    def __str__(self) -> str:
        return f"{self.package} {self.oldest} to {self.newest}"


RANGES = (
    Range("torch", "2.11", "2.15", "Dynamo and the attention operators are others there"),
    Range(
        "transformers",
        "5.18",
        "5.24",
        "a model's forward takes no mm_encoder_outputs there, and would drop the video without a word",
    ),
)


def installed(package: str) -> str | None:
    """The version of a distribution, without importing it; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_versions() -> None:
    """Refuses what is too old, and warns once, naming all of it, of what is newer than anything tried.

    A package that is not installed passes: whoever needs it meets its own ImportError.

    Raises:
        VersionError: torch or transformers is older than SegMo works with.
    """
    found = [(bounds, installed(bounds.package)) for bounds in RANGES]
    for bounds, this in found:
        if this is not None and bounds.place(this) < 0:
            raise VersionError(
                f"SegMo is for {bounds}, and {bounds.package} {this} is installed: {bounds.why}. "
                f'Install "{bounds.package}>={bounds.oldest}", in an environment of its own if this one needs the older'
            )
    newer = [
        f"{b.package} {this} (tested: {b.oldest} to {b.newest})" for b, this in found if this and b.place(this) > 0
    ]
    if newer:
        warnings.warn(
            f"SegMo was not tested with {' and '.join(newer)}. It will probably work; if something is wrong, please "
            "report it with the output of `segmo doctor`",
            stacklevel=2,
        )
