"""Loops in disassembled GPU code: what an iteration costs beside its matrix instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_LABEL = re.compile(r"^\s*(\.L\w+):")
_SASS = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(.*?)\s*;")
_GCN = re.compile(r"^\t([a-z][a-z0-9_]+)(?:\s+(.*))?$")
_BRANCH = re.compile(r"\b(?:BRA|s_c?branch\w*)\b.*?(\.L\w+)")

# Matrix instructions as the assembler spells them, and what the field calls them.
MATRIX = {
    "HMMA": "mma.sync",
    "HGMMA": "wgmma",
    "UTCHMMA": "tcgen05",
    "UTCQMMA": "tcgen05",
    "v_mfma": "mfma",
}
ASYNC_COPY = ("LDGSTS", "UTMALDG", "global_load_lds", "buffer_load_dword_lds")
SPILL = ("STL", "LDL", "scratch_store", "scratch_load")


@dataclass(frozen=True)
class Loop:
    """One loop.

    Attributes:
        instructions: of an iteration.
        matrix: matrix instructions of an iteration.
    """

    instructions: int
    matrix: int

    @property
    def ratio(self) -> float:
        """Instructions per matrix instruction, that one included."""
        return self.instructions / self.matrix


def opcode(instruction: str) -> str:
    """Operation without its predicate: ``HMMA.16816.F32.BF16``."""
    words = instruction.split()
    if words and words[0].startswith("@"):
        words = words[1:]
    return words[0] if words else ""


def instructions(text: str) -> list[str]:
    """Instructions and labels (as ``.L...``) of nvdisasm's or LLVM's output, in order."""
    lines = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            lines.append(label[1])
        elif sass := _SASS.match(line):
            lines.append(sass[1])
        elif gcn := _GCN.match(line):
            lines.append(" ".join(part for part in gcn.groups() if part))
    return lines


def matrix_kind(instruction: str) -> str | None:
    """``"mma.sync"``, ``"wgmma"``, ``"tcgen05"``, ``"mfma"``, or None."""
    operation = opcode(instruction)
    for prefix, kind in MATRIX.items():
        if operation.startswith(prefix):
            return kind
    return None


def count(lines: list[str], prefixes: tuple[str, ...]) -> int:
    """Instructions whose operation starts with one of the prefixes."""
    return sum(opcode(line).startswith(prefixes) for line in lines)


def _spans(lines: list[str]) -> Iterator[tuple[int, int]]:
    """(label, branch) of each backward branch."""
    label_at = {line: index for index, line in enumerate(lines) if line.startswith(".L")}
    for index, line in enumerate(lines):
        branch = _BRANCH.search(line)
        if branch and label_at.get(branch[1], index) < index:
            yield label_at[branch[1]], index


def matrix_loops(text: str) -> list[Loop]:
    """Innermost loops that hold matrix instructions, in program order."""
    lines = instructions(text)
    spans = [span for span in _spans(lines) if any(matrix_kind(line) for line in lines[span[0] : span[1] + 1])]
    inner = [
        span
        for span in spans
        if not any(other != span and span[0] <= other[0] and other[1] <= span[1] for other in spans)
    ]
    found = []
    for start, end in sorted(inner):
        body = [line for line in lines[start : end + 1] if not line.startswith(".L")]
        found.append(Loop(len(body), sum(matrix_kind(line) is not None for line in body)))
    return found
