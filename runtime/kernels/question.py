"""The ``attention`` scorer by generated Triton kernels, without the attention matrix.

Does on a GPU what :func:`segmo.runtime.relevance.attention_relevance` does.

Legend: B batch, N prompt tokens, V video tokens of a row, S scenes, A query heads, G key/value heads, D head
size.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from segmo.runtime.attention.triton import dense_heads
from segmo.runtime.host import give, read
from segmo.runtime.kernels.configs import question_spec
from segmo.runtime.kernels.device import architecture
from segmo.runtime.kernels.render import render
from segmo.runtime.kernels.specs import QuestionSpec, dtype_name
from segmo.runtime.relevance import asking_rows, rows_with_video, scene_mean
from segmo.runtime.runs import runs


def spec_for(q_BAND: Tensor, k_BGND: Tensor) -> QuestionSpec:
    """The spec of the kernels for these heads, on this device.

    Raises:
        KernelError: there are none for the dtype, head size or device.
    """
    heads, groups, head_size = int(q_BAND.shape[1]), int(k_BGND.shape[1]), int(q_BAND.shape[3])
    return question_spec(architecture(q_BAND.device), head_size, dtype_name(q_BAND.dtype), heads // groups)


def key_scores(
    q_AND: Tensor,
    k_GND: Tensor,
    question: tuple[int, int],
    keys: tuple[int, int],
    first_key: int,
    scale: float,
    spec: QuestionSpec,
) -> Tensor:
    """Softmax weight of each key in ``keys``, summed over all heads and a run of question tokens, (keys,) fp32.

    Args:
        q_AND, k_GND: one batch row.
        question: first question token of the run and its end.
        keys: range of the keys to score. Every row sees them, also one that stands in front of them.
        first_key: first token that is not padding; the softmax is over all keys from there.
        scale: of the logits, positive.
        spec: the kernels to run.
    """
    kernels: Any = render(spec).load()
    groups, repeats = k_GND.shape[0], spec.repeats
    rows = (question[1] - question[0]) * repeats
    row_tiles = -(-rows // kernels.BLOCK_M)
    chunks = -(-(max(question[1], keys[1]) - first_key) // kernels.CHUNK_N)
    launch = {"num_warps": kernels.NUM_WARPS, "num_stages": kernels.NUM_STAGES}
    strides = (*q_AND.stride()[:2], *k_GND.stride()[:2])
    base2 = scale * math.log2(math.e)
    lse = torch.empty(chunks, groups, rows, device=q_AND.device, dtype=torch.float32)
    kernels.question_lse_kernel[groups, row_tiles, chunks](
        q_AND, k_GND, lse, *strides, *question, first_key, keys[1] - 1, base2, **launch
    )
    whole_lse = torch.logsumexp(lse * math.log(2), dim=0) / math.log(2)
    scores_GN = torch.empty(groups, keys[1] - keys[0], device=q_AND.device, dtype=torch.float32)
    kernels.key_scores_kernel[groups, -(-scores_GN.shape[1] // kernels.BLOCK_N)](
        q_AND, k_GND, whole_lse, scores_GN, *strides, *question, *keys, base2, **launch
    )
    return scores_GN.sum(dim=0)


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
    out_BS = torch.full((scene_BN.shape[0], max_scenes), -torch.inf, device=q_BAND.device, dtype=torch.float32)
    asked, cell, valid = read(question_BN, cell_BN, valid_BN)
    for row, video_V in rows_with_video(cell_BN):
        valid_N = None if valid is None else valid[row]
        asking_Q, first_key = asking_rows(asked[row], cell[row], valid_N), 0 if valid_N is None else valid_N.argmax()
        keys = (int(video_V[0]), int(video_V[-1]) + 1)
        score_N = torch.zeros(keys[1] - keys[0], device=q_BAND.device, dtype=torch.float32)
        for run in runs(asking_Q.tolist()):
            score_N += key_scores(q_BAND[row], k_BGND[row], run, keys, int(first_key), scale, spec)
        at_V = give(video_V, q_BAND.device)
        means_S = scene_mean(score_N[at_V - keys[0]], scene_BN[row, at_V], max_scenes)
        out_BS[row] = means_S / max(heads * len(asking_Q), 1)
    return out_BS
