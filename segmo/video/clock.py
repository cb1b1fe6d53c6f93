"""Times that only go forward, from time stamps as a file has them.

A recording that was cut, joined or broken may start again at 0 in its middle, jump by hours, or hold a single stamp
that is far off. A frame fits when its stamp is later than the frame before, by no more than a player would wait
(:data:`JUMP`, :data:`HOLD`). Frames that do not fit lie between their neighbours if the clock goes on behind them with
room for them; otherwise a new clock starts there, right behind the last frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

JUMP = 10.0  # seconds that a stamp may jump in formats whose clock may break (MPEG); ffplay's own limit
HOLD = 3600.0  # the same in all others, where a frame may be shown for long
AHEAD = 50  # frames behind an odd one in which the clock may go on
_ROOM = 0.75  # of a usual step, that each frame between must have


@dataclass(frozen=True)
class Stamped:
    """A frame as the decoder gives it.

    Attributes:
        stamp: seconds by the file's clock; None where it has none.
        lasts: seconds that the file says it is shown; 0 where it says nothing.
    """

    stamp: float | None
    lasts: float = 0.0


def forward(frames: Sequence[Stamped], step: float, limit: float) -> tuple[list[float], int]:
    """Seconds from the first frame, strictly ascending, and how often something was mended.

    Args:
        frames: in the order in which they are shown.
        step: seconds from a frame to the next, usually.
        limit: seconds to the next frame, at most.
    """
    times: list[float] = []
    shift: float | None = None  # from the file's clock, once a stamp is known
    mended = 0
    while len(times) < len(frames):
        number = len(times)
        stamp = frames[number].stamp
        if not times:
            times.append(0.0)
            shift = None if stamp is None else -stamp
            continue
        if shift is not None and _fits(frames, number, shift, times[-1], step, limit):
            assert stamp is not None
            times.append(stamp + shift)
            continue
        mended += 1
        on = None if shift is None else _goes_on(frames, number, shift, times[-1], step, limit)
        if on is not None:
            place, time = on
            gap = (time - times[-1]) / (place - number + 1)
            times += [times[-1] + gap * (each + 1) for each in range(place - number)]
            continue
        lasts = frames[number - 1].lasts
        times.append(times[-1] + (lasts if 0 < lasts <= limit else step))
        if stamp is not None:
            shift = times[-1] - stamp
    return times, mended


def _fits(frames: Sequence[Stamped], number: int, shift: float, last: float, step: float, limit: float) -> bool:
    """Whether a frame's stamp is later than the last one, and none soon behind it is between the two."""
    stamp = frames[number].stamp
    if stamp is None or not last < stamp + shift <= last + limit:
        return False
    time = stamp + shift
    if time <= last + 1.5 * step:
        return True
    later = [frame.stamp + shift for frame in frames[number + 1 : number + 1 + AHEAD] if frame.stamp is not None]
    return not any(last < each <= time for each in later)


def _goes_on(
    frames: Sequence[Stamped], number: int, shift: float, last: float, step: float, limit: float
) -> tuple[int, float] | None:
    """The next frame that fits behind the last one, with room for those between, and its time."""
    for place in range(number + 1, min(len(frames), number + 1 + AHEAD)):
        stamp = frames[place].stamp
        if stamp is None:
            continue
        time = stamp + shift
        room = step * (place - number + 1)
        if time - last >= _ROOM * room and _fits(frames, place, shift, last, room, limit):
            return place, time
    return None
