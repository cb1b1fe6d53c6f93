"""Answers of the model to all questions about one video at once, where they all see the same video tokens.

The same figures as one prompt for each question (``tests/test_sceneqa_model.py``), for a part of the time. Where the
questions stand in front of the video they are asked one by one.
"""

from __future__ import annotations

import torch
from decoder import run_decoder
from forward import SHARED_VIDEO, SINKS, Grid, answer_questions
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from untrained import MERGE

from segmo.sceneqa.methods import Answers, causal_pairs, prefill_flops
from segmo.sceneqa.model import Prompts


def grid_of(prompts: Prompts) -> Grid:
    """Tokens of a frame, by rows and columns."""
    rows, columns = prompts.grid[0, 1:].tolist()
    return Grid(rows // MERGE, columns // MERGE)


def cells_of(prompts: Prompts) -> int:
    """Tokens of a frame."""
    return grid_of(prompts).cells


@torch.no_grad()
def answer_shared(
    model: Qwen2VLForConditionalGeneration, prompts: Prompts, kept_K: Tensor, features_KH: Tensor
) -> Answers:
    """Answers from the video tokens with indices ``kept_K``, ascending, and their features."""
    video, layers = len(prompts.features), model.config.text_config.num_hidden_layers
    tokens = prompts.input_ids.shape[1] - video + len(kept_K)
    flops = prefill_flops(model, [tokens] * layers, [causal_pairs(tokens)] * layers)
    in_front = int((prompts.input_ids[0] == model.config.video_token_id).nonzero()[0]) > SINKS
    if in_front:
        count = len(prompts.input_ids)
        logits = run_decoder(model, prompts, kept_K.expand(count, -1), features_KH.expand(count, -1, -1))
        return Answers(logits, len(kept_K), flops)
    rows = torch.cat([prompts.input_ids[:, SINKS + video :], prompts.answer[:, None]], dim=1)
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": SHARED_VIDEO})
    try:
        grid, sinks = grid_of(prompts), prompts.input_ids[0, :SINKS]
        asked = (video // grid.cells, kept_K[None], sinks, rows[None])
        answered = answer_questions(model, features_KH[None], *asked, grid=grid)
    finally:
        model.set_attn_implementation({"text_config": before})
    return Answers(answered.logits[0, :, 0], len(kept_K), flops)


def answer_full_shared(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
    """Full attention over all tokens, all questions at once."""
    return answer_shared(model, prompts, torch.arange(len(prompts.features)), prompts.features)
