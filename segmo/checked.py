"""Values that users hand in: whole numbers, numbers, devices and folders, checked before anything is done with them."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

from segmo.errors import OptionError, PromptError

if TYPE_CHECKING:
    import torch

DTYPES = ("bfloat16", "float16", "float32")


def is_whole(value: object) -> bool:
    """A whole number of any kind; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite real number of any kind; True and False are none."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def check_count(name: str, value: object, least: int = 1, most: float = math.inf) -> None:
    """Whether there can be so many of something.

    Raises:
        OptionError: it is no whole number, or there are fewer than ``least`` or more than ``most``.
    """
    if not is_whole(value) or value < least:  # type: ignore[operator]  # a whole number is compared
        raise OptionError(f"{name} is {value!r}; it must be a whole number >= {least}")
    if value > most:  # type: ignore[operator]  # as above
        raise OptionError(f"{name} is {value!r}; it must be at most {most:,}")


def hint(name: str, known: Iterable[str]) -> str:
    """How the first sentence about an unknown name ends: with the known one that is nearest to it, if any is near."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def device_named(name: str) -> torch.device:
    """The device of this name, of this machine.

    Raises:
        OptionError: there is no such device here.
    """
    import torch

    advice = 'take "cpu", or "cuda" where there is a GPU'
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.uint8, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise OptionError(f"there is no device {name!r} here ({why}); {advice}") from error
    if device.type == "meta":
        raise OptionError(f'nothing can be computed on the device "meta"; {advice}')
    return device


def dtype_named(name: str) -> torch.dtype:
    """A floating dtype by its name.

    Raises:
        OptionError: there is none of that name.
    """
    import torch

    if name not in DTYPES:
        raise OptionError(f"unknown dtype {name!r}; it must be one of {', '.join(DTYPES)}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def made_folder(path: Path) -> Path:
    """The folder, which is there afterwards and can be written into.

    Raises:
        OptionError: there is something else of this name, it cannot be made, or not be written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OptionError(f"{path} cannot be made a folder: {error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise OptionError(f"nothing can be written into the folder {path}: permission denied")
    return path


def file_in(path: Path, suffixes: Sequence[str] = ()) -> Path:
    """The place of a file that is to be written, in a folder that is there afterwards.

    Args:
        path: a file, which may be there.
        suffixes: one of which it must have; any will do when empty.

    Raises:
        OptionError: it is a folder, has another suffix, or its folder cannot be made.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise OptionError(f"{path} is written as {', '.join(suffixes)}; give it a name that ends so")
    if path.is_dir():
        raise OptionError(f"{path} is a folder; give the name of a file")
    made_folder(path.parent)
    return path


def check_utf8(what: str, text: str) -> None:
    """Whether a tokenizer can read it.

    Raises:
        PromptError: it holds bytes that are no UTF-8, which Python hands on as lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds something that is no UTF-8 text (character {error.start + 1} of {len(text)})"
        ) from error
