"""The ``attention`` scorer by generated Triton kernels, without the attention matrix.

Does on a GPU what :func:`segmo.runtime.asking.attention_relevance` does.

Legend: B batch, N prompt tokens, T video tokens of the batch, Q question tokens of a row at most, K keys scored,
S scenes, A query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.asking import Asking
from segmo.runtime.attention.triton import dense_heads
from segmo.runtime.host import give
from segmo.runtime.kernels.configs import question_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import QuestionSpec, dtype_name


def spec_for(q_BAND: Tensor, k_BGND: Tensor) -> QuestionSpec:
    """The spec of the kernels for these heads, on this device.

    Raises:
        KernelError: there are none for the dtype, head size or device.
    """
    heads, groups, head_size = int(q_BAND.shape[1]), int(k_BGND.shape[1]), int(q_BAND.shape[3])
    return question_spec(architecture(q_BAND.device), head_size, dtype_name(q_BAND.dtype), heads // groups)


def key_scores(
    q_BAND: Tensor,
    k_BGND: Tensor,
    ask_BQ: Tensor,
    bound_B3: Tensor,
    most: tuple[int, int],
    scale: float,
    spec: QuestionSpec,
) -> Tensor:
    """Softmax weight of each of the video's keys, summed over all heads and question tokens, (B, K) fp32.

    Args:
        q_BAND, k_BGND: of a batch.
        ask_BQ: where the question tokens of each prompt stand, ascending and -1 behind the last, int32.
        bound_B3: first token that is not padding, over which and all after it the softmax goes; the first key to score
            and the end of these: every row sees them, also one that stands in front of them. int32.
        most: K, the most keys to score of a prompt; the most that the softmax goes over.
        scale: of the logits, positive.
        spec: the kernels to run.
    """
    kernels: Any = render(spec).load()
    batch, groups, asked = k_BGND.shape[0], k_BGND.shape[1], ask_BQ.shape[1]
    rows, programs = asked * spec.repeats, batch * groups
    chunks = -(-most[1] // kernels.CHUNK_N)
    launch = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    strides = (*q_BAND.stride()[:3], *k_BGND.stride()[:3])
    base2 = scale * math.log2(math.e)
    lse = torch.empty(chunks, programs, rows, device=q_BAND.device, dtype=torch.float32)
    kernels.question_lse_kernel[programs, -(-rows // kernels.BLOCK_M), chunks](
        q_BAND, k_BGND, ask_BQ, bound_B3, lse, *strides, groups, asked, base2, **launch
    )
    whole_lse = torch.logsumexp(lse * math.log(2), dim=0) / math.log(2)
    scores_BGK = torch.empty(batch, groups, most[0], device=q_BAND.device, dtype=torch.float32)
    kernels.key_scores_kernel[programs, -(-most[0] // kernels.BLOCK_N)](
        q_BAND, k_BGND, ask_BQ, bound_B3, whole_lse, scores_BGK, *strides, groups, asked, most[0], base2, **launch
    )
    return scores_BGK.sum(dim=1)


def attention_relevance(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
    spec: QuestionSpec | None = None,
) -> Tensor:
    """Attention that the question pays to a scene's tokens, averaged over heads, question tokens and tokens,
    (B, S).

    -inf for scenes that do not exist, as all scorers return it.

    Args:
        q_BAND, k_BGND: of the decoder layer that scores.
        scene_BN, cell_BN: scene and cell of each token.
        question_BN: True at the question's tokens.
        valid_BN: False at padding, which lies before or after the prompt; None for no padding.
        scale: of the logits, positive.
        max_scenes: S.
        spec: the kernels to run; ones for this device when not given.

    Raises:
        KernelError: there is no kernel for the dtype, head size or device.
    """
    heads = q_BAND.shape[1]
    spec = spec or spec_for(q_BAND, k_BGND)
    q_BAND, k_BGND = dense_heads(q_BAND), dense_heads(k_BGND)
    asking = Asking.of(question_BN, cell_BN, valid_BN)
    at_T, row_T, device = asking.at_T, asking.row_T, q_BAND.device
    if not asking.most:
        return asking.means(torch.zeros(len(at_T), device=device, dtype=torch.float32), scene_BN, max_scenes, heads)
    first_B, end_B = asking.video_bounds()
    seen_B = np.maximum(end_B, asking.ask_BQ.max(axis=1) + 1) - asking.first_B
    bound_B3 = np.stack([asking.first_B, first_B, end_B], axis=1).astype(np.int32)
    ask_BQ, most = asking.ask_BQ.astype(np.int32), (int((end_B - first_B).max()), int(seen_B.max()))
    score_BK = key_scores(q_BAND, k_BGND, give(ask_BQ, device), give(bound_B3, device), most, scale, spec)
    place_T = row_T * most[0] + at_T % scene_BN.shape[1] - first_B[row_T]
    return asking.means(score_BK.flatten()[give(place_T, device)], scene_BN, max_scenes, heads)
