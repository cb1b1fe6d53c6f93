"""The language model run by hand on any choice of video tokens: what the rival methods need.

Kept tokens keep the positions that the whole prompt gave them, as in SegMo.

Legend: Q prompts, N prompt tokens, K kept tokens, V video tokens, A heads, G key/value heads, D head size, H
hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb

from segmo.sceneqa.model import Prompts

# Layer, question weights of that layer's attention (Q, V) -> indices of the video tokens to go on with, (Q,
# kept)
Pruner = Callable[[Tensor], Tensor]


def _project(layer: Any, hidden_QKH: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden_QKH)
    shape = (*normed.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(normed).view(shape).transpose(1, 2)
    key = attention.k_proj(normed).view(shape).transpose(1, 2)
    value = attention.v_proj(normed).view(shape).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, *rotary)
    return query, key, value


def last_token_attention(layer: Any, query: Tensor, key: Tensor) -> Tensor:
    """Attention of the last token to every token, mean over heads, (Q, K)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query[:, :, -1:] @ key.transpose(2, 3)) * layer.self_attn.scaling
    return scores.softmax(-1).mean(1)[:, 0]


@torch.no_grad()
def run_decoder(
    model: Qwen2VLForConditionalGeneration,
    prompts: Prompts,
    kept_QK: Tensor,
    features_QKH: Tensor,
    prune_at: int = -1,
    pruner: Pruner | None = None,
    visible_NN: Tensor | None = None,
) -> Tensor:
    """Logits of the next token, (Q, vocabulary).

    Args:
        kept_QK: indices of the kept video tokens, ascending.
        features_QKH: their features.
        prune_at: decoder layer after which ``pruner`` chooses again.
        pruner: sees the last token's attention to the video tokens in that layer.
        visible_NN: who sees whom in every layer; what came before where it is None.
    """
    language: Any = model.model.language_model
    ids = prompts.input_ids
    video = ids[0] == model.config.video_token_id
    start, end = int(video.nonzero()[0]), int(video.nonzero()[-1]) + 1
    embed = language.embed_tokens
    hidden = torch.cat([embed(ids[:, :start]), features_QKH, embed(ids[:, end:])], dim=1)
    where = torch.cat(
        [
            torch.arange(start).expand(len(ids), -1),
            start + kept_QK,
            torch.arange(end, ids.shape[1]).expand(len(ids), -1),
        ],
        dim=1,
    )
    positions = prompts.position_ids.gather(2, where.expand(3, -1, -1))
    cos, sin = language.rotary_emb(hidden, positions)
    for number, layer in enumerate(language.layers):
        query, key, value = _project(layer, hidden, (cos, sin))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible_NN,
            is_causal=visible_NN is None,
            enable_gqa=True,
            scale=layer.self_attn.scaling,
        )
        hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if number == prune_at and pruner is not None:
            stop = start + kept_QK.shape[1]
            chosen = pruner(last_token_attention(layer, query, key)[:, start:stop])
            index = torch.cat(
                [
                    torch.arange(start).expand(len(ids), -1),
                    start + chosen,
                    torch.arange(stop, hidden.shape[1]).expand(len(ids), -1),
                ],
                dim=1,
            )[..., None]
            hidden = hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))
            cos, sin = (part.gather(1, index.expand(-1, -1, part.shape[-1])) for part in (cos, sin))
    logits: Tensor = model.lm_head(language.norm(hidden[:, -1]))
    return logits
