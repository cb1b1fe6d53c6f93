"""One pass over the video features: how new each token is, and how alike neighbouring frames are.

Legend: B batch, N prompt tokens, V video tokens of a row, F frames, C cells of a frame, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.layout import video_starts

# Tokens that are widened to fp32 at a time: a chunk of 512 x 1024 fp32 values stays in a core's cache.
CHUNK = 512


def previous_cell(frame_V: Tensor, cell_V: Tensor) -> Tensor:
    """Index of the token in the same cell of the previous frame, -1 where there is none; (V,) int64."""
    frames, cells = int(frame_V[-1]) + 1, int(cell_V.max()) + 1
    token_FC = torch.full((frames + 1, cells), -1, dtype=torch.long, device=frame_V.device)
    token_FC[frame_V + 1, cell_V] = torch.arange(frame_V.shape[0], device=frame_V.device)
    return token_FC[frame_V, cell_V]


def alone(frame_T: Tensor, first_F: Tensor) -> tuple[Tensor, Tensor]:
    """Successive frames of a row by themselves: their tokens' frames counted from 0, and which of them begin a video.

    The first one does, as nothing stands before it here.
    """
    first = first_F[int(frame_T[0]) : int(frame_T[-1]) + 1].clone()
    first[0] = True
    return frame_T - frame_T[0], first


def _scan_row(embeds_NH: Tensor, video_V: Tensor, frame_V: Tensor, before_V: Tensor) -> tuple[Tensor, ...]:
    """Squared norm of each token (V,), its dot product with token ``before_V``, each frame's sum (F, H)."""
    tokens, hidden = video_V.shape[0], embeds_NH.shape[1]
    square_V = torch.empty(tokens, device=embeds_NH.device)
    dot_V = torch.empty_like(square_V)
    sum_FH = torch.zeros(int(frame_V[-1]) + 1, hidden, device=embeds_NH.device)
    for start in range(0, tokens, CHUNK):
        chunk = slice(start, start + CHUNK)
        now = embeds_NH[video_V[chunk]].float()
        square_V[chunk] = torch.linalg.vecdot(now, now)
        dot_V[chunk] = torch.linalg.vecdot(now, embeds_NH[before_V[chunk]].float())
        sum_FH.index_add_(0, frame_V[chunk], now)
    return square_V, dot_V, sum_FH


def check_finite(value_V: Tensor, frame_V: Tensor, cell_V: Tensor) -> None:
    """Refuses video features of which a number (V,) came out that is not finite.

    Raises:
        PromptError: it names the first token's frame and cell.
    """
    bad_V = ~torch.isfinite(value_V)
    if bool(bad_V.any()):
        token = int(bad_V.nonzero()[0])
        raise PromptError(
            f"the video features hold NaN or infinity (first in frame {int(frame_V[token])}, cell "
            f"{int(cell_V[token])}); check the pixels and the dtype of the vision encoder"
        )


def scan_tokens(
    embeds_NH: Tensor, at_T: Tensor, frame_T: Tensor, cell_T: Tensor, first_F: Tensor
) -> tuple[Tensor, Tensor]:
    """Novelty of the video tokens of successive frames, and similarity of each of these frames to the one before.

    Args:
        embeds_NH: holds the tokens' features.
        at_T: where, (T,). frame_T, cell_T: frame and cell of each, in order; the first frame may be any.
        first_F: whether a frame of the whole row is the first one of its video, (F,) bool.

    Returns:
        (T,) and one value for each frame from ``frame_T[0]`` on, both fp32; 1 in the first of these frames.

    Raises:
        PromptError: the features hold NaN or infinity.
    """
    local_T, first = alone(frame_T, first_F)
    previous_T = previous_cell(local_T, cell_T).masked_fill(first[local_T], -1)
    new_T, previous_T = previous_T < 0, previous_T.clamp(min=0)
    square_T, dot_T, sum_FH = _scan_row(embeds_NH, at_T, local_T, at_T[previous_T])
    check_finite(square_T, frame_T, cell_T)

    norm_T = square_T.sqrt_()
    cosine_T = dot_T / (norm_T * norm_T[previous_T]).clamp(min=1e-12)
    descriptor_FH = torch.nn.functional.normalize(sum_FH, dim=-1)
    similarity_F = torch.ones_like(first, dtype=torch.float32)
    similarity_F[1:] = torch.linalg.vecdot(descriptor_FH[1:], descriptor_FH[:-1])
    return (1 - cosine_T).masked_fill(new_T, 1), similarity_F.masked_fill(first, 1)


def scan_video(embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Novelty and frame similarity of every video token (CAS, steps 1 and 3).

    Args:
        embeds_BNH: token embeddings after the merge, (B, N, H).
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.

    Returns:
        ``novelty`` (B, N) fp32: 1 - cosine with the same cell of the previous frame; 1 where there is none,
        as in the first frame of each video; 0 for text.
        ``similarity`` (B, N) fp32: cosine between the descriptor (mean feature) of the token's frame and the
        previous frame's; 1 for the first frame of each video and for text.

    Raises:
        PromptError: the features hold NaN or infinity.
    """
    novelty_BN = torch.zeros(frame_BN.shape, device=embeds_BNH.device)
    similarity_BN = torch.ones_like(novelty_BN)
    for row in range(frame_BN.shape[0]):
        video_V = (cell_BN[row] >= 0).nonzero()[:, 0]
        if video_V.numel() == 0:
            continue
        frame_V, cell_V = frame_BN[row, video_V], cell_BN[row, video_V]
        first_F = video_starts(frame_BN[row], cell_BN[row])
        novelty_V, similarity_F = scan_tokens(embeds_BNH[row], video_V, frame_V, cell_V, first_F)
        novelty_BN[row, video_V] = novelty_V
        similarity_BN[row, video_V] = similarity_F[frame_V]
    return novelty_BN, similarity_BN
