"""Many questions from a file of JSON lines. Answers are written as they come; a run that was broken off goes on.

A line of the input is ``{"video": FILE, "question": TEXT}``; other fields are handed on, those that are named as one of
the output's own ("answer", say, in a set with the right ones) inside of "given". Relative paths count from the folder
of the file. A line of the output has these fields, and either "answer" or "error". It says what it is an
answer of: "video_sha256", and in "settings" the weights, the options and the versions. An answer is taken over by a
further run only where all of these and all fields are the same.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmo.ask.answer_file import AnswerFile, Record
from segmo.ask.ask import Answer, Asker
from segmo.ask.checkpoint import weights_hash
from segmo.ask.context import Request
from segmo.errors import OptionError, SegMoError
from segmo.video.given import beside

OWN = frozenset({"line", "model", "settings", "video_sha256", "error"})
OWN |= {"answer", "tokens", "cached", "seconds", "full_attention", "notes"}


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

    def request(self, folder: Path) -> Request:
        """The question, with a video that counts from a folder."""
        return Request(beside(folder, self.fields["video"]), self.fields["question"], f"line {self.number}")


def read_lines(path: Path) -> list[Line]:
    """All lines that are not blank. Only a line feed ends a line: JSON may hold all other separators inside of texts.

    Raises:
        OptionError: there is no such file, or it is not text.
    """
    try:
        texts = path.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as a file of JSON lines: {error}") from error
    return [_parse(number, text) for number, text in enumerate(texts, start=1) if text.strip()]


def _parse(number: int, text: str) -> Line:
    try:
        fields = json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        return Line(number, {}, f"line {number} is not JSON: {error}")
    if not isinstance(fields, dict):
        return Line(number, {}, f"line {number} is not an object with a video and a question")
    for name in ("video", "question"):
        if not isinstance(fields.get(name), str):
            return Line(number, fields, f"line {number} has no {name!r}, or it is no text")
    return Line(number, fields)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def handed_on(fields: Mapping[str, Any]) -> Record:
    """A line's fields as they stand in the output: those named as the output's own are under "given"."""
    own = {name: value for name, value in fields.items() if name in OWN or name == "given"}
    others = {name: value for name, value in fields.items() if name not in own}
    return {**others, "given": own} if own else others


def run_batch(
    asker: Asker,
    source: Path,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    told: Callable[[Record], None] = lambda record: None,
) -> Iterator[Record]:
    """Answers every line that ``out`` has no answer for that still holds; errors are tried again.

    Args:
        asker: answers.
        source: the input.
        out: the output; made if missing. Answers of other videos, weights, options or versions stay in it.
        settings: what the answers depend on beyond :func:`answered_by`; stands in each line.
        told: called with each line that was answered earlier.

    Yields:
        The lines of this run as they come.

    Raises:
        OptionError: the input cannot be read, or the output cannot be written.
    """
    lines = read_lines(source)
    settings = json.loads(json.dumps({**answered_by(asker), **(settings or {})}))
    file = AnswerFile(out)
    earlier = file.start()
    missing = []
    for line in lines:
        record = _taken_over(line, earlier, settings, source.parent)
        if record is None:
            missing.append(line)
        else:
            told(record)
    answers = asker.answers(line.request(source.parent) for line in missing if not line.error)
    for line in missing:
        found: Answer | SegMoError = SegMoError(line.error) if line.error else next(answers)
        record = _record(line, found, settings, str(asker.loaded.folder or "embedded"))
        file.add(record, unless=functools.partial(_holds, record))
        yield record


def answered_by(asker: Asker) -> dict[str, Any]:
    """All that decides an answer beside the video and the question, JSON-able."""
    import av
    import torch
    import transformers

    from segmo import __version__

    loaded, settings = asker.loaded, asker.settings
    choose, relevance = settings.choose, settings.relevance
    return {
        "weights": weights_hash(loaded.folder) if loaded.folder else None,
        "dtype": str(loaded.model.dtype),
        "device": loaded.model.device.type,
        "versions": {
            "segmo": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "av": av.__version__,
        },
        "options": settings.options.as_dict() | {"report": None},
        "fps": settings.fps,
        "max_frames": settings.max_frames,
        "frames": settings.frames,
        "relevance": weights_hash(relevance) if relevance else None,
        "choose": None if choose is None else getattr(choose, "key", repr(choose)),
        "scenes": asdict(settings.scenes),
        "new_tokens": settings.new_tokens,
        "compare": settings.compare,
    }


def _taken_over(line: Line, earlier: Sequence[Record], settings: Mapping[str, Any], folder: Path) -> Record | None:
    """The earlier answer to the same question about the same video, under the same settings."""
    wanted = _key({**handed_on(line.fields), "line": line.number, "settings": settings})
    there = [record for record in earlier if _key(record) == wanted and record.get("settings", {}).get("weights")]
    if line.error or not there:
        return None
    try:
        content = line.request(folder).digest
    except (SegMoError, OSError):
        return None  # it is asked again, which says what is wrong
    return next((record for record in there if record.get("video_sha256") == content), None)


def _holds(record: Record, there: Sequence[Record]) -> bool:
    """Whether a run at the same time has written the same line meanwhile."""
    if "answer" not in record:
        return False
    wanted = _key(record), record["video_sha256"]
    return any("answer" in each and (_key(each), each.get("video_sha256")) == wanted for each in there)


def _record(line: Line, found: Answer | SegMoError, settings: Mapping[str, Any], model: str) -> Record:
    record: Record = {**handed_on(line.fields), "line": line.number, "model": model, "settings": dict(settings)}
    if isinstance(found, SegMoError):
        return record | {"error": str(found)}
    record |= {"video_sha256": found.request.digest, "notes": list(found.facts.notes)}
    record |= {"answer": found.text, "tokens": found.tokens, "cached": list(found.cached), "seconds": found.seconds}
    if found.full is not None:
        record["full_attention"] = found.full.text
    return record


def _key(record: Mapping[str, Any]) -> str:
    """All of a line that the question and the settings decide."""
    fields = {name: value for name, value in record.items() if name not in OWN}
    return json.dumps([record.get("line"), fields, record.get("settings")], sort_keys=True)
