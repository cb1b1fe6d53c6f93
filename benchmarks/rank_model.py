"""The decoder that the distributed benchmark runs, and the synthetic video that it reads.

Legend: N tokens of the prompt, K kept tokens, L tokens of a rank, A query heads, G key/value heads, D head
size, H hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, Qwen2Config, Qwen2Model

from segmo.runtime.cost.shape import ModelShape
from segmo.runtime.distributed.features import Spread, scan_spread, scene_novelty_spread, spread_fit
from segmo.runtime.distributed.ranks import Ranks
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.relevance import embedding_relevance
from segmo.runtime.scenes import find_scenes
from segmo.runtime.schedule import RowSchedule, attention_schedule, unpack
from segmo.runtime.segments import context_tokens, segment_ids
from segmo.runtime.selection import kept_count, select_tokens

SHAPE = ModelShape(hidden=896, layers=4, heads=14, kv_heads=2, head_size=64, intermediate=4864, vocab=64)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SINKS, QUESTION, CELLS = 16, 24, 64

# (A, L, D), (G, L, D), (G, L, D), scale, layer -> (A, L, D)
Attention = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]


class Decoder:
    """Qwen2-0.5B's decoder with four layers and random weights; its attention is handed in with each call.

    The function is registered with transformers' own interface, so every way of the benchmark runs the same
    model.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.attention: Attention | None = None
        AttentionInterface.register("benchmark", self._attend)
        config = Qwen2Config(
            vocab_size=SHAPE.vocab,
            hidden_size=SHAPE.hidden,
            intermediate_size=SHAPE.intermediate,
            num_hidden_layers=SHAPE.layers,
            num_attention_heads=SHAPE.heads,
            num_key_value_heads=SHAPE.kv_heads,
            attn_implementation="benchmark",
        )
        torch.manual_seed(0)
        self.model = Qwen2Model(config).to(dtype).eval()

    def _attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        assert self.attention is not None
        out_ALD = self.attention(q[0], k[0], v[0], scaling, module.layer_idx)
        return out_ALD.transpose(0, 1)[None], None

    @torch.no_grad()
    def __call__(self, embeds_LH: Tensor, positions_L: Tensor, attention: Attention) -> Tensor:
        """Hidden states of these tokens, (L, H)."""
        self.attention = attention
        out = self.model(inputs_embeds=embeds_LH[None], position_ids=positions_L[None], use_cache=False)
        hidden: Tensor = out.last_hidden_state[0]
        return hidden


@dataclass(frozen=True)
class Prompt:
    """A prompt with a video: embeddings and where its frames and scenes lie.

    Attributes:
        embeds_NH: token embeddings. frame_N, cell_N: as :func:`segmo.runtime.layout.video_layout` gives them.
    """

    embeds_NH: Tensor
    frame_N: Tensor
    cell_N: Tensor


def make_prompt(video_tokens: int, scenes: int, dtype: torch.dtype, seed: int = 0) -> Prompt:
    """Scenes of very unequal length, frames alike within a scene, a question that is like one of the scenes."""
    rng = np.random.default_rng(seed)
    frames = video_tokens // CELLS
    shares = rng.lognormal(0.0, 0.8, scenes)
    ends = np.maximum(np.round(np.cumsum(shares) / shares.sum() * frames), np.arange(1, scenes + 1)).astype(int)
    scene_F = torch.from_numpy(np.searchsorted(ends, np.arange(frames), side="right"))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    video = draw(scenes, CELLS, SHAPE.hidden)[scene_F] + 0.2 * draw(frames, CELLS, SHAPE.hidden)
    question = draw(QUESTION, SHAPE.hidden) + video[frames // 2, :QUESTION]
    embeds = torch.cat([draw(SINKS, SHAPE.hidden), video.flatten(0, 1), question]).to(dtype)
    frame = torch.arange(frames).repeat_interleave(CELLS)
    cell = torch.arange(CELLS).repeat(frames)
    before, after = torch.full((SINKS,), SINK), torch.full((QUESTION,), QUERY)
    none = torch.full((SINKS,), -1), torch.full((QUESTION,), -1)
    return Prompt(embeds, torch.cat([before, frame, after]), torch.cat([none[0], cell, none[1]]))


def select(
    prompt: Prompt, keep: float, segments: str, context: tuple[int, int], ranks: Ranks
) -> tuple[Tensor, RowSchedule]:
    """CAS, LSP's segments and GCI with the product's own functions: kept positions (K,) and the row's schedule.

    Each rank scores an even share of the frames; the result is the same on all. ``context`` is of how many scenes the
    head frame, and how many tail frames of each segment.
    """
    embeds, frame, cell = prompt.embeds_NH[None], prompt.frame_N[None], prompt.cell_N[None]
    spread = Spread.of(frame[0], cell[0], ranks)
    novelty, similarity = (
        x[None] for x in scan_spread(embeds[0], frame[0], cell[0], spread, missing=False, selects=keep < 1)
    )
    scene = find_scenes(similarity, frame, cell, 64)
    relevance = embedding_relevance(embeds, scene, cell, frame == QUERY, 64, functools.partial(spread_fit, ranks))
    video = int((cell >= 0).sum())
    kept = kept_count(frame.shape[1], video, 1, keep)
    if keep < 1:
        novelty = scene_novelty_spread(embeds[0], novelty[0], frame[0], cell[0], scene[0], spread, missing=False)[None]
        index = select_tokens(novelty, frame, cell, scene, relevance, kept, 0.5)
    else:
        index = torch.arange(kept)[None]
    frame_K, scene_K = frame.gather(1, index), scene.gather(1, index)
    segment_K = segment_ids(frame_K, scene_K, segments)
    chosen = context_tokens(frame_K, scene_K, segment_K, relevance, *context)
    row = unpack(attention_schedule(segment_K, chosen, None))[0]
    return index[0], row
