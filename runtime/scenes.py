"""Scenes: runs of frames between sudden drops of frame similarity (CAS, step 1).

Legend: B batch, N prompt tokens, F frames.

The rule is that of an adaptive cut detector: a frame starts a scene where its distance to the previous frame
stands out from the average distance in a window around it, so slow camera motion does not cut and a cut
inside motion does. Where one cut follows another none stands out from its neighbours, so what is about as sharp as
the sharpest cut found is a cut as well. Another video always starts another scene.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segmo.runtime.host import array, give, send
from segmo.runtime.video_tokens import VideoTokens

WINDOW = 2  # frames on each side in the local average
RATIO = 2.0  # a start's distance is at least this many times the local average ...
MIN_DISTANCE = 0.01  # ... and at least this, so that noise in a still scene does not cut
ALIKE = 0.25  # a distance of this part of the sharpest cut's is a cut too: in a quick row of cuts none stands out
FAINT = 0.1  # ... and one of less than this part is none, but something that moves within a scene
MAX_SCENES = 128


def starts_scene(distance_BF: Tensor, first_BF: Tensor, known_BF: Tensor, max_scenes: int) -> Tensor:
    """Whether a frame starts a scene, (B, F) bool, for rows of frames; nothing is waited for on a device.

    Args:
        distance_BF: 1 - cosine of each frame to the previous one; ignored where ``first_BF``.
        first_BF: whether a frame is the first one of its video. It starts a scene: no scene spans videos.
        known_BF: False behind a row's last frame.
        max_scenes: at most this many scenes in a row; first frames and then the sharpest cuts are kept, ties by order.
    """
    before_BF = (known_BF & ~first_BF).double()  # a first frame has no predecessor, so it is in no average
    distance_BF = (distance_BF.double() * before_BF).masked_fill(before_BF == 0, 0)
    around_BF, count_BF = _window_sum(distance_BF), _window_sum(before_BF)
    local_BF = around_BF / count_BF.clamp(min=1)
    stands_out = (distance_BF >= RATIO * local_BF) & (distance_BF >= MIN_DISTANCE)
    sharpest = torch.where(stands_out, distance_BF, -torch.inf).amax(dim=1, keepdim=True)
    sharpest = sharpest.masked_fill(sharpest == -torch.inf, torch.inf)
    cuts_BF = (stands_out & (distance_BF >= FAINT * sharpest)) | (distance_BF >= ALIKE * sharpest) | first_BF
    sharpness = (distance_BF / local_BF.clamp(min=1e-12)).masked_fill(first_BF, torch.inf)
    order_BF = torch.argsort(sharpness.masked_fill(~cuts_BF, -torch.inf), dim=1, descending=True, stable=True)
    chosen_BF = torch.zeros_like(cuts_BF).scatter_(1, order_BF[:, :max_scenes], True)
    return cuts_BF & chosen_BF


def _window_sum(x_BF: Tensor) -> Tensor:
    """Sum over the frames around each one, without itself."""
    frames, padded = x_BF.shape[1], torch.nn.functional.pad(x_BF, (WINDOW, WINDOW))
    places = [at for at in range(2 * WINDOW + 1) if at != WINDOW]
    return torch.stack([padded[:, at : at + frames] for at in places]).sum(0)


def scene_starts(distance_F: Tensor, first_F: Tensor, max_scenes: int) -> list[int]:
    """Frames of one row that start a scene, ascending, always with frame 0; arguments as of :func:`starts_scene`."""
    first_BF = first_F[None]
    flag_BF = starts_scene(distance_F[None], first_BF, torch.ones_like(first_BF), max_scenes)
    found: list[int] = np.flatnonzero(array(flag_BF)).tolist()
    return found


def head_frames(frame_V: Tensor, scene_V: Tensor, scenes: int | None = None) -> Tensor:
    """First frame of each scene, (S,) int64; larger than any frame for a scene without tokens.

    Args:
        frame_V, scene_V: frame and scene of the tokens of one row, neither ``SINK`` nor ``QUERY``, in order.
        scenes: S; up to the last token's scene if not given.
    """
    scenes = int(array(scene_V[-1:])[0]) + 1 if scenes is None else scenes
    unset = (frame_V[-1:] + 1).repeat(scenes)
    return unset.scatter_reduce(0, scene_V, frame_V, "amin")


def find_scenes(similarity_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    """Scene of every prompt token, (B, N) int64, with ``SINK`` and ``QUERY`` kept from ``frame_BN``.

    Where the similarity is; nothing is waited for.

    Args:
        similarity_BN: from :func:`segmo.runtime.features.scan_video`.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        max_scenes: S_max.
    """
    video, device = VideoTokens.of(frame_BN, cell_BN), similarity_BN.device
    if not len(video.at_T):
        return send(frame_BN.clone(), device)
    batch = frame_BN.shape[0]
    frames_B = np.bincount(video.row_F, minlength=batch)
    known_BF = np.arange(frames_B.max()) < frames_B[:, None]
    head_BF, first_BF = np.zeros(known_BF.shape, dtype=np.int64), np.zeros_like(known_BF)
    head_BF[known_BF], first_BF[known_BF] = video.at_T[video.head_T], video.first_F
    distance_BF = 1 - similarity_BN.flatten()[give(head_BF, device)]
    starts_BF = starts_scene(distance_BF, give(first_BF, device), give(known_BF, device), max_scenes)
    scene_BF, frame_BN = starts_BF.cumsum(dim=1) - 1, send(frame_BN, device)
    return torch.where(frame_BN >= 0, scene_BF.gather(1, frame_BN.clamp(min=0)), frame_BN)
