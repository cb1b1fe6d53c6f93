"""What ``reuse-buffers`` puts in the place of calls that would take new memory, on the CPU.

Legend: B batch, N tokens, H features of a token, X features of a linear layer's result.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.host import here


def linear_into(x_BNH: Tensor, weight_XH: Tensor, buffer_BNX: Tensor) -> Tensor:
    """A linear layer without bias whose result (B, N, X) takes the memory of a tensor that nobody reads again.

    A graph's sizes are known when it runs: where the buffer's are others, the result gets memory of its own. So it does
    where autocast has dtypes to bring together, of which a given result knows nothing.
    """
    fits = buffer_BNX.shape == (*x_BNH.shape[:-1], weight_XH.shape[0]) and buffer_BNX.is_contiguous()
    if not fits or not buffer_BNX.dtype == x_BNH.dtype == weight_XH.dtype:
        return torch.nn.functional.linear(x_BNH, weight_XH)
    into: Tensor = torch.ops.aten.linear.out(x_BNH, weight_XH, None, out=buffer_BNX)
    return into


def scatter_rows(embeds_BNH: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """``embeds.masked_scatter(mask, features)`` for a mask of whole tokens, which are copied as such.

    PyTorch's own goes element by element on one core, which takes several times as long.

    Args:
        embeds_BNH: of the prompt.
        mask: (B, N, 1), or that expanded to (B, N, H).
        features: of the tokens that the mask tells, in order; whatever their shape.
    """
    return scatter_rows_(embeds_BNH.clone(), mask, features)


def scatter_rows_(embeds_BNH: Tensor, mask: Tensor, features: Tensor) -> Tensor:
    """The same, written into the embeddings."""
    at_T = _tokens(mask)
    hidden = embeds_BNH.shape[-1]
    count = 0 if at_T is None else len(at_T) * hidden
    simple = embeds_BNH.is_contiguous() and features.dtype == embeds_BNH.dtype and features.numel() >= count
    if at_T is None or not simple or mask.shape[:-1] != embeds_BNH.shape[:-1]:
        return embeds_BNH.masked_scatter_(mask, features)  # or its own error
    rows_TH, embeds_NH = features.reshape(-1)[:count].view(-1, hidden), embeds_BNH.view(-1, hidden)
    if len(at_T) and at_T[-1] - at_T[0] + 1 == len(at_T):
        embeds_NH[at_T[0] : at_T[-1] + 1].copy_(rows_TH)
    else:
        embeds_NH.index_copy_(0, torch.from_numpy(at_T), rows_TH)
    return embeds_BNH


def _tokens(mask: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]] | None:
    """Tokens that the mask tells, counted through all rows; None where it may tell parts of one, or a device knows."""
    if not here(mask) or mask.dim() != 3 or (mask.shape[-1] != 1 and mask.stride(-1) != 0) or mask.dtype != torch.bool:
        return None
    return np.flatnonzero(mask[..., 0].numpy())
