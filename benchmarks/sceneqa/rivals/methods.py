"""The rivals as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from decoder import run_decoder
from forward import CELLS, SINKS
from shared import answer_shared
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from rivals.diversity import cdpruner, echoprune, vidcom2
from rivals.fastvid import fastvid
from rivals.selectors import evs, last_frames, random_tokens, uniform_frames
from segmo.sceneqa.methods import Answer, Answers, Method, causal_pairs, prefill_flops
from segmo.sceneqa.model import Prompts

Selector = Callable[[Tensor, float, int], Tensor]
AskedSelector = Callable[[Tensor, Tensor, float], Tensor]
FASTV_LAYER = 1  # attention of the second layer chooses, as in the paper (K = 2)


def _blind(select: Selector, keep: float) -> Answer:
    """A rival that does not look at the question."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        kept = select(prompts.features.unflatten(0, (-1, CELLS)), keep, prompts.video)
        return answer_shared(model, prompts, kept, prompts.features[kept])

    return answer


def _asked(select: AskedSelector, keep: float) -> Answer:
    """A rival that looks at the question: other tokens for each prompt."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        video, ids = len(prompts.features), prompts.input_ids
        frames = prompts.features.unflatten(0, (-1, CELLS))
        words_QnH = model.get_input_embeddings()(ids[:, SINKS + video :]).detach()
        kept_QK = torch.stack([select(frames, words_nH, keep) for words_nH in words_QnH])
        logits = run_decoder(model, prompts, kept_QK, prompts.features[kept_QK])
        rows, layers = ids.shape[1] - video + kept_QK.shape[1], model.config.text_config.num_hidden_layers
        return Answers(logits, kept_QK.shape[1], prefill_flops(model, [rows] * layers, [causal_pairs(rows)] * layers))

    return answer


def _fastvid(keep: float, saliency: Mapping[int, Tensor]) -> Answer:
    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        frames = prompts.features.unflatten(0, (-1, CELLS))
        return answer_shared(model, prompts, *fastvid(frames, saliency[prompts.video], keep))

    return answer


def _fastv(keep: float) -> Answer:
    """FastV: all tokens in the first layers, then those that the last token attends to most.

    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (2024).
    """

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        video, count = len(prompts.features), len(prompts.input_ids)
        kept = math.floor(keep * video)
        logits = run_decoder(
            model,
            prompts,
            torch.arange(video).expand(count, -1),
            prompts.features.expand(count, -1, -1),
            FASTV_LAYER,
            lambda attention_QV: attention_QV.topk(kept, dim=1).indices.sort(dim=1).values,
        )
        layers, length = model.config.text_config.num_hidden_layers, prompts.input_ids.shape[1]
        rows = [length if layer <= FASTV_LAYER else length - video + kept for layer in range(layers)]
        return Answers(logits, kept, prefill_flops(model, rows, [causal_pairs(row) for row in rows]))

    return answer


def rival_methods(budgets: Sequence[float], saliency: Mapping[int, Tensor]) -> list[Method]:
    """Every rival at every budget.

    Args:
        budgets: fractions of the video tokens.
        saliency: for each video the attention that its tokens receive in the vision encoder, (F, CELLS).
    """
    found = []
    for keep in budgets:
        found += [
            Method("uniform frames", keep, _blind(uniform_frames, keep)),
            Method("last frames", keep, _blind(last_frames, keep)),
            Method("random tokens", keep, _blind(random_tokens, keep)),
            Method("EVS", keep, _blind(evs, keep)),
            Method("FastVID", keep, _fastvid(keep, saliency)),
            Method("FastV", keep, _fastv(keep)),
            Method("VidCom2", keep, _blind(vidcom2, keep)),
            Method("CDPruner", keep, _asked(cdpruner, keep)),
            Method("EchoPrune", keep, _asked(echoprune, keep)),
        ]
    return found
