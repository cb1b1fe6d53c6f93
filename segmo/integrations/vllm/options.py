"""What a request, or the server, says about the selection: ``mm_processor_kwargs``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from segmo.errors import OptionError
from segmo.options import Options


@dataclass(frozen=True)
class ServeOptions:
    """Options of the selection, under the names that they have in ``mm_processor_kwargs``.

    Attributes:
        keep: fraction of each video's tokens that is kept, 0 < keep <= 1; what ``--video-pruning-rate`` leaves, if not
            given.
        balance: weight of relevance against dynamics in a scene's budget, 0 to 1.
        question_blind: the question is not read, so that all questions on a video share what is cached for it.
    """

    keep: float
    balance: float = 0.5
    question_blind: bool = False

    def __post_init__(self) -> None:
        Options(keep=self.keep, balance=self.balance)  # says what is wrong with them
        if not isinstance(self.question_blind, bool):
            raise OptionError(f"option 'question_blind' is {self.question_blind!r}; it must be True or False")


NAMES = tuple(field.name for field in fields(ServeOptions))


def parse(given: Mapping[str, object], rate: float | None) -> ServeOptions | None:
    """The options of a request, None where nothing is to be selected.

    Args:
        given: the server's and the request's ``mm_processor_kwargs``; other names are left alone.
        rate: ``--video-pruning-rate``, None or 0 for none.

    Raises:
        OptionError: a value is out of range, or there are options where pruning is off.
    """
    found: dict[str, Any] = {name: given[name] for name in NAMES if name in given}
    if not rate:
        if found:
            raise OptionError(
                f"{', '.join(found)} in mm_processor_kwargs, but video pruning is off; start the server with "
                "--video-pruning-rate, such as 0.75"
            )
        return None
    return ServeOptions(**{"keep": round(1 - rate, 9), **found})  # 1 - 0.9 is 0.1, not 0.09999999999999998
