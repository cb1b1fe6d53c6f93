"""A memory's contract run eagerly: one forward of the unmodified model with a dense mask, written out pair by pair."""

from __future__ import annotations

from typing import Any

import torch
from eager_reference import decoder, masked_attention, merged
from models import VIDEO
from torch import Tensor


def frames_of(ids: list[int], cells: int, trailing: int) -> list[int]:
    """Frame of each token: -1 in front of the video, -2 behind it; text between frames counts to the next one."""
    places = [at for at, token in enumerate(ids) if token == VIDEO]
    frame_of = {at: min(number // cells, (len(places) - trailing) // cells - 1) for number, at in enumerate(places)}
    out = []
    for at in range(len(ids)):
        coming = next((place for place in places if place >= at), None)
        out.append(-1 if at < places[0] else -2 if coming is None else frame_of[coming])
    return out


def head_novelty(features_VH: Tensor, cells: int, frame: int) -> float:
    """How new the tokens of a frame are on average: 1 - cosine with the same cells of the frame before."""
    if frame == 0:
        return 1.0
    now, before = (features_VH[f * cells : (f + 1) * cells].double() for f in (frame, frame - 1))
    return float((1 - torch.cosine_similarity(now, before, dim=-1)).mean())


def memory_mask(
    frame_N: list[int],
    borders: list[int],
    scenes: list[int],
    novelty: dict[int, float],
    context: int,
    tails: int,
    chosen: set[int],
) -> Tensor:
    """Who sees whom, (N, N) bool.

    Args:
        frame_N: of :func:`frames_of`.
        borders, scenes: first frame of each segment, and of each scene.
        novelty: of the first frame of each scene.
        context, tails: options.
        chosen: places of the tokens inside the video that the question sees.
    """
    length = len(frame_N)

    def segment(frame: int) -> int:
        return sum(border <= frame for border in borders) - 1

    def is_context(key: int, start: int) -> bool:
        """Whether rows of a segment that begins at frame ``start`` see a token of an earlier segment."""
        frame = frame_N[key]
        after = next(border for border in borders if border > frame)
        best = sorted((scene for scene in scenes if scene < start), key=lambda scene: (-novelty[scene], scene))
        return after - tails <= frame or frame in best[:context]

    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            query, key = frame_N[i], frame_N[j]
            if key == -1:
                seen = True
            elif query == -2:
                seen = key == -2 or j in chosen
            else:
                same = segment(query) == segment(key)
                seen = same or is_context(j, borders[segment(query)])
            mask[i, j] = seen
    return mask


def reference_logits(model: Any, inputs: dict[str, Tensor], *mask_NN: Tensor) -> Tensor:
    """Logits of the last token, (1, vocabulary), under one mask for all layers or one for each."""
    entering = merged(model, inputs)
    extra: dict[str, Any] = {}
    if "deepstack" in entering:
        extra = {"deepstack_visual_embeds": entering["deepstack"], "visual_pos_masks": entering["video"]}
    masks = [mask[None] for mask in mask_NN] * (len(decoder(model).layers) // len(mask_NN))
    with torch.no_grad(), masked_attention(model, masks):
        hidden = decoder(model)(
            inputs_embeds=entering["inputs_embeds"],
            position_ids=entering["position_ids"],
            use_cache=False,
            **extra,
        )[0]
        return model.lm_head(hidden[:, -1])  # type: ignore[no-any-return]
