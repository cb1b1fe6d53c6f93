"""Attention that a question pays to a video: which rows ask, what they pay, and the scorer ``attention`` made of it.

Legend: B batch, N prompt tokens, Q question tokens of a row at most, R some of these, T video tokens of the batch,
S scenes, A query heads, G key/value heads, H = A / G, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.host import Array, give, here, read, send
from segmo.runtime.relevance import scene_mean
from segmo.runtime.video_runs import places

ROWS = 64  # question tokens of all prompts scored at a time, so that memory stays linear in the prompts' length


def asking_rows(question_N: Array, cell_N: Array, valid_N: Array | None) -> Array:
    """Rows of one prompt whose attention asks: the question's, and the one that gives the next token, (Q,) ascending.

    The last row has read the question, wherever that stands, and sees all of the video. Without a question, no rows.
    """
    places_Q = places(question_N)
    last = question_N.shape[0] - 1 if valid_N is None else int(places(valid_N)[-1])
    if not len(places_Q) or places_Q[-1] >= last or cell_N[last] >= 0:
        return places_Q
    return np.append(places_Q, last)


@dataclass(frozen=True)
class Asking:
    """Which tokens of a batch ask about which video tokens.

    Attributes:
        ask_BQ: the rows of each prompt whose attention asks (:func:`asking_rows`), ascending and -1 behind the last.
        first_B: first token of each prompt that is not padding.
        at_T, row_T: place of each video token among those of the batch, and its prompt.
        length: N.
    """

    ask_BQ: Array
    first_B: Array
    at_T: Array
    row_T: Array
    length: int

    @classmethod
    def of(cls, question_BN: Tensor, cell_BN: Tensor, valid_BN: Tensor | None) -> Asking:
        """Of a batch; a prompt without video is not asked about."""
        asked, cell, valid = read(question_BN, cell_BN, valid_BN)
        at_T = places((cell >= 0).reshape(-1))
        rows = [
            asking_rows(asked[row], cell[row], None if valid is None else valid[row]) if (cell[row] >= 0).any() else ()
            for row in range(len(cell))
        ]
        ask_BQ = np.full((len(rows), max(map(len, rows), default=0)), -1)
        for row, places_Q in enumerate(rows):
            ask_BQ[row, : len(places_Q)] = places_Q
        first_B = np.zeros(len(cell), dtype=np.int64) if valid is None else valid.argmax(axis=1)
        return cls(ask_BQ, first_B, at_T, at_T // cell.shape[1], cell.shape[1])

    @property
    def most(self) -> int:
        """Q."""
        return int(self.ask_BQ.shape[1])

    def video_bounds(self) -> tuple[Array, Array]:
        """First video token of each prompt, and the end of the last one; its first token twice where it has none."""
        inside_T = self.at_T - self.row_T * self.length
        first_B, end_B = self.first_B.copy(), self.first_B.copy()
        head = np.diff(self.row_T, prepend=-1) != 0
        last = np.diff(self.row_T, append=len(first_B)) != 0
        first_B[self.row_T[head]] = inside_T[head]
        end_B[self.row_T[last]] = inside_T[last] + 1
        return first_B, end_B

    def means(self, score_T: Tensor, scene_BN: Tensor, max_scenes: int, heads: int) -> Tensor:
        """Mean of the video tokens' scores over a scene's tokens, the heads and the rows that ask, (B, S)."""
        device, batch = score_T.device, len(self.first_B)
        scene_T = scene_BN.flatten()[give(self.at_T, device)] + give(self.row_T * max_scenes, device)
        means_BS = scene_mean(score_T, scene_T, batch * max_scenes).view(batch, max_scenes)
        rows_B = give(np.maximum((self.ask_BQ >= 0).sum(axis=1), 1), device)
        return means_BS / (heads * rows_B[:, None])


def attention_paid(
    q_ARD: Tensor, k_GND: Tensor, hidden_RN: Tensor, scale: float, asks_R: Tensor | None = None
) -> Tensor:
    """Attention that rows pay to each key, summed over rows and heads, (N,) fp32; also of a batch of these.

    Args:
        q_ARD, k_GND: queries and keys.
        hidden_RN: keys that a row does not see.
        scale: of the logits.
        asks_R: False for rows that do not count; all do if it is not given.
    """
    q_GHRD, paid = torch.unflatten(q_ARD, -3, (k_GND.shape[-3], -1)), list[Tensor]()
    for q_HRD, k_ND in zip(q_GHRD.unbind(-4), k_GND.unbind(-3), strict=True):
        logits = (q_HRD @ k_ND.mT.unsqueeze(-3)).float() * scale
        weights_RN = logits.masked_fill_(hidden_RN.unsqueeze(-3), -torch.inf).softmax(dim=-1).sum(dim=-3)
        paid.append((weights_RN if asks_R is None else weights_RN * asks_R[..., None]).sum(dim=-2))
    return torch.stack(paid).sum(0)


def attention_relevance(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
) -> Tensor:
    """Attention that the question pays to a scene, mean over heads, its rows and the scene's tokens.

    Its rows are those of :func:`asking_rows`. A question token in front of a video would see nothing of it. Here it
    sees all that it would see right behind the last one. The attention matrix is built for these rows alone, a
    key/value head and a few rows at a time: of one prompt after the other on the host, of all prompts on a device.
    """
    asking, device = Asking.of(question_BN, cell_BN, valid_BN), q_BAND.device
    score_BN = torch.zeros(scene_BN.shape, device=device, dtype=torch.float32)
    batch, length = scene_BN.shape
    last_B = asking.video_bounds()[1] - 1
    number_N = torch.arange(length, device=device)
    for some in [slice(row, row + 1) for row in range(batch)] if here(q_BAND) else [slice(0, batch)]:
        ask_BQ = asking.ask_BQ[some]
        ask_BQ, step = ask_BQ[:, : int((ask_BQ >= 0).sum(axis=1).max())], max(1, ROWS // len(ask_BQ))
        padding_BN = None if valid_BN is None else send(~valid_BN[some], device)
        for start in range(0, ask_BQ.shape[1], step):
            ask_BR = ask_BQ[:, start : start + step]
            hidden_BRN = number_N > give(np.maximum(ask_BR, last_B[some, None]), device)[..., None]
            if padding_BN is not None:
                hidden_BRN |= padding_BN[:, None]
            at_BR = give(ask_BR.clip(min=0), device)[:, None, :, None]
            q_BARD = q_BAND[some].gather(2, at_BR.expand(-1, q_BAND.shape[1], -1, q_BAND.shape[3]))
            asks_BR = give(ask_BR >= 0, device)
            score_BN[some] += attention_paid(q_BARD, k_BGND[some], hidden_BRN, scale, asks_BR)
    score_T = score_BN.flatten()[give(asking.at_T, device)]
    return asking.means(score_T, scene_BN, max_scenes, q_BAND.shape[1])
