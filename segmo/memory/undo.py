"""What changes step by step, changed as a whole or not at all."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def all_or_nothing(*objects: Any) -> Iterator[None]:
    """Inside the block, these objects may be changed; if it is broken off, each is as it was.

    Args:
        objects: their attributes are put back, lists and queues with what they held. What is changed in place otherwise
            must be among the objects itself.
    """
    saved = [{name: _held(value) for name, value in vars(each).items()} for each in objects]
    try:
        yield
    except BaseException:
        for each, attributes in zip(objects, saved, strict=True):
            vars(each).clear()
            vars(each).update(attributes)
        raise


def _held(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, (list, deque)) else value
