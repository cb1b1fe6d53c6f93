"""Which tokens of a prompt are the question: the text of the last user turn, without what the chat template wrote.

Told from the token ids of the prompt and a few ids of the template (:class:`ChatTokens`), so that it can be done inside
a graph for any tokenizer. What is not known of a template makes the question larger, never empty: with none of it, all
text of the prompt is the question.

Legend: B batch, N prompt tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress, pairwise

import numpy as np
from torch import Tensor

from segmo.runtime.host import array, give, read
from segmo.runtime.layout import QUERY, tag_tokens
from segmo.runtime.runs import runs
from segmo.runtime.video_runs import places

Ids = tuple[int, ...]

REPLY = 8  # words that a template writes in front of a reply, at most, beside its control tokens
_FIELDS = ("special", "blank", "header", "end")


@dataclass(frozen=True)
class ChatTokens:
    """What is known of a chat template, as token ids.

    Attributes:
        special: control tokens and placeholders, never part of a question.
        blank: tokens of white space that the template writes around a turn's text.
        header: what begins a turn of the user, up to its text; empty when not known.
        ends: each of them ends a turn: a control token, or words such as "ASSISTANT:".
    """

    special: frozenset[int] = frozenset()
    blank: frozenset[int] = frozenset()
    header: Ids = ()
    ends: tuple[Ids, ...] = ()

    def to_text(self) -> str:
        """One line, which can be an argument of an operator; see :meth:`parse`."""
        ends = ";".join(f"end={_ranges(end, ordered=True)}" for end in self.ends)
        parts = [f"special={_ranges(self.special)}", f"blank={_ranges(self.blank)}"]
        return ";".join([*parts, f"header={_ranges(self.header, ordered=True)}", *([ends] if ends else [])])

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> ChatTokens:
        """What :meth:`to_text` wrote."""
        fields: dict[str, list[Ids]] = {name: [] for name in _FIELDS}
        for part in text.split(";") if text else ():
            name, _, numbers = part.partition("=")
            fields[name].append(_numbers(numbers))
        header = fields["header"][0] if fields["header"] else ()
        special, blank = (frozenset(id_ for ids in fields[name] for id_ in ids) for name in ("special", "blank"))
        return ChatTokens(special, blank, header, tuple(fields["end"]))

    @property
    def marks(self) -> frozenset[int]:
        """Control tokens at which a turn begins or ends."""
        around = [*self.header, *(id_ for end in self.ends for id_ in end)]
        return frozenset(around) & self.special


NO_CHAT = ChatTokens()


def _ranges(ids: Iterable[int], ordered: bool = False) -> str:
    """``1,5-9``: runs of neighbours as ranges, unless the order of the numbers counts."""
    if ordered:
        return ",".join(map(str, ids))
    return ",".join(str(a) if a + 1 == b else f"{a}-{b - 1}" for a, b in runs(sorted(ids)))


def _numbers(text: str) -> Ids:
    found: list[int] = []
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _places(ids: Sequence[int], wanted: Ids, start: int = 0) -> list[int]:
    """Where a sequence of ids stands."""
    size = len(wanted)
    if not size:
        return []
    found, at = list[int](), start
    for _ in range(ids[start:].count(wanted[0])):
        at = ids.index(wanted[0], at) + 1
        if tuple(ids[at - 1 : at - 1 + size]) == wanted:
            found.append(at - 1)
    return found


def _last_turn(ids: Sequence[int], text: Sequence[bool], chat: ChatTokens) -> tuple[int, int]:
    """Start and end of the last user turn's text; the whole prompt where no turn is marked."""
    if headers := _places(ids, chat.header):
        start = headers[-1] + len(chat.header)
        return start, min((at for end in chat.ends for at in _places(ids, end, start)[:1]), default=len(ids))
    ends = sorted((at, at + len(end)) for end in chat.ends for at in _places(ids, end))
    bounds = [(0, 0), *ends, (len(ids), len(ids))]
    turns = [(a[1], b[0]) for a, b in pairwise(bounds) if a[1] < b[0]]
    if len(turns) > 1 and _is_reply(ids, text, turns[-1], chat):
        start, end = turns[-2]
        return start + _header_length(ids[start:end], ids[slice(*turns[-1])], chat), end
    return turns[-1] if turns else (0, len(ids))


def _is_reply(ids: Sequence[int], text: Sequence[bool], turn: tuple[int, int], chat: ChatTokens) -> bool:
    """Whether the last turn is but what a template writes in front of a reply: a few words, and no video."""
    words = sum(ids[at] not in chat.special for at in range(*turn))
    return words <= REPLY and all(text[at] for at in range(*turn))


def _header_length(turn: Sequence[int], reply: Sequence[int], chat: ChatTokens) -> int:
    """Tokens at the start of a turn that name its speaker: from a control token to what ends the reply's header."""
    start = next((at + 1 for at, id_ in enumerate(turn[:3]) if id_ in chat.special), None)
    if start is None or reply[-1] in chat.special or not any(id_ in chat.special for id_ in reply):
        return 0
    line = list(turn[start : start + REPLY])
    return start + line.index(reply[-1]) + 1 if reply[-1] in line else 0


def find_question(ids: Sequence[int], text: Sequence[bool], chat: ChatTokens, default: bool = True) -> list[int]:
    """Positions of the question in one prompt, ascending.

    Args:
        ids: token ids, without padding.
        text: False at video tokens and at text that belongs to a frame.
        chat: what is known of the template.
        default: where the last turn of the user says nothing, all text is the question, so that there is one.
    """
    start, end = _last_turn(ids, text, chat)
    words = [at for at in compress(range(len(ids)), text) if ids[at] not in chat.special]
    inside = [at for at in words if start <= at < end]
    while inside and ids[inside[0]] in chat.blank:
        inside = inside[1:]
    while inside and ids[inside[-1]] in chat.blank:
        inside = inside[:-1]
    return inside if inside or not default else words or list(compress(range(len(ids)), text))


def question_tokens(
    ids_BN: Tensor | None, frame_BN: Tensor, cell_BN: Tensor, valid_BN: Tensor | None, chat: ChatTokens
) -> Tensor:
    """Whether a token belongs to the question, (B, N) bool.

    Args:
        ids_BN: token ids; None when the prompt came as embeddings. The question then is what follows the last video.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        valid_BN: False at padding.
        chat: what is known of the template.
    """
    ids, frame, cell, valid = read(ids_BN, frame_BN, cell_BN, valid_BN)
    text = cell < 0 if valid is None else (cell < 0) & valid
    if ids is None:
        behind = text & (frame == QUERY)
        return give(np.where(behind.any(1, keepdims=True), behind, text & (frame < 0)), frame_BN.device)
    found = np.zeros_like(text)
    for row in range(text.shape[0]):
        text_N = text[row] & ~tag_tokens(frame[row], cell[row])
        real_N = np.arange(len(text_N)) if valid is None else places(valid[row])
        asked = find_question(ids[row, real_N].tolist(), text_N[real_N].tolist(), chat)
        found[row, real_N[asked]] = True
    return give(found, frame_BN.device)


def turn_marks(ids_BN: Tensor, chat: ChatTokens) -> Tensor:
    """Whether a token is one at which a turn of the chat begins or ends, (B, N) bool."""
    return give(np.isin(array(ids_BN), sorted(chat.marks)), ids_BN.device)
