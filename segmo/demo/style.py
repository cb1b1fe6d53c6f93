"""Colours of the picture, and how times are written, in the picture and in the tables."""

from __future__ import annotations

# From Okabe and Ito's palette, which readers with any colour vision can tell apart.
KEPT, OUTLINE, CUT = "#0072B2", "#E69F00", "#D55E00"
DROPPED, INK, FAINT = "#D9DDE1", "#22272B", "#6B747B"


def clock(seconds: float) -> str:
    """Minutes and seconds, such as 2:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
