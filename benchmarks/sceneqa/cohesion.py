"""Local cohesion, the premise of segment parallelism: how much attention stays inside the own scene.

Legend: A heads, N prompt tokens, V video tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from forward import SINKS, USUAL
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from segmo.sceneqa.model import Prompts


@torch.no_grad()
def local_cohesion(
    model: Qwen2VLForConditionalGeneration, prompts: Prompts, scene_F: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Share of the attention that video tokens pay to the video which stays in the own scene.

    Only tokens that have an earlier scene to look at count. Attention to the text
    before the video is left out.

    Returns:
        The share for each layer and head, (layers, A); and what attention spread evenly would give.
    """
    scene_V = torch.from_numpy(scene_F).repeat_interleave(USUAL.cells)
    same = scene_V[:, None] == scene_V
    causal = torch.ones_like(same).tril()
    later = scene_V > 0
    language: Any = model.model.language_model
    weights: list[Tensor] = []
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        one = prompts.only(0)
        inputs = one.inputs()
        out = model(**inputs, output_attentions=True)
        weights = list(out.attentions)
    finally:
        model.set_attn_implementation(before)
    end = SINKS + len(scene_V)
    shares = []
    for weight_AN in weights[: len(language.layers)]:
        video = weight_AN[0, :, SINKS:end, SINKS:end]
        inside = (video * same).sum(-1) / video.sum(-1).clamp(min=1e-12)
        shares.append(inside[:, later].mean(-1).double().numpy())
    even = ((same & causal).sum(-1) / causal.sum(-1))[later].mean()
    return np.stack(shares), float(even)


def draw_cohesion(shares: Sequence[NDArray[np.float64]], even: float) -> Figure:
    """Mean over videos, a cell for each layer and head."""
    mean = np.mean(shares, axis=0)
    figure = Figure(figsize=(1.6 + 1.1 * mean.shape[1], 1.4 + 0.75 * mean.shape[0]), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(mean, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for (layer, head), value in np.ndenumerate(mean):
        axes.text(head, layer, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_xticks(range(mean.shape[1]), [f"head {head}" for head in range(mean.shape[1])])
    axes.set_yticks(range(mean.shape[0]), [f"layer {layer}" for layer in range(mean.shape[0])])
    axes.set_title(
        f"Share of a video token's attention inside its own scene\n(mean of {len(shares)} videos; spread "
        f"evenly: {even:.2f})",
        fontsize=9,
        loc="left",
    )
    figure.colorbar(image)
    return figure
