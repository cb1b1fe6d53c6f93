"""What several commands take: a model's size, a dtype, a list of numbers, a synthetic video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from segmo.errors import OptionError

if TYPE_CHECKING:
    from segmo.runtime.cost.shape import ModelShape

PICTURES = (".png", ".svg", ".pdf")
MANY = 100_000  # numbers in a list


def model_shape(model: str, value_bytes: int = 2) -> ModelShape:
    """Size of a preset, or of the model in a folder.

    Raises:
        OptionError: neither a preset nor a folder with a config that can be read.
    """
    import dataclasses

    from segmo.runtime.cost.shape import PRESETS, shape_of

    if model in PRESETS:
        return dataclasses.replace(PRESETS[model], value_bytes=value_bytes)
    if not (Path(model) / "config.json").exists():
        raise OptionError(f"{model!r} is neither a folder with a config.json nor one of {', '.join(PRESETS)}")
    from segmo.inspection.models import read_config

    return shape_of(read_config(Path(model)), value_bytes)


def numbers(text: str, what: str, least: int = 0, most: int = 10**12) -> list[int]:
    """Whole numbers from ``"1200,300,5000"`` or ``"300*8"`` (eight times 300), which may be mixed.

    Raises:
        OptionError: something else, a number out of range, or too many of them.
    """
    values: list[int] = []
    for part in text.split(","):
        size, _, times = part.strip().partition("*")
        if not size.isdecimal() or not (times.isdecimal() or times == ""):
            raise OptionError(f"{what}: {part!r} is not a whole number or number*times (in {text!r})")
        if not least <= int(size) <= most:
            raise OptionError(f"{what}: {size} is out of range (in {text!r}); it must be from {least:,} to {most:,}")
        if len(values) + int(times or 1) > MANY:
            raise OptionError(f"{what}: {text!r} are more than {MANY:,} numbers")
        values += [int(size)] * int(times or 1)
    return values
