"""The page of reasons: every reason of the code is on it, under the right heading, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from segmo.passes.reasons import EXPECTED, REASONS

PAGE = Path(__file__).parent.parent / "docs" / "reasons.md"
ROOT = PAGE.parent.parent


def test_the_page_lists_every_reason_and_no_other() -> None:
    normal, lost = PAGE.read_text().split("## Something was lost")
    for part, expected in ((normal, True), (lost, False)):
        rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", part, re.MULTILINE))
        reasons = {code: reason for code, reason in REASONS.items() if (code in EXPECTED) == expected}
        assert rows == {code: f"{r.text.format(detail='...')} | {r.remedy}" for code, r in reasons.items()}


def test_every_reason_is_used_and_every_used_one_exists() -> None:
    sources = [
        path.read_text() for part in ("passes", "segmo/calls", "segmo/upstream") for path in (ROOT / part).rglob("*.py")
    ]
    used = {code for text in sources for code in re.findall(r'Miss\.of\(\s*"([a-z-]+)"', text)}
    assert used == set(REASONS)
