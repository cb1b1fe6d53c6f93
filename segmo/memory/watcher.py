"""Watching: a video's tokens through the decoder, segment by segment, and what is remembered of them.

A token sees the text in front of the video, its own segment up to itself, and the context: the last frames of the
segments before, and the first frames of the most novel scenes before. All of that is known when the token comes, so
the memory is the same however its frames were handed in, and a segment costs the same whenever it comes.

Legend: T tokens, V video tokens, F frames, H hidden size, P keys of the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from segmo.errors import OptionError, PromptError
from segmo.families import Family
from segmo.memory.block import Block, columns, join, states_of
from segmo.memory.choose import scene_of
from segmo.memory.features import encode
from segmo.memory.known import video_token
from segmo.memory.options import MemoryOptions
from segmo.memory.places import Keeper
from segmo.memory.positions import Positions
from segmo.memory.prompt import Part
from segmo.memory.rows import Rows, run_rows
from segmo.memory.scenes import SceneDetector
from segmo.memory.thinning import thin_old, thinned
from segmo.runtime.features import scan_tokens
from segmo.runtime.layout import SINK, video_layout
from segmo.runtime.segments import context_tokens, partition_frames


class Watcher:
    """Takes parts of one video in order.

    Attributes:
        keeper: of the segments that are over.
        sinks: the text in front of the video.
        closed: segments that are over, as they are remembered.
        open: the segment that goes on, whole.
        tail: tokens that a family puts behind a video.
        borders: first frame of each segment.
        ends: where the tail of each segment that is over begins: its last frames of which something was remembered.
        starts: first frame of each scene, as :class:`SceneDetector` found it.
        similarity, freshness: of each frame to the one before, and how new its tokens are on average.
        seconds: when each frame is shown.
        each: seconds that a frame is shown.
        last: features of the last frame.
        grid: patches of a frame's height and width, [] where frames have none; None before the first one.
        tokens: that the prompt has up to now, without the tail.
        video: video tokens among them.
    """

    def __init__(self, model: Any, family: Family, options: MemoryOptions, intervals: dict[str, Any]) -> None:
        self.model, self.family, self.options = model, family, options
        self.keeper = Keeper(options, model.device)
        self.positions = Positions(model, bool(family.mrope), intervals)
        self.detector = SceneDetector(options.longest)
        self.closed: list[Block] = []
        self.open: list[Block] = []
        self.tail: Block | None = None
        self.borders: list[int] = []
        self.ends: list[int] = []
        self.starts: list[int] = []
        self.similarity: list[float] = []
        self.freshness: list[float] = []
        self.seconds: list[float] = []
        self.each = 0.0
        self.tokens = self.video = 0
        self.last: Tensor | None = None
        self.grid: list[int] | None = None
        self.sinks: Block
        self._past: Block | None = None

    def begin(self, ids: Tensor) -> None:
        """Reads the text in front of the video. A prompt that begins with the video has none."""
        flat = torch.full_like(ids, SINK)
        hidden = self.model.get_input_embeddings().weight
        rows = Rows(
            ids,
            flat,
            flat,
            torch.zeros(len(ids), dtype=torch.float32),
            self.positions.begin(len(ids)),
            hidden.new_empty(0, hidden.shape[1]),
            [],
        )
        self.tokens = len(ids)
        self.sinks = self._run(rows, None, 0)

    # a part of the video

    def add(self, part: Part) -> None:
        """Watches the next frames.

        Raises:
            OptionError: segments were counted for a video that was whole.
            PromptError: the frames are of another size.
        """
        grid = [] if part.grid is None else list(part.grid[1:])
        if self.grid not in (None, grid):
            raise PromptError(
                f"these frames have {grid} patches of height and width, those before them {self.grid}; "
                "a memory is of one video"
            )
        self.grid = grid
        mode = str(self.options.options.segments)
        counted = mode != "scene" and not self.options.whole
        if counted and self.borders:
            raise OptionError(
                f"segments={mode} cuts a whole video, so it cannot go on with further frames; watch it with "
                'segments="scene" or segments=1'
            )
        rows, similarity_F = self._rows(part)
        trailing = self.family.trailing
        length = len(rows.ids) - trailing
        body, first = rows.only(0, length), len(self.similarity)
        self._note(body, similarity_F, part.seconds)
        self.each = part.each
        starts = self.detector.starts((1 - similarity_F).tolist())
        self.starts += starts
        if counted:
            starts = self._counted(body.frame, mode)
        elif self.options.whole:
            starts = [0] if first == 0 else []
        for start, end in _pieces(body.frame, starts):
            if int(body.frame[start]) in starts:
                self._close()
                self.borders.append(int(body.frame[start]))
            piece = body.only(start, end)
            self.open.append(self._run(piece, self._visible(), self.tokens))
            self.tokens += end - start
        self.video += len(body.features)
        self.tail = self._run(rows.only(length, len(rows.ids)), self._visible(), self.tokens) if trailing else None

    def _rows(self, part: Part) -> tuple[Rows, Tensor]:
        """The tokens of a part, and how alike each frame is to the one before, (F,)."""
        video_T = part.ids == video_token(self.model)
        features, deepstack = encode(self.model, part.pixels, self.family.trailing)
        weight = self.model.get_input_embeddings().weight
        features = features.to(weight.device, weight.dtype)
        position = self.positions.add(video_T, part.grid)
        if not self.family.mrope:
            self.positions.next -= self.family.trailing
        cells = self.family.cells_per_frame(self.model.config) if self.family.cells_per_frame else 0
        mrope = position[:, None] if self.family.mrope else None
        frame, cell = (
            x[0] for x in video_layout(video_T[None], mrope, cells, self.family.trailing, frames=[part.frames])
        )
        places = video_T.nonzero()[:, 0]
        body = places[: len(places) - self.family.trailing]
        novelty = video_T.float()  # what stands behind the frames is new
        novelty[body], similarity_F = self._scan(features[: len(body)], frame[body], cell[body])
        frame = frame + len(self.similarity)
        return Rows(part.ids, frame, cell, novelty, position, features, deepstack), similarity_F

    def _scan(self, features: Tensor, frame_V: Tensor, cell_V: Tensor) -> tuple[Tensor, Tensor]:
        """Novelty of the video tokens, and similarity of the frames, with the frame before them in front."""
        last = features[:0] if self.last is None else self.last
        before, frames = int(len(last) > 0), int(frame_V[-1]) + 1
        self.last = features[frame_V == frames - 1]
        first = torch.zeros(frames + before, dtype=torch.bool)
        first[0] = True
        both = torch.cat([last, features])
        frame = torch.cat([torch.zeros(len(last), dtype=torch.long), frame_V + before])
        cell = torch.cat([torch.arange(len(last)), cell_V])
        at = torch.arange(len(both))
        where = both.device
        novelty, similarity = scan_tokens(both, at.to(where), frame.to(where), cell.to(where), first.to(where))
        return novelty[len(last) :].cpu(), similarity[before:].cpu()

    def _note(self, body: Rows, similarity_F: Tensor, seconds: Sequence[float]) -> None:
        video = body.cell >= 0
        local = body.frame[video] - len(self.similarity)
        total = torch.zeros(len(similarity_F), dtype=torch.float32).index_add_(0, local, body.novelty[video])
        self.freshness += (total / torch.bincount(local)).tolist()
        self.similarity += similarity_F.tolist()
        self.seconds += seconds

    def _counted(self, frame_T: Tensor, mode: str) -> list[int]:
        """First frame of each segment where segments are counted: scenes merged or split, or equal shares."""
        frames, tokens = torch.unique_consecutive(frame_T, return_counts=True)
        scenes = scene_of(frames, torch.tensor(self.starts))
        segments = partition_frames(scenes.tolist(), tokens.tolist(), mode)
        return [frame for frame, number in enumerate(segments) if frame == 0 or number != segments[frame - 1]]

    # what rows see

    def _run(self, rows: Rows, past: Sequence[Block] | None, at: int) -> Block:
        """Rows through the decoder."""
        video = rows.cell >= 0
        embed = self.model.get_input_embeddings()
        device = embed.weight.device
        embeds = embed(rows.ids.to(device)).detach()
        embeds[video.to(device)] = rows.features
        seen = None
        if past is not None and any(len(block) for block in past):
            seen = states_of(past, device)
        keys, values = run_rows(self.model, embeds, rows.position, seen, video, rows.deepstack)
        places = torch.arange(at, at + len(rows.ids))
        return Block(rows.ids, places, rows.frame, rows.cell, rows.novelty, rows.position, rows.features, keys, values)

    def _visible(self) -> list[Block]:
        """What rows of the open segment see."""
        if self._past is None:
            self._past = join([self.sinks, *self._context()])
        return [self._past, *self.open]

    def _context(self) -> list[Block]:
        """The context tokens among the segments that are over: what is left of their tails, and of novel scenes' heads.

        A tail stays what it was when its segment was over. If it were what is last of what is left, thinning would make
        all of an old segment its tail, and context as large as the memory.
        """
        if not self.closed:
            return []
        known = columns(self.closed)
        frame = known["frame"]
        scene = scene_of(frame, torch.tensor(self.starts))
        segment = scene_of(frame, torch.tensor(self.borders))
        novelty_S = torch.tensor(
            [self.freshness[start] for start in self.starts[: int(scene[-1]) + 1]], dtype=torch.float32
        )
        heads = context_tokens(
            frame[None], scene[None], segment[None], novelty_S[None], self.options.options.context, tails=0
        )[0]
        flags = heads | (frame >= torch.tensor(self.ends)[segment])
        found, start = [], 0
        for block in self.closed:
            index = flags[start : start + len(block)].nonzero()[:, 0]
            start += len(block)
            if len(index):
                found.append(self.keeper.whole(block.only(index)))
        return found

    # what is remembered

    def _close(self) -> None:
        """The open segment is over: its most novel tokens are remembered, and old segments make room."""
        if self.open:
            over = self.remembered(join(self.open))
            self.ends.append(_tail_of(over, self.options.options.tails))
            self.closed.append(self.keeper.take(over))
            self.open = []
        self._past = None
        size, limit = sum(block.all_bytes for block in self.closed), self.options.limit
        room = size - self.keeper.over(self.closed)
        room = room if limit is None else min(room, limit)
        if size > room:
            self.closed = thin_old(self.closed, self.keeper, self.starts, room)
        self.closed = self.keeper.arrange(self.closed)

    def remembered(self, block: Block) -> Block:
        """What is remembered of a segment: ``watch_keep`` of its video tokens, and its text."""
        share = self.options.watch_keep
        return block if share == 1 else thinned(block, self.starts, int(share * block.video))

    @property
    def behind(self) -> int:
        """Position of the first token behind the video."""
        return self.positions.next + self._tail

    @property
    def duration(self) -> float:
        """Seconds of video."""
        return self.seconds[-1] - self.seconds[0] + self.each

    @property
    def length(self) -> int:
        """Tokens of the prompt up to the end of the video."""
        return self.tokens + self._tail

    @property
    def video_tokens(self) -> int:
        """Those of them that are the video's."""
        return self.video + self._tail

    @property
    def _tail(self) -> int:
        return 0 if self.tail is None else len(self.tail)

    def held(self) -> list[Block]:
        """What a question may see, in order: sinks, segments, and the end of the video."""
        now = self.open if self.options.watch_keep == 1 or not self.open else [self.remembered(join(self.open))]
        return [self.sinks, *self.closed, *now, *([self.tail] if self.tail is not None else [])]


def _tail_of(block: Block, frames: int) -> int:
    """First of the last ``frames`` frames of which a block has a video token."""
    there = torch.unique(block.frame[block.cell >= 0])
    return int(there[-min(frames, len(there))]) if frames else int(there[-1]) + 1


def _pieces(frame_T: Tensor, starts: Sequence[int]) -> list[tuple[int, int]]:
    """Runs of tokens that belong to one segment each."""
    new = torch.isin(frame_T, torch.tensor(starts, dtype=frame_T.dtype))
    new[1:] &= frame_T[1:] != frame_T[:-1]
    places = sorted({0, *new.nonzero()[:, 0].tolist()})
    return list(zip(places, [*places[1:], len(frame_T)], strict=True))
