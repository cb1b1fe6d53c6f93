"""Scores of frames before the encoder: handed in, or from the model's own features of a few frames and its words.

Legend: F frames of a video, S scenes, C tokens of a frame, Q question tokens, R rows of features, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segmo.errors import PromptError
from segmo.runtime.layout import QUERY
from segmo.runtime.relevance import embedding_relevance
from segmo.upstream.prompt import Prompt
from segmo.upstream.video_call import VideoCall

GRID = 16  # a picture is looked at as so many by so many averages


def descriptors(call: VideoCall) -> list[Tensor]:
    """What the frames of each video look like, (F, D) fp32: colours averaged over each patch, or over a coarse grid."""
    pixels, found = call.pixels, []
    places = zip(call.pixel_rows.starts(), call.pixel_rows.frames, call.pixel_rows.rows, strict=True)
    for start, frames, rows in places:
        part = pixels[start : start + frames * rows].float()
        if part.dim() == 4:
            seen = torch.nn.functional.adaptive_avg_pool2d(part, min(GRID, *part.shape[2:]))
        else:  # a patch's pixels lie channel by channel, or else in three bands
            seen = torch.unflatten(part, -1, (3, -1)).mean(-1)
        found.append(seen.reshape(frames, -1))
    return found


def frame_scores(scores: Tensor, call: VideoCall) -> list[Tensor]:
    """The handed-in scores of each video's frames; the same for every row when they were given for one.

    Raises:
        PromptError: there are none, they are not finite, or there is not one for each frame.
    """
    frames = list(call.pixel_rows.frames)
    flat = scores.flatten()
    if flat.numel() == 0:
        raise PromptError(
            'scorer="external" needs scores: wrap the call in `with segmo.external_scores(scores): ...`, one score per '
            "frame"
        )
    if not bool(torch.isfinite(flat).all()):
        raise PromptError("the external scores hold NaN or infinity")
    if sum(frames) % flat.numel():
        raise PromptError(
            f"{flat.numel()} external scores do not fit the {sum(frames)} frames of the prompt's videos; to choose "
            "frames before the encoder there must be one per frame (a temporal patch: two sampled frames for Qwen-VL)"
        )
    return list(torch.split(flat.repeat(sum(frames) // flat.numel()), frames))


def rows_of_videos(call: VideoCall, prompt: Prompt, video_token: int) -> list[int]:
    """The row of the batch that each video stands in.

    Raises:
        PromptError: the prompt's video tokens are not those of these videos.
    """
    counts = (prompt.ids == video_token).sum(1).tolist()
    shown_T = prompt.shown(call.token_rows).video_T
    sizes = torch.bincount(shown_T, minlength=len(call.token_rows.frames)).tolist()
    if sum(counts) != sum(sizes):
        raise PromptError(
            f"the prompt holds {sum(counts)} video tokens and its videos {sum(sizes)}; "
            "leave the processor's placeholders be"
        )
    ends = torch.tensor(counts).cumsum(0)
    starts = torch.tensor(sizes).cumsum(0) - torch.tensor(sizes)
    found: list[int] = torch.searchsorted(ends, starts, right=True).tolist()
    return found


def words_and_features(
    words_QH: Tensor, features_RH: Tensor, call: VideoCall, video: int, scored: Sequence[int] | Tensor
) -> Tensor:
    """Relevance of each scene from one encoded frame of it, (S,) fp32, by the scorer ``embedding``.

    Args:
        words_QH: embeddings of the question's tokens.
        features_RH: features of all videos; read at the scored frames only.
        video: which video.
        scored: the encoded frame of each scene.
    """
    frame_S = torch.as_tensor(scored)
    cells, start = call.token_rows.rows[video], call.token_rows.starts()[video]
    rows = (start + frame_S[:, None] * cells + torch.arange(cells)).flatten().to(features_RH.device)
    return words_and_scenes(words_QH, torch.unflatten(features_RH[rows], 0, (len(frame_S), cells)))


def words_and_scenes(words_QH: Tensor, features_SCH: Tensor) -> Tensor:
    """The same from the features of the frames alone, C tokens each."""
    scenes, cells = features_SCH.shape[:2]
    embeds = torch.cat([features_SCH.flatten(0, 1), words_QH.to(features_SCH)])[None]
    words = len(words_QH)
    scene = torch.cat([torch.arange(scenes).repeat_interleave(cells), torch.full((words,), QUERY)])
    cell = torch.cat([torch.arange(cells).repeat(scenes), torch.full((words,), -1)])
    on = features_SCH.device
    found = embedding_relevance(embeds, scene[None].to(on), cell[None].to(on), (cell < 0)[None].to(on), scenes)
    return found[0].cpu()
