"""The operators that passes insert: ``torch.ops.segmo.*``, each with a fake for shape propagation.

Legend: B batch, N prompt tokens, K kept tokens, V video tokens of the batch, H hidden size, S scenes, R rows
of features, A query heads, G key/value heads, D head size.

The work is done in the modules beside this one; here stand signatures and shapes. ``implementation`` is a name
from :mod:`segmo.runtime.lowering`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import segmo.runtime.token_ops  # noqa: F401  # registers the operators that cut the prompt
from segmo.errors import PromptError
from segmo.runtime import (
    asking,
    encoded,
    external,
    features,
    host,
    layout,
    novelty,
    pictures,
    question,
    relevance,
    scenes,
    schedule,
    segments,
)
from segmo.runtime.attention.choice import implementation as attention_implementation
from segmo.runtime.kernels import question as generated_question
from segmo.runtime.kernels import scan as generated_scan
from segmo.runtime.kernels.render import render
from segmo.runtime.lowering import kernel_name, runs_generated
from segmo.runtime.register import fake, one_dtype, operator
from segmo.runtime.videos import current_videos


@operator("read_prompt")
def read_prompt(mask: Tensor, total: int | None, others: list[Tensor]) -> list[Tensor]:
    """What the host has to know of a prompt, in its memory, for which it waits once: True at video tokens, (B, N) bool,
    and a copy of each other tensor (token ids, position ids, attention mask).

    Args:
        mask: of the video tokens, (B, N, 1 or H).
        total: what their features say they are.
        others: any.

    Raises:
        PromptError: the prompt has more or fewer placeholders than there are features.
    """
    video_BN, *copies = host.fetch([mask[..., 0], *others])
    found = int(host.array(video_BN).sum())
    if total is not None and found != total:
        raise PromptError(
            f"the prompt has {found} video tokens, but there are features for {total}; pass the prompt and the video "
            "as the processor gives them, and count placeholders once if they are made by hand"
        )
    return [video_BN, *copies]


@fake(read_prompt)
def _(mask: Tensor, others: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape, device="cpu") for x in (mask[..., 0], *others)]


@operator("to_host")
def to_host(tensors: list[Tensor]) -> list[Tensor]:
    """Copies in the host's memory, for all of which it waits once."""
    return host.fetch(tensors)


@fake(to_host)
def _(tensors: list[Tensor]) -> list[Tensor]:
    return [x.new_empty(x.shape, device="cpu") for x in tensors]


@operator("to_device")
def to_device(x: Tensor, like: Tensor) -> Tensor:
    """A copy of a tensor of the host where ``like`` is, for which nobody waits."""
    return x.clone() if host.here(like) else host.send(x, like.device)


@fake(to_device)
def _(x: Tensor, like: Tensor) -> Tensor:
    return x.new_empty(x.shape, device=like.device)


@operator("valid_tokens")
def valid_tokens(attention_mask_BN: Tensor | None, positions: Tensor | None, like_BN: Tensor) -> Tensor:
    """False at padding, (B, N) bool.

    Args:
        attention_mask_BN: the 2-D attention mask, or None for no padding.
        positions: text position ids (B, N) or M-RoPE ids with a row of text positions first (4, B, N), when
            the model looks into them for packed sequences.
        like_BN: any (B, N) tensor.

    Raises:
        PromptError: several sequences are packed into one row.
    """
    mask, places = host.read(attention_mask_BN, positions)
    valid = np.ones(like_BN.shape, dtype=bool) if mask is None else mask.astype(bool)
    if places is not None and (places.ndim == 2 or places.shape[0] == 4):
        text = np.broadcast_to(places if places.ndim == 2 else places[0], valid.shape)
        if ((np.diff(text, axis=1) != 1) & valid[:, 1:] & valid[:, :-1]).any():
            # transformers then hides the sequences of a row from each other
            raise PromptError(
                "the position ids jump inside a row, as for packed sequences; pass one prompt per row, and an "
                "attention_mask if the positions are meant to have gaps"
            )
    return host.give(valid, like_BN.device)


@fake(valid_tokens)
def _(like_BN: Tensor) -> Tensor:
    return like_BN.new_empty(like_BN.shape, dtype=torch.bool)


@operator("video_layout")
def video_layout(
    video_BN: Tensor,
    positions_RBN: Tensor | None,
    cells_per_frame: int,
    trailing: int,
    ids_BN: Tensor | None = None,
    chat: str = "",
    shared: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`segmo.runtime.layout.video_layout`; ``chat`` is :class:`segmo.runtime.question.ChatTokens` as text.

    ``shared``: images have the same placeholder as frames.

    Raises:
        PromptError: see there, and :func:`segmo.runtime.pictures.check_frames`.
    """
    tokens = question.ChatTokens.parse(chat)
    marks_BN = None if ids_BN is None else question.turn_marks(ids_BN, tokens)
    known = current_videos()
    if shared and ids_BN is not None and not known.told:
        pictures.check_frames(ids_BN, video_BN, tokens)
    some = slice(None, None, known.copies)  # copies of a prompt are laid out as the first of them
    if positions_RBN is not None and positions_RBN.shape[1] > 1:
        positions_RBN = positions_RBN[:, some]
    marks_BN, ids_BN = (None if x is None else x[some] for x in (marks_BN, ids_BN))
    frame_BN, cell_BN = layout.video_layout(
        video_BN[some], positions_RBN, cells_per_frame, trailing, marks_BN, known.frames, known.cell_V, ids_BN
    )
    return frame_BN.repeat_interleave(known.copies, 0), cell_BN.repeat_interleave(known.copies, 0)


@fake(video_layout)
def _(video_BN: Tensor) -> tuple[Tensor, Tensor]:
    return (
        video_BN.new_empty(video_BN.shape, dtype=torch.long),
        video_BN.new_empty(video_BN.shape, dtype=torch.long),
    )


@operator("question_tokens")
def question_tokens(
    ids_BN: Tensor | None, frame_BN: Tensor, cell_BN: Tensor, valid_BN: Tensor | None, chat: str
) -> Tensor:
    """See :func:`segmo.runtime.question.question_tokens`; ``chat`` is its :class:`ChatTokens` as text."""
    return question.question_tokens(ids_BN, frame_BN, cell_BN, valid_BN, question.ChatTokens.parse(chat))


@fake(question_tokens)
def _(frame_BN: Tensor) -> Tensor:
    return frame_BN.new_empty(frame_BN.shape, dtype=torch.bool)


@operator("encoded_tokens")
def encoded_tokens(embeds_BNH: Tensor, cell_BN: Tensor) -> Tensor:
    """See :func:`segmo.runtime.encoded.encoded_tokens`."""
    return encoded.encoded_tokens(embeds_BNH, cell_BN)


@fake(encoded_tokens)
def _(cell_BN: Tensor) -> Tensor:
    return cell_BN.new_empty(cell_BN.shape, dtype=torch.bool)


@operator("encoded_cells")
def encoded_cells(cell_BN: Tensor, encoded_BN: Tensor) -> Tensor:
    """Cells with -1, as for text, at tokens whose frame was not encoded."""
    return torch.where(encoded_BN, cell_BN, -1)


@fake(encoded_cells)
def _(cell_BN: Tensor) -> Tensor:
    return torch.empty_like(cell_BN)


@operator("take_rows")
def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The given rows of a tensor."""
    return x.index_select(0, rows)


@fake(take_rows)
def _(x: Tensor, rows: Tensor) -> Tensor:
    return x.new_empty((rows.shape[0], *x.shape[1:]))


@operator("place_rows")
def place_rows(kept: Tensor, rows: Tensor, total: int) -> Tensor:
    """See :func:`segmo.runtime.encoded.place_rows`."""
    return encoded.place_rows(kept, rows, total)


@fake(place_rows)
def _(kept: Tensor, total: int) -> Tensor:
    return kept.new_empty((total, *kept.shape[1:]))


def scan_kernel(embeds_BNH: Tensor) -> str:
    """Name of ``scan_video``'s generated implementation for such features.

    Raises:
        KernelError: there is none.
    """
    return kernel_name(render(generated_scan.spec_for(embeds_BNH)))


@operator("scan_video")
def scan_video(
    embeds_BNH: Tensor, frame_BN: Tensor, cell_BN: Tensor, encoded_BN: Tensor | None, implementation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`segmo.runtime.features.scan_video`; ``encoded_BN`` tells which tokens are there at all."""
    generated = runs_generated(implementation, lambda: scan_kernel(embeds_BNH))
    scan = generated_scan.scan_video if generated else features.scan_video
    if encoded_BN is None:
        return scan(embeds_BNH, frame_BN, cell_BN)
    return encoded.scan_encoded(scan, embeds_BNH, frame_BN, cell_BN, encoded_BN)


@fake(scan_video)
def _(embeds_BNH: Tensor, frame_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (frame_BN.shape, frame_BN.shape, (frame_BN.shape[0], embeds_BNH.shape[2]))
    novelty_BN, similarity_BN, mean_BH = (embeds_BNH.new_empty(shape, dtype=torch.float32) for shape in shapes)
    return novelty_BN, similarity_BN, mean_BH


@operator("scene_novelty")
def scene_novelty(
    embeds_BNH: Tensor,
    novelty_BN: Tensor,
    frame_BN: Tensor,
    cell_BN: Tensor,
    scene_BN: Tensor,
    encoded_BN: Tensor | None,
    implementation: str,
) -> Tensor:
    """See :func:`segmo.runtime.novelty.scene_novelty`."""
    compare = token_distance(embeds_BNH, implementation)
    return novelty.scene_novelty(embeds_BNH, novelty_BN, frame_BN, cell_BN, scene_BN, encoded_BN, compare)


def token_distance(embeds_BNH: Tensor, implementation: str) -> novelty.Compare:
    """How tokens are compared by an implementation of ``scene_novelty``, which takes the kernels of ``scan_video``."""
    generated = runs_generated(implementation, lambda: scan_kernel(embeds_BNH))
    return generated_scan.distance_to if generated else novelty.distance_to


@fake(scene_novelty)
def _(novelty_BN: Tensor) -> Tensor:
    return torch.empty_like(novelty_BN)


@operator("find_scenes")
def find_scenes(
    similarity_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int, encoded_BN: Tensor | None = None
) -> Tensor:
    """See :func:`segmo.runtime.scenes.find_scenes`; ``encoded_BN`` tells which tokens are there at all."""
    if encoded_BN is None:
        return scenes.find_scenes(similarity_BN, frame_BN, cell_BN, max_scenes)
    return encoded.find_encoded_scenes(scenes.find_scenes, similarity_BN, frame_BN, cell_BN, encoded_BN, max_scenes)


@fake(find_scenes)
def _(similarity_BN: Tensor, frame_BN: Tensor) -> Tensor:
    return torch.empty_like(frame_BN, device=similarity_BN.device)


@operator("embedding_relevance")
def embedding_relevance(
    embeds_BNH: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    max_scenes: int,
    frame_BN: Tensor | None = None,
    mean_BH: Tensor | None = None,
) -> Tensor:
    """See :func:`segmo.runtime.relevance.embedding_relevance`."""
    return relevance.embedding_relevance(
        embeds_BNH, scene_BN, cell_BN, question_BN, max_scenes, frame_BN=frame_BN, mean_BH=mean_BH
    )


@fake(embedding_relevance)
def _(embeds_BNH: Tensor, scene_BN: Tensor, max_scenes: int) -> Tensor:
    return embeds_BNH.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


def question_kernel(q_BAND: Tensor, k_BGND: Tensor) -> str:
    """Name of ``attention_relevance``'s generated implementation for such queries and keys.

    Raises:
        KernelError: there is none.
    """
    return kernel_name(render(generated_question.spec_for(q_BAND, k_BGND)))


@operator("attention_relevance")
def attention_relevance(
    q_BAND: Tensor,
    k_BGND: Tensor,
    scene_BN: Tensor,
    cell_BN: Tensor,
    question_BN: Tensor,
    valid_BN: Tensor | None,
    scale: float,
    max_scenes: int,
    implementation: str,
) -> Tensor:
    """See :func:`segmo.runtime.asking.attention_relevance`."""
    arguments = (q_BAND, k_BGND, scene_BN, cell_BN, question_BN, valid_BN, scale, max_scenes)
    if runs_generated(implementation, lambda: question_kernel(q_BAND, k_BGND)):
        return generated_question.attention_relevance(*arguments)
    return asking.attention_relevance(*arguments)


@fake(attention_relevance)
def _(q_BAND: Tensor, scene_BN: Tensor, max_scenes: int) -> Tensor:
    return q_BAND.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


@operator("external_relevance")
def external_relevance(scene_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    """Relevance from the scores handed in by :func:`segmo.external_scores` for the running call."""
    return relevance.external_relevance(external.current_scores(), scene_BN, frame_BN, cell_BN, max_scenes)


@fake(external_relevance)
def _(scene_BN: Tensor, max_scenes: int) -> Tensor:
    return scene_BN.new_empty((scene_BN.shape[0], max_scenes), dtype=torch.float32)


@operator("segment_ids")
def segment_ids(
    frame_BK: Tensor, scene_BK: Tensor, mode: str, novelty_BK: Tensor | None = None, cell_BK: Tensor | None = None
) -> Tensor:
    """See :func:`segmo.runtime.segments.segment_ids`."""
    return segments.segment_ids(frame_BK, scene_BK, mode, novelty_BK, cell_BK)


@fake(segment_ids)
def _(frame_BK: Tensor) -> Tensor:
    return torch.empty_like(frame_BK)


@operator("context_tokens")
def context_tokens(
    frame_BK: Tensor, scene_BK: Tensor, segment_BK: Tensor, relevance_BS: Tensor | None, scenes: int, tails: int
) -> Tensor:
    """See :func:`segmo.runtime.segments.context_tokens`."""
    return segments.context_tokens(frame_BK, scene_BK, segment_BK, relevance_BS, scenes, tails)


@fake(context_tokens)
def _(frame_BK: Tensor) -> Tensor:
    return frame_BK.new_empty(frame_BK.shape, dtype=torch.bool)


@operator("attention_schedule")
def attention_schedule(segment_BK: Tensor, context_BK: Tensor | None, valid_BK: Tensor | None) -> Tensor:
    """See :func:`segmo.runtime.schedule.attention_schedule`."""
    return schedule.attention_schedule(segment_BK, context_BK, valid_BK)


@fake(attention_schedule)
def _() -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.long)


@operator("segment_attention")
def segment_attention(
    q_BAKD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, schedule: Tensor, scale: float, implementation: str
) -> Tensor:
    """Segment attention, (B, A, K, D) laid out (B, K, A, D).

    ``implementation`` is a name from :func:`segmo.runtime.attention.choice.choose`; a generated kernel's name
    holds the hash of its source.
    """
    q, k, v = one_dtype(q_BAKD, k_BGKD, v_BGKD)
    out = attention_implementation(implementation)(q, k, v, schedule, scale)
    return out.to(q_BAKD.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # free where it is laid out so already


@fake(segment_attention)
def _(q_BAKD: Tensor, v_BGKD: Tensor) -> Tensor:
    batch, heads, length, _ = q_BAKD.shape
    return q_BAKD.new_empty((batch, length, heads, v_BGKD.shape[3])).transpose(1, 2)
