"""Which stage of which request ran when: recorded by any thread, shown as text and as plain data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

WIDTH = 40  # characters of the drawn time line


@dataclass(frozen=True)
class Event:
    """One stage of one request.

    Attributes:
        request: which request, as it is called in the drawing.
        stage: such as "decode" or "prefill".
        start, end: seconds from the beginning of the time line.
        busy: seconds in between in which it worked; less than ``end - start`` for a stage that waits for another.
    """

    request: str
    stage: str
    start: float
    end: float
    busy: float


class Timeline:
    """A record of stages. Threads may add to it at the same time."""

    def __init__(self) -> None:
        self._origin = time.perf_counter()
        self.events: list[Event] = []

    def now(self) -> float:
        """Seconds since the time line began."""
        return time.perf_counter() - self._origin

    def add(self, stage: str, start: float, end: float, request: str = "", busy: float | None = None) -> None:
        """Records a stage that ran from ``start`` to ``end``, both as :meth:`now` gives them."""
        self.events.append(Event(request, stage, start, end, end - start if busy is None else busy))

    @contextmanager
    def measure(self, stage: str, request: str = "") -> Iterator[None]:
        """Records what runs inside, also when it raises."""
        start = self.now()
        try:
            yield
        finally:
            self.add(stage, start, self.now(), request)

    def seconds(self, request: str | None = None) -> dict[str, float]:
        """Busy seconds by stage, in the order in which stages began; of one request or of all."""
        found: dict[str, float] = {}
        for event in sorted(self.events, key=lambda event: event.start):
            if request is None or event.request == request:
                found[event.stage] = found.get(event.stage, 0.0) + event.busy
        return found

    def to_dict(self) -> list[dict[str, Any]]:
        """Events by their start, JSON-able."""
        return [asdict(event) for event in sorted(self.events, key=lambda event: event.start)]

    def __str__(self) -> str:
        """One line per stage and request, with a bar where it ran."""
        if not self.events:
            return "nothing was recorded"
        events = sorted(self.events, key=lambda event: event.start)
        first, last = events[0].start, max(event.end for event in events)
        scale = WIDTH / max(last - first, 1e-9)
        names = [" ".join(filter(None, (event.request, event.stage))) for event in events]
        widest = max(map(len, names))
        lines = []
        for name, event in zip(names, events, strict=True):
            begin = min(WIDTH - 1, int((event.start - first) * scale))
            length = max(1, round((event.end - event.start) * scale))
            bar = (" " * begin + "#" * length)[:WIDTH]
            lines.append(f"{name:<{widest}} |{bar:<{WIDTH}}| {event.busy:8.3f} s")
        return "\n".join(lines)
