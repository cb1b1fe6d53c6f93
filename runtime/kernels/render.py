"""From a spec to source, and from source to a loaded module whose file is named after its content."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Protocol

import jinja2

from segmo.compat.inductor import load_source

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters["lines"] = lambda text: text.removesuffix("\n")  # a macro's lines, where the caller ends the last


class Spec(Protocol):
    """What :func:`render` needs: a frozen, hashable spec that names its template."""

    template: ClassVar[str]

    def __hash__(self) -> int: ...


@dataclass(frozen=True)
class Kernel:
    """Source of one generated kernel.

    Attributes:
        name: of the template.
        source: the text, a whole Python module.
        hash: 16 hex digits of the text's SHA-256. Two kernels with the same hash are the same text; handed to
            an op as an argument, it makes a compiled graph's cache key follow the kernel.
    """

    name: str
    source: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]

    def load(self) -> ModuleType:
        """The source as a module. Its file is content-addressed, in inductor's cache folder."""
        return load_source(self.source)


@functools.lru_cache(maxsize=256)
def render(spec: Spec) -> Kernel:
    """The kernel of a spec. The same spec always gives the same text."""
    template = _ENVIRONMENT.get_template(f"{spec.template}.py.jinja")
    return Kernel(spec.template, template.render(spec=spec))
