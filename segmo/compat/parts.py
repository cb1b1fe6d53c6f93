"""The list of files that lean on the inside of torch or transformers, and their probes."""

from __future__ import annotations

import warnings
from importlib import import_module
from types import ModuleType

_NAMES = (
    "alike",
    "arguments",
    "attention_config",
    "cache_name",
    "capturing",
    "chunk_loops",
    "collector",
    "dynamo",
    "flags",
    "generation",
    "groups",
    "inductor",
    "joining",
    "layer_reading",
    "masks",
    "module_numbers",
    "operators",
    "placeholder_check",
    "regions",
    "sharding",
    "stamping",
    "stored_tensors",
    "symbolic_messages",
    "telling",
)
# Each says what it leans on (WHAT), for which releases it was written (VERSIONS), and whether it still fits (fits():
# None, or what is different).
PARTS: tuple[ModuleType, ...] = tuple(import_module(f"segmo.compat.{name}") for name in _NAMES)


def misfits() -> dict[str, str]:
    """What no longer fits, by what it leans on."""
    found = {part.WHAT: part.fits() for part in PARTS}
    return {what: why for what, why in found.items() if why is not None}


def warn_of_misfits() -> None:
    """Says once what no longer fits: with it SegMo may compile more often, or refuse a model."""
    found = misfits()
    if found:
        said = "; ".join(f"{what}: {why}" for what, why in found.items())
        warnings.warn(
            f"SegMo leans on parts of torch and transformers that are others here ({said}). Please report it with the "
            "output of `segmo doctor`",
            stacklevel=2,
        )
