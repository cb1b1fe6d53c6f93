"""The rivals as rows of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from decoder import run_decoder
from shared import answer_shared, cells_of
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration
from untrained import SPECIAL

from rivals.diversity import cdpruner, echoprune, vidcom2
from rivals.fastvid import fastvid
from rivals.flashvid import flashvid
from rivals.pevlm import block_mask
from rivals.selectors import evs, last_frames, random_tokens, uniform_frames
from segmo.sceneqa.methods import Answer, Answers, Method, causal_pairs, prefill_flops
from segmo.sceneqa.model import Prompts

Selector = Callable[[Tensor, float, int], Tensor]
AskedSelector = Callable[[Tensor, Tensor, float], Tensor]
Merger = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
BLOCKS = (2, 4, 8, 16)  # of PEVLM
FASTV_LAYER = 1  # attention of the second layer chooses, as in the paper (K = 2)


def _blind(select: Selector, keep: float) -> Answer:
    """A rival that does not look at the question."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        kept = select(prompts.features.unflatten(0, (-1, cells_of(prompts))), keep, prompts.video)
        return answer_shared(model, prompts, kept, prompts.features[kept])

    return answer


def _asked(select: AskedSelector, keep: float) -> Answer:
    """A rival that looks at the question: other tokens for each prompt."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        video, ids = len(prompts.features), prompts.input_ids
        words = ids[:, ids[0] >= len(SPECIAL)]
        frames = prompts.features.unflatten(0, (-1, cells_of(prompts)))
        words_QnH = model.get_input_embeddings()(words).detach()
        kept_QK = torch.stack([select(frames, words_nH, keep) for words_nH in words_QnH])
        logits = run_decoder(model, prompts, kept_QK, prompts.features[kept_QK])
        rows, layers = ids.shape[1] - video + kept_QK.shape[1], model.config.text_config.num_hidden_layers
        return Answers(logits, kept_QK.shape[1], prefill_flops(model, [rows] * layers, [causal_pairs(rows)] * layers))

    return answer


def _merged(merge: Merger, keep: float, saliency: Mapping[int, Tensor]) -> Answer:
    """A rival that chooses by attention inside the encoder and merges what it drops."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        frames = prompts.features.unflatten(0, (-1, cells_of(prompts)))
        return answer_shared(model, prompts, *merge(frames, saliency[prompts.video], keep))

    return answer


def _pevlm(blocks: int) -> Answer:
    """All tokens, in blocks."""

    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        video, (count, length) = len(prompts.features), prompts.input_ids.shape
        before, cells = int((prompts.input_ids[0] == model.config.video_token_id).nonzero()[0]), cells_of(prompts)
        visible = block_mask(before, video // cells, cells, length - before - video, blocks)
        kept, features = torch.arange(video).expand(count, -1), prompts.features.expand(count, -1, -1)
        logits = run_decoder(model, prompts, kept, features, visible_NN=visible)
        layers = model.config.get_text_config().num_hidden_layers
        return Answers(logits, video, prefill_flops(model, [length] * layers, [float(visible.sum())] * layers))

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
    """Every rival at every budget, and PEVLM, which keeps all tokens, at every number of blocks.

    Args:
        budgets: fractions of the video tokens.
        saliency: for each video the attention that its tokens receive in the vision encoder, (F, cells).
    """
    found = []
    for keep in budgets:
        found += [
            Method("uniform frames", keep, _blind(uniform_frames, keep)),
            Method("last frames", keep, _blind(last_frames, keep)),
            Method("random tokens", keep, _blind(random_tokens, keep)),
            Method("EVS", keep, _blind(evs, keep)),
            Method("FastVID", keep, _merged(fastvid, keep, saliency)),
            Method("FlashVID", keep, _merged(flashvid, keep, saliency)),
            Method("FastV", keep, _fastv(keep)),
            Method("VidCom2", keep, _blind(vidcom2, keep)),
            Method("CDPruner", keep, _asked(cdpruner, keep)),
            Method("EchoPrune", keep, _asked(echoprune, keep)),
        ]
    return [*found, *(Method(f"PEVLM {blocks} blocks", 1.0, _pevlm(blocks)) for blocks in BLOCKS)]
