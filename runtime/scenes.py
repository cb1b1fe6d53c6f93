"""Scenes: runs of frames between sudden drops of frame similarity (CAS, step 1).

Legend: B batch, N prompt tokens, F frames.

The rule is that of an adaptive cut detector: a frame starts a scene where its distance to the previous frame
stands out from the average distance in a window around it, so slow camera motion does not cut and a cut
inside motion does. Where one cut follows another none stands out from its neighbours, so what is about as sharp as
the sharpest cut found is a cut as well. Another video always starts another scene.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segmo.runtime.layout import frame_heads, video_starts

WINDOW = 2  # frames on each side in the local average
RATIO = 2.0  # a start's distance is at least this many times the local average ...
MIN_DISTANCE = 0.01  # ... and at least this, so that noise in a still scene does not cut
ALIKE = 0.25  # a distance of this part of the sharpest cut's is a cut too: in a quick row of cuts none stands out
FAINT = 0.1  # ... and one of less than this part is none, but something that moves within a scene
MAX_SCENES = 128


def scene_starts(distance_F: Tensor, first_F: Tensor, max_scenes: int) -> list[int]:
    """Frames that start a scene, ascending, always with frame 0.

    Args:
        distance_F: 1 - cosine of each frame to the previous one, (F,); ignored where ``first_F``.
        first_F: whether a frame is the first one of its video, (F,) bool. It starts a scene: no scene spans
            videos.
        max_scenes: at most this many scenes; first frames and then the sharpest cuts are kept, ties by order.
    """
    known = (~first_F).double()  # a first frame has no predecessor, so it does not count in any average
    distance = distance_F.double() * known
    kernel = torch.ones(1, 1, 2 * WINDOW + 1, dtype=torch.double)
    kernel[0, 0, WINDOW] = 0
    around, count = torch.nn.functional.conv1d(torch.stack([distance, known])[:, None], kernel, padding=WINDOW)[:, 0]
    local = around / count.clamp(min=1)
    stands_out = (distance >= RATIO * local) & (distance >= MIN_DISTANCE)
    sharpest = distance[stands_out].max() if bool(stands_out.any()) else distance.new_tensor(torch.inf)
    is_start = first_F | (stands_out & (distance >= FAINT * sharpest)) | (distance >= ALIKE * sharpest)
    sharpness = (distance / local.clamp(min=1e-12)).masked_fill(first_F, torch.inf)
    cuts = is_start.nonzero()[:, 0]
    order = torch.argsort(sharpness[cuts], descending=True, stable=True)
    return sorted(cuts[order[:max_scenes]].tolist())


def head_frames(frame_V: Tensor, scene_V: Tensor) -> Tensor:
    """First frame of each scene, (S,) int64; larger than any frame for a scene without tokens.

    Args:
        frame_V, scene_V: frame and scene of the tokens of one row, neither ``SINK`` nor ``QUERY``, in order.
    """
    scenes = int(scene_V[-1]) + 1
    unset = torch.full((scenes,), int(frame_V[-1]) + 1, device=frame_V.device)
    return unset.scatter_reduce(0, scene_V, frame_V, "amin")


def find_scenes(similarity_BN: Tensor, frame_BN: Tensor, cell_BN: Tensor, max_scenes: int) -> Tensor:
    """Scene of every prompt token, (B, N) int64, with ``SINK`` and ``QUERY`` kept from ``frame_BN``.

    Args:
        similarity_BN: from :func:`segmo.runtime.features.scan_video`.
        frame_BN, cell_BN: from :func:`segmo.runtime.layout.video_layout`.
        max_scenes: S_max.
    """
    scene_BN = frame_BN.clone()
    for row in range(frame_BN.shape[0]):
        inside = frame_BN[row] >= 0
        if not bool(inside.any()):
            continue
        distance_F = 1 - similarity_BN[row, frame_heads(frame_BN[row], cell_BN[row])]
        starts = scene_starts(distance_F.cpu(), video_starts(frame_BN[row], cell_BN[row]).cpu(), max_scenes)
        boundaries = torch.tensor(starts[1:], device=frame_BN.device)
        scene_BN[row, inside] = torch.bucketize(frame_BN[row, inside], boundaries, right=True)
    return scene_BN
