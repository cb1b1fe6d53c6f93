"""A figure as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segmo.checked import file_in
from segmo.errors import OptionError


def save_figure(figure: Any, file: Path) -> Path:
    """Writes a figure; gives the file back.

    Raises:
        OptionError: it cannot be written there.
    """
    try:
        figure.savefig(file_in(file), dpi=150)
    except (OSError, ValueError) as error:  # the latter for a format that matplotlib does not know
        raise OptionError(f"{file} cannot be written as a picture: {error}") from error
    return file
