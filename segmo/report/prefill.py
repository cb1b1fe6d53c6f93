"""What the last prefill kept, for the report: tokens, scenes, segments, and the frames that were encoded.

Legend: B batch, N prompt tokens, K kept tokens, S scenes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from segmo.report.shown import Shown


def _no_text(ids: Sequence[int]) -> str | None:
    return None


@dataclass(frozen=True)
class Asked:
    """How the question of a prompt was told from the rest of it.

    Attributes:
        source: what is known of the model's chat template, in words.
        decode: the text of token ids, None where no tokenizer is known.
    """

    source: str = "the text behind the last video"
    decode: Callable[[Sequence[int]], str | None] = _no_text


NO_IDS = Asked("no token ids came with the call, so the text behind the last video")


class Prefill:
    """The tokens of one prefill, as the rewritten graph handed them out. Row 0 of the batch is what is summed up.

    Attributes:
        frame, cell: frame and cell of each prompt token, (B, N) int64; text has cell -1.
        novelty: what tokens were chosen by, of :func:`segmo.runtime.novelty.scene_novelty`, (B, N) fp32; without
            selection 1 - cosine with the same cell of the previous frame.
        scene: scene of each token, (B, N) int64.
        question: whether a token was taken for the question, (B, N) bool.
        ids: token ids, (B, N) int64; None where the prompt came as embeddings.
        relevance: relevance of each scene, (B, S) fp32, -inf where there is none; None if no pass needed it.
        index: positions of the kept tokens, (B, K) int64; None if all were kept.
        segment: attention segment of each kept token, (B, K) int64; None without segments.
        context: whether a kept token is context, (B, K) bool; None without context.
        positions: M-RoPE position ids, (3 or 4, B or 1, N) int, wherever the model has them; None for 1-D positions.
        shown: what :func:`segmo.show_prompt` said of this prompt.
    """

    def __init__(self, recorded: dict[str, Tensor], shown: Shown | None = None, asked: Asked = NO_IDS) -> None:
        self.shown = shown
        # An input of the graph, which only a picture needs: it is not copied here.
        self.positions: Tensor | None = recorded.get("positions")
        moved = {name: tensor.detach().cpu() for name, tensor in recorded.items() if name != "positions"}
        self.frame, self.cell, self.scene = moved["frame"], moved["cell"], moved["scene"]
        self.novelty = moved["novelty"]
        self.question, self.ids = moved["question"], moved.get("ids")
        self._asked = asked if self.ids is not None else NO_IDS
        self.relevance: Tensor | None = moved.get("relevance")
        self.index: Tensor | None = moved.get("index")
        self.segment: Tensor | None = moved.get("segment")
        self.context: Tensor | None = moved.get("context")

    def kept(self) -> Tensor:
        """Positions of row 0's kept tokens, ascending."""
        import torch

        return torch.arange(self.frame.shape[1]) if self.index is None else self.index[0]

    def tokens(self) -> dict[str, int]:
        """Prompt tokens, video tokens among them, and video tokens kept."""
        return {
            "prompt": int(self.frame.shape[1]),
            "video": int((self.cell[0] >= 0).sum()),
            "kept": int((self.cell[0, self.kept()] >= 0).sum()),
        }

    def asked(self) -> dict[str, Any]:
        """The question of row 0: where its tokens stand, their ids, their text if a tokenizer is known, and how."""
        positions = self.question[0].nonzero()[:, 0]
        ids = None if self.ids is None else self.ids[0, positions].tolist()
        return {
            "positions": positions.tolist(),
            "ids": ids,
            "text": None if ids is None else self._asked.decode(ids),
            "source": self._asked.source,
        }

    def scenes(self) -> list[dict[str, Any]]:
        """The scenes in order."""
        video = self.cell[0] >= 0
        kept = self.kept()
        kept = kept[video[kept]]
        found = []
        for scene in range(int(self.scene[0].max()) + 1 if bool(video.any()) else 0):
            inside = video & (self.scene[0] == scene)
            frames = self.frame[0, inside]
            relevance = None if self.relevance is None else float(self.relevance[0, scene])
            found.append(
                {
                    "start_frame": int(frames.min()),
                    "end_frame": int(frames.max()) + 1,
                    "tokens": int(inside.sum()),
                    "kept": int((self.scene[0, kept] == scene).sum()),
                    "relevance": relevance if relevance is None or math.isfinite(relevance) else None,
                    "novelty": float(self.novelty[0, inside].mean()),
                }
            )
        return found

    def segments(self) -> list[dict[str, int]]:
        """The attention segments in order; tokens are kept ones, text between frames included."""
        if self.segment is None:
            return []
        segment = self.segment[0]
        frame = self.frame[0, self.kept()]
        context = self.context[0] if self.context is not None else segment < -2
        found = []
        for number in range(int(segment.max()) + 1):
            inside = segment == number
            found.append(
                {
                    "start_frame": int(frame[inside].min()),
                    "end_frame": int(frame[inside].max()) + 1,
                    "tokens": int(inside.sum()),
                    "context": int((inside & context).sum()),
                }
            )
        return found


@dataclass(frozen=True)
class FrameCounts:
    """What the vision encoder saw of the last prompt's videos.

    Attributes:
        video: frames there were.
        encoded: frames that were encoded; all of them where the encoder does not treat frames alone.
        kept: the frames whose tokens may be kept, for each video.
    """

    video: int
    encoded: int
    kept: tuple[tuple[int, ...], ...]
