"""Questions in front of a video, the way training needs them: every question is a sequence of its own, of equal length.

A video behind a question sees it, so questions cannot share the work on a video as they do in ``forward.py``.

Legend: R questions, K kept video tokens, A heads, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from forward import USUAL, Grid
from torch import Tensor
from transformers import AttentionInterface, Qwen2VLForConditionalGeneration

ASKED_FIRST = "sceneqa_asked_first"
FRONT = 7  # start of the turn, five words, start of vision


@dataclass
class LastLooks:
    """Attention of the row that answers to the video tokens in some layers, mean over heads.

    Attributes:
        layers: in which it is wanted.
        video: where the video's tokens stand in a sequence.
        weights: for a decoder layer (R, 1, K); empty before the model has run.
    """

    layers: Collection[int]
    video: slice
    weights: dict[int, Tensor] = field(default_factory=dict)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    looks: LastLooks,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention that writes looks down."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    if module.layer_idx in looks.layers:
        last = query[:, :, looks.video.stop + 1 : looks.video.stop + 2]
        scores = last @ key[:, :, looks.video].transpose(2, 3) * scaling
        looks.weights[module.layer_idx] = scores.softmax(-1).mean(1)
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(ASKED_FIRST, _attention)


def _positions(frames: int, grid: Grid, kept_RK: Tensor) -> Tensor:
    """M-RoPE positions, (3, R, N), as ``get_rope_index`` and ``generate`` give them."""
    places = torch.meshgrid(*(torch.arange(n) for n in (frames, grid.rows, grid.columns)), indexing="ij")
    video = (torch.stack(places).reshape(3, -1) + FRONT)[:, kept_RK]
    after = FRONT + max(grid.rows, grid.columns)
    behind = torch.tensor([after, after + 1, max(frames + FRONT, after + 2)])  # the last is the answer, fed back
    count = kept_RK.shape[0]
    return torch.cat([torch.arange(FRONT).expand(3, count, -1), video, behind.expand(3, count, -1)], dim=2)


def answer_asked_first(
    model: Qwen2VLForConditionalGeneration,
    features_RKH: Tensor,
    frames: int,
    kept_RK: Tensor,
    sink_ids: Tensor,
    question_ids_RL: Tensor,
    look_layers: Collection[int] = (),
    grid: Grid = USUAL,
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits of the answer and of what follows it, (R, 2, vocabulary), and looks.

    Args:
        model: with attention implementation ``ASKED_FIRST``.
        features_RKH, kept_RK: video features of each question, and their indices in the whole video.
        frames: of the whole video.
        sink_ids: start of the turn and start of vision.
        question_ids_RL: the text behind a video and the answer, as in ``batches.py``.
        look_layers: decoder layers of which the answering row's attention to the video is wanted.
        grid: tokens of a frame.
    """
    language: Any = model.model.language_model
    count, kept = kept_RK.shape
    start, vision = (part.expand(count, 1) for part in sink_ids)
    front = torch.cat([start, question_ids_RL[:, 1:6], vision], dim=1)
    behind = question_ids_RL[:, [0, 6, 7]]
    embeds = torch.cat([language.embed_tokens(front), features_RKH, language.embed_tokens(behind)], dim=1)
    looks = LastLooks(look_layers, slice(FRONT, FRONT + kept))
    out = language(
        inputs_embeds=embeds,
        position_ids=_positions(frames, grid, kept_RK),
        attention_mask={"full_attention": None},
        use_cache=False,
        looks=looks,
    ).last_hidden_state
    return model.lm_head(out[:, -2:]), looks.weights
