"""Hypothesis strategies shared by the tests: prompts, segment layouts and attention inputs.

Legend: B batch, A query heads, G key/value heads, N prompt tokens, K kept tokens, D head size, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

PAD, SINK, QUERY, TURN = "pad", "sink", "query", "turn"
Role = int | str  # a segment's number, or one of the four words

TEXT, IMAGE, VIDEO = 0, 1, 2  # as in transformers' mm_token_type_ids


# Prompts before selection
# ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A part of a prompt: ``text`` tokens, an image, or a video of ``frames`` frames of ``height`` x
    ``width`` tokens.

    ``text`` counts the tokens of a text piece, and of each timestamp before a frame of a video (0: no
    timestamps).
    ``trailing`` counts video tokens after the last frame.
    """

    kind: int
    text: int = 0
    frames: int = 1
    height: int = 1
    width: int = 1
    trailing: int = 0

    @property
    def tokens(self) -> list[tuple[int, int, int]]:
        """(kind, frame within the piece or -1, cell or -1) of every token."""
        if self.kind == TEXT:
            return [(TEXT, -1, -1)] * self.text
        cells = self.height * self.width
        if self.kind == IMAGE:
            return [(IMAGE, -1, -1)] * cells
        out = []
        for frame in range(self.frames):
            out += [(TEXT, -1, -1)] * self.text
            last = cells + (self.trailing if frame == self.frames - 1 else 0)
            out += [(VIDEO, frame, cell) for cell in range(last)]
        return out


@dataclass(frozen=True)
class Prompt:
    """One row: pieces, and what they must be read as. ``padding`` tokens stand on the left."""

    pieces: tuple[Piece, ...]
    padding: int = 0

    @property
    def kinds(self) -> list[int]:
        """Token types without padding."""
        return [kind for piece in self.pieces for kind, _, _ in piece.tokens]

    @property
    def expected(self) -> tuple[list[int], list[int], list[int]]:
        """Frame (-1 sink, -2 query, -3 text between videos), cell and number of the video of every token, with padding.

        The third list is -1 at text.
        """
        flat: list[tuple[int, int, int]] = [(-1, -1, -1)] * self.padding  # (frame of the row, cell, video)
        frames = videos = 0
        for piece in self.pieces:
            for kind, frame, cell in piece.tokens:
                flat.append((frames + frame, cell, videos) if kind == VIDEO else (-1, -1, -1))
            if piece.kind == VIDEO:
                frames, videos = frames + piece.frames, videos + 1
        at_video = [position for position, token in enumerate(flat) if token[1] >= 0]
        frame_N = []
        for position, (frame, cell, _) in enumerate(flat):
            if cell >= 0:
                frame_N.append(frame)
            elif not at_video or position > at_video[-1]:
                frame_N.append(-2)
            elif position < at_video[0]:
                frame_N.append(-1)
            else:
                before = flat[max(p for p in at_video if p < position)]
                behind = flat[min(p for p in at_video if p > position)]
                frame_N.append(behind[0] if behind[2] == before[2] else -3)
        return frame_N, [cell for _, cell, _ in flat], [video for _, _, video in flat]

    @property
    def marks(self) -> Tensor:
        """True at all text between two videos, as at the marks of a chat's turns, (1, N) bool."""
        return torch.tensor([self.expected[0]]) == -3

    @property
    def told_apart(self) -> bool:
        """Whether all videos can be told apart without marks: runs of one frame each and of one size cannot."""
        alone = [
            (piece.frames == 1 or piece.text > 0, piece.height * piece.width)
            for piece in self.pieces
            if piece.kind == VIDEO
        ]
        return not any(a == b and a[0] for a, b in pairwise(alone))

    def grids(self, kind: int, merge: int) -> Tensor | None:
        """``image_grid_thw`` or ``video_grid_thw`` of the row's pieces, or None without any."""
        sizes = [
            (piece.frames, piece.height * merge, piece.width * merge) for piece in self.pieces if piece.kind == kind
        ]
        return torch.tensor(sizes) if sizes else None


@st.composite
def prompts(draw: st.DrawFn, *, timestamps: bool = False, images: bool = True, max_videos: int = 3) -> Prompt:
    """Prompts with videos, text around them (the question may be missing), images and left padding."""
    pieces = [Piece(TEXT, text=draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(1, max_videos))):
        if images and draw(st.booleans()):
            pieces += [
                Piece(IMAGE, height=draw(st.integers(1, 3)), width=draw(st.integers(1, 3))),
                Piece(TEXT, text=1),
            ]
        pieces.append(
            Piece(
                VIDEO,
                frames=draw(st.integers(1, 4)),
                height=draw(st.integers(1, 3)),
                width=draw(st.integers(1, 4)),
                text=draw(st.integers(1, 3)) if timestamps else 0,
            )
        )
        pieces.append(Piece(TEXT, text=draw(st.integers(1, 4))))
    if draw(st.booleans()):
        pieces.pop()  # no question
    return Prompt(tuple(pieces), padding=draw(st.integers(0, 3)))


# Segment layouts after selection
# --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """One row: the role of each token, and whether it is a context token."""

    roles: tuple[Role, ...]
    context: tuple[bool, ...]

    def padded(self, length: int) -> Layout:
        """The row with padding on the left up to ``length`` tokens."""
        missing = length - len(self.roles)
        return Layout((PAD,) * missing + self.roles, (False,) * missing + self.context)

    def visible(self) -> Tensor:
        """The contract's rule, token by token, (K, K) bool."""
        length = len(self.roles)
        out = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            for j in range(length):
                role_i, role_j = self.roles[i], self.roles[j]
                seen = (
                    role_j in (SINK, TURN)
                    or role_i in (QUERY, TURN)
                    or (isinstance(role_i, int) and role_i == role_j)
                    or self.context[j]
                )
                out[i, j] = j <= i and PAD not in (role_i, role_j) and seen
        return out


@st.composite
def layouts(draw: st.DrawFn, *, max_segments: int = 5, max_size: int = 9, context: bool | None = None) -> Layout:
    """Rows with sinks, segments, text between videos and a question, any of which may be missing, and right padding."""
    sinks, query = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    sizes = draw(st.lists(st.integers(1, max_size), max_size=max_segments))
    roles: list[Role] = [SINK] * sinks
    video = [segment for segment, size in enumerate(sizes) for _ in range(size)]
    turns = draw(st.dictionaries(st.integers(1, max(len(video) - 1, 1)), st.integers(1, 3), max_size=2))
    for place, segment in enumerate(video):  # between two segments or inside one, which may reach over two videos
        roles += [TURN] * turns.get(place, 0) if place else []
        roles.append(segment)
    roles += [QUERY] * query
    if not roles:
        roles = [QUERY]
    flags = st.just(context) if context is not None else st.integers(0, 4).map(lambda n: n == 0)
    is_context = [draw(flags) for _ in roles]
    right = draw(st.integers(0, 2))
    return Layout((*roles, *[PAD] * right), (*is_context, *[False] * right))


def batch_tensors(rows: list[Layout]) -> tuple[Tensor, Tensor, Tensor]:
    """Segment ids, context flags and validity of rows of one length, as the runtime takes them, (B, K)."""
    segments = []
    for row in rows:
        first = next(i for i, role in enumerate(row.roles) if role != PAD)
        number = {SINK: -1, QUERY: -2, TURN: -3}
        segments.append(
            [
                (-1 if i < first and row.roles[first] != QUERY else -2) if role == PAD else number.get(role, role)
                for i, role in enumerate(row.roles)
            ]
        )
    return (
        torch.tensor(segments),
        torch.tensor([row.context for row in rows]),
        torch.tensor([[role != PAD for role in row.roles] for row in rows]),
    )


@st.composite
def batches(draw: st.DrawFn, *, max_rows: int = 3, **options: Any) -> list[Layout]:
    """Rows brought to one length by padding on the left."""
    rows = draw(st.lists(layouts(**options), min_size=1, max_size=max_rows))
    length = max(len(row.roles) for row in rows)
    return [row.padded(length) for row in rows]


# Attention inputs
# -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heads:
    """Attention inputs: ``groups`` key/value heads of ``size``, each shared by ``ratio`` query heads."""

    groups: int
    ratio: int
    size: int
    dtype: torch.dtype
    seed: int

    def tensors(self, batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, A, K, D), k and v (B, G, K, D), laid out as a model's projections lay them out."""
        generator = torch.Generator().manual_seed(self.seed)

        def make(heads: int) -> Tensor:
            shape = (batch, length, heads, self.size)
            return torch.randn(shape, generator=generator).to(self.dtype).transpose(1, 2)

        return make(self.groups * self.ratio), make(self.groups), make(self.groups)


def heads(dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)) -> st.SearchStrategy[Heads]:
    """Grouped-query ratios and head sizes that Video LLMs have, and small ones."""
    return st.builds(
        Heads,
        groups=st.sampled_from([1, 2, 4]),
        ratio=st.sampled_from([1, 2, 7]),
        size=st.sampled_from([8, 16, 64, 80, 128]),
        dtype=st.sampled_from(dtypes),
        seed=st.integers(0, 2**16),
    )
