"""The model's own modules, run the way training needs them: many questions about a video in one sequence.

Each question stands where it would stand alone: same positions, sees the video and itself, never another
question. So one sequence of V video tokens and Q questions is Q ordinary prompts that share the work on the
video.

Legend: B videos, F frames of the language model, P patches of a frame, V video tokens, Q questions, L rows
of a question, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision
from untrained import MERGE, PATCH

from segmo.sceneqa.render import HEIGHT, PICTURES, WIDTH

SHARED_VIDEO = "sceneqa_shared_video"
SINKS = 2  # text tokens before the video


@dataclass(frozen=True)
class Grid:
    """Tokens of a frame."""

    rows: int = HEIGHT // (PATCH * MERGE)
    columns: int = WIDTH // (PATCH * MERGE)

    @property
    def cells(self) -> int:
        """C."""
        return self.rows * self.columns

    @classmethod
    def of(cls, height: int, width: int) -> Grid:
        """Of pictures of so many pixels."""
        return cls(height // (PATCH * MERGE), width // (PATCH * MERGE))


USUAL = Grid()


def patchify(pictures: NDArray[np.uint8]) -> Tensor:
    """What the processor's ``pixel_values_videos`` holds, for pictures of equal size.

    Args:
        pictures: (2 * F, height, width, 3).

    Returns:
        (F, P, 3 * 2 * PATCH * PATCH) fp32, patches of a token next to each other.
    """
    grid = Grid.of(*pictures.shape[1:3])
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(255).sub_(0.3).div_(0.3)
    parts = pixels.reshape(-1, PICTURES, 3, grid.rows, MERGE, PATCH, grid.columns, MERGE, PATCH)
    return parts.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(len(pictures) // PICTURES, grid.cells * MERGE**2, -1)


def encode_frames(model: Qwen2VLForConditionalGeneration, patches_FP: Tensor, grid: Grid = USUAL) -> Tensor:
    """The vision tower on frames of equal size as one batch, (F, C, H).

    Equal to ``model.get_video_features``, which loops over frames.
    """
    tower: Any = model.model.visual
    frames, patches, _ = patches_FP.shape
    x = tower.patch_embed(patches_FP.flatten(0, 1))
    # Height and width of each patch, in the order of the patches.
    y, z = torch.meshgrid(torch.arange(grid.rows * MERGE), torch.arange(grid.columns * MERGE), indexing="ij")
    blocks = (grid.rows, MERGE, grid.columns, MERGE)
    place = torch.stack([a.reshape(blocks).transpose(1, 2).flatten() for a in (y, z)], dim=-1)
    cos, sin = (part.repeat(frames, 1) for part in tower.rotary_pos_emb(x, place))
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).reshape(frames * patches, 3, attention.num_heads, -1)
        query, key, value = qkv.unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        heads = [part.reshape(frames, patches, attention.num_heads, -1).transpose(1, 2) for part in (query, key, value)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, scale=attention.scaling)
        x = x + attention.proj(mixed.transpose(1, 2).reshape(frames * patches, -1))
        x = x + block.mlp(block.norm2(x))
    return tower.merger(x).reshape(frames, grid.cells, -1)


@dataclass
class Looks:
    """Attention of some rows of each question to the video in some layers, mean over heads, written down on the way.

    Attributes:
        rows: for a decoder layer, which rows of a question.
        length: L.
        shared: number of tokens up to the end of the video, which all questions share.
        weights: for a decoder layer (B, Q, rows, V); empty before the model has run.
    """

    rows: dict[int, tuple[int, ...]]
    length: int
    shared: int
    weights: dict[int, Tensor] = field(default_factory=dict)


def _asked_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float, looks: Looks, layer: int) -> Tensor:
    """Attention of the questions' rows, (B, A, Q * L, D), to the video and to their own question up to themselves."""
    length, shared = looks.length, key.shape[2] - query.shape[2]
    to_video = query @ key[:, :, :shared].transpose(2, 3) * scaling  # (B, A, Q * L, shared)
    if layer in looks.rows:
        rows = to_video[..., SINKS:].unflatten(2, (-1, length))[:, :, :, looks.rows[layer]]
        looks.weights[layer] = rows.softmax(-1).mean(1)
    own_key, own_value = (part[:, :, shared:].unflatten(2, (-1, length)) for part in (key, value))
    to_own = query.unflatten(2, (-1, length)) @ own_key.transpose(3, 4) * scaling  # (B, A, Q, L, L)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = torch.cat([to_video, to_own.masked_fill(later, -torch.inf).flatten(2, 3)], dim=-1).softmax(-1)
    mixed_own = weights[..., shared:].unflatten(2, (-1, length)) @ own_value
    return weights[..., :shared] @ value[:, :, :shared] + mixed_own.flatten(2, 3)


def _shared_video_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, scaling: float, looks: Looks, **_: Any
) -> tuple[Tensor, None]:
    """Causal over the text before the video and the video; then the questions."""
    shared = looks.shared
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)
    attend = torch.nn.functional.scaled_dot_product_attention
    video = attend(query[:, :, :shared], key[:, :, :shared], value[:, :, :shared], is_causal=True, scale=scaling)
    asked = _asked_attention(query[:, :, shared:], key, value, scaling, looks, module.layer_idx)
    return torch.cat([video, asked], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(SHARED_VIDEO, _shared_video_attention)


def _positions(frames: int, grid: Grid, questions: int, rows: int, kept_BV: Tensor) -> Tensor:
    """M-RoPE positions, (3, B, N), as ``get_rope_index`` and ``generate`` give them to each question
    alone."""
    places = torch.meshgrid(*(torch.arange(n) for n in (frames, grid.rows, grid.columns)), indexing="ij")
    video_3V = torch.stack(places).reshape(3, -1) + SINKS
    video = video_3V[:, kept_BV]  # (3, B, kept)
    after = SINKS + max(grid.rows, grid.columns)
    own = torch.arange(after, after + rows)
    own[-1] = max(frames + SINKS, after + rows - 1)  # the answer, fed back by ``generate``
    batch = kept_BV.shape[0]
    text = [torch.arange(SINKS).expand(3, batch, -1), own.repeat(questions).expand(3, batch, -1)]
    return torch.cat([text[0], video, text[1]], dim=2)


@dataclass(frozen=True)
class Answered:
    """What the decoder made of a batch.

    Attributes:
        logits: of the answer and of what follows it, (B, Q, 2, vocabulary).
        looks: for a decoder layer the attention of some rows to the kept video tokens, (B, Q, rows, kept).
        hidden: for a decoder layer the kept video tokens after it, (B, kept, H).
    """

    logits: Tensor
    looks: dict[int, Tensor]
    hidden: dict[int, Tensor]


def answer_questions(
    model: Qwen2VLForConditionalGeneration,
    features_BVH: Tensor,
    frames: int,
    kept_BV: Tensor,
    sink_ids: Tensor,
    question_ids_BQL: Tensor,
    look_rows: dict[int, tuple[int, ...]] | None = None,
    hidden_after: tuple[int, ...] = (),
    grid: Grid = USUAL,
) -> Answered:
    """The decoder on videos and many questions about each.

    Args:
        model: with attention implementation ``SHARED_VIDEO``.
        features_BVH: video features after token dropout, (B, kept, H).
        frames: F of the whole video.
        kept_BV: index of each kept token in the whole video.
        sink_ids: the text before the video, (SINKS,).
        question_ids_BQL: the text after the video, with the answer as the last row.
        look_rows: for which layers and rows of a question the attention is wanted.
        hidden_after: after which layers the video's hidden states are wanted.
        grid: tokens of a frame.
    """
    batch, questions, rows = question_ids_BQL.shape
    language: Any = model.model.language_model
    embed = language.embed_tokens
    embeds = torch.cat([embed(sink_ids).expand(batch, -1, -1), features_BVH, embed(question_ids_BQL.flatten(1))], dim=1)
    shared = SINKS + features_BVH.shape[1]
    looks, hidden = Looks(look_rows or {}, rows, shared), {}

    def remember(layer: int) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            hidden[layer] = (output if isinstance(output, Tensor) else output[0])[:, SINKS:shared]

        return hook

    hooks = [language.layers[layer].register_forward_hook(remember(layer)) for layer in hidden_after]
    try:
        out = language(
            inputs_embeds=embeds,
            position_ids=_positions(frames, grid, questions, rows, kept_BV),
            attention_mask={"full_attention": None},
            use_cache=False,
            looks=looks,
        ).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    ends = out[:, shared:].unflatten(1, (questions, rows))[:, :, -2:]
    return Answered(model.lm_head(ends), looks.weights, hidden)
