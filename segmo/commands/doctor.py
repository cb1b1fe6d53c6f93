"""``segmo doctor``: what this installation stands on, what is outside of what was tested, and what to do."""

from __future__ import annotations

import typer


def doctor() -> None:
    """Versions, device, kernels, decoders and caches on one screen; exits with 1 if SegMo does not work here."""
    from segmo.inspection.environment import as_text, broken, examine

    facts = examine()
    print(as_text(facts))
    if broken(facts):
        raise typer.Exit(1)
