"""Many questions from a file of JSON lines. Answers are written as they come; a run that was broken off goes on.

A line of the input is ``{"video": FILE, "question": TEXT}``; other fields are handed on. Relative paths count from the
folder of the file. A line of the output has the same fields, and either "answer" or "error".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmo.ask.ask import Answer, Asker
from segmo.ask.context import Request
from segmo.errors import OptionError, SegMoError
from segmo.video.given import beside


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        number: counted from 1.
        fields: what it holds; empty if it is not understood.
        error: why it is not understood, or "".
    """

    number: int
    fields: Mapping[str, Any]
    error: str = ""


def read_lines(path: Path) -> list[Line]:
    """All lines that are not blank.

    Raises:
        OptionError: there is no such file, or it is not text.
    """
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as a file of JSON lines: {error}") from error
    return [_parse(number, text) for number, text in enumerate(texts, start=1) if text.strip()]


def _parse(number: int, text: str) -> Line:
    try:
        fields = json.loads(text)
    except ValueError as error:
        return Line(number, {}, f"line {number} is not JSON: {error}")
    if not isinstance(fields, dict):
        return Line(number, {}, f"line {number} is not an object with a video and a question")
    for name in ("video", "question"):
        if not isinstance(fields.get(name), str):
            return Line(number, fields, f"line {number} has no {name!r}, or it is no text")
    return Line(number, fields)


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run; a last line that was not written to its end is left out."""
    if not path.exists():
        return []
    found = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:
            continue
    return found


def run_batch(
    asker: Asker,
    source: Path,
    out: Path,
    settings: Mapping[str, Any],
    told: Callable[[dict[str, Any]], None] = lambda record: None,
) -> Iterator[dict[str, Any]]:
    """Answers every line that ``out`` has no answer for under the same settings; errors are tried again.

    Args:
        asker: answers.
        source: the input.
        out: the output; made if missing. Errors in it are tried again, answers under other settings stay.
        settings: what the answers depend on; stands in each line.
        told: called with each line that was answered earlier.

    Yields:
        The lines of this run as they come.

    Raises:
        OptionError: the input cannot be read.
    """
    lines = read_lines(source)
    done = {_same(record): record for record in read_answers(out) if "answer" in record}
    _write_anew(out, list(done.values()))
    for line in lines:
        if (record := done.get(_key(line, settings))) is not None:
            told(record)
    missing = [line for line in lines if _key(line, settings) not in done]
    requests = [
        Request(beside(source.parent, line.fields["video"]), line.fields["question"], f"line {line.number}")
        for line in missing
        if not line.error
    ]
    answers = asker.answers(requests)
    for line in missing:
        found: Answer | SegMoError = SegMoError(line.error) if line.error else next(answers)
        record = _record(line, found, settings)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        yield record


def _write_anew(out: Path, records: list[dict[str, Any]]) -> None:
    """The output without errors, which are tried again; answers under other settings stay."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(out.name + ".part")
    unfinished.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    unfinished.replace(out)


def _record(line: Line, found: Answer | SegMoError, settings: Mapping[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = {**line.fields, "line": line.number, "settings": dict(settings)}
    if isinstance(found, SegMoError):
        return record | {"error": str(found)}
    record |= {"answer": found.text, "tokens": found.tokens, "cached": list(found.cached), "seconds": found.seconds}
    if found.full is not None:
        record["full_attention"] = found.full.text
    return record


def _key(line: Line, settings: Mapping[str, Any]) -> str:
    return json.dumps([line.number, line.fields.get("video"), line.fields.get("question"), settings], sort_keys=True)


def _same(record: Mapping[str, Any]) -> str:
    parts = [record.get("line"), record.get("video"), record.get("question"), record.get("settings")]
    return json.dumps(parts, sort_keys=True)
