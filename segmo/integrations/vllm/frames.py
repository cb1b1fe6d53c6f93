"""Frames by scene, in front of the vision encoder: the video loader ``segmo`` of vLLM, for files that come over HTTP.

A file is decoded once in small pictures, in which scenes are found and frames are chosen, and the chosen ones are read
again at their full size. A loader does not know the prompt, so no question is read here: frames are shared out by how
much new each scene shows (:mod:`segmo.runtime.frame_budget`). What the question is about is chosen behind the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import envs
from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoLoader

from segmo.errors import OptionError, PromptError
from segmo.upstream.clips import ClipFrames

NAME = "segmo"
OPTIONS = ("num_frames", "fps", "max_frames", "pictures")
SMALL = 128 * 128  # pixels of a frame while frames are chosen
REMEDY = "reading videos by scene needs PyAV, OpenCV and PySceneDetect: pip install 'segmo[vllm]'"


class NoQuestion:
    """Scores every scene alike."""

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        return torch.zeros(len(frames), 1, dtype=torch.float32)

    def score_features(self, features: Tensor, question: str) -> Tensor:
        del question
        return torch.zeros(len(features), dtype=torch.float32)


@VIDEO_LOADER_REGISTRY.register(NAME)
class SceneFrames(VideoLoader):  # type: ignore[misc]  # vLLM is not installed where types are checked
    """Chooses frames by scene; ``--media-io-kwargs '{"video": {"video_backend": "segmo", "num_frames": 64}}'``."""

    @classmethod
    def load_bytes(cls, data: bytes, **options: Any) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """The chosen frames, (F, height, width, 3) uint8 RGB, and where they stand in the film.

        Args:
            data: a video file.
            options: ``num_frames``, how many frames of the file stay at most (-1: all that are sampled); ``fps``,
                frames a second to choose among (2); ``max_frames``, at most so many to choose among, spread over the
                film (768); ``pictures``, how many neighbours make one frame of the language model (2, as in Qwen-VL).

        Raises:
            OptionError: an option is unknown or out of range, or what it needs is not installed.
            PromptError: the file cannot be read as a video.
        """
        wanted, fps, most, pictures = _checked(options)
        try:
            from segmo.video import fetch, read
            from segmo.video.source import VideoError
        except ImportError as error:
            raise OptionError(f"{REMEDY} ({error})") from error
        limit = envs.VLLM_MAX_IMAGE_PIXELS if envs.VLLM_MAX_IMAGE_PIXELS > 0 else None
        try:
            film = read(data, fps, max_pixels=SMALL, max_frames=most)
            places = film.places
            chosen = np.arange(len(places))
            if wanted is not None and wanted < len(places):
                chosen = ClipFrames(max(1, wanted // pictures), NoQuestion(), pictures)(film, "")
            if film.damaged:  # there, seeking may end at another frame
                frames = read(data, fps, max_pixels=limit, max_frames=most, scenes=None).frames[chosen]
            else:
                frames = fetch(data, film.seconds[chosen].tolist(), max_pixels=limit, index=film.index)
        except VideoError as error:
            raise PromptError(str(error)) from error  # an error 400 of the request
        return frames, {
            "total_num_frames": places[-1] + 1,
            "fps": film.fps,
            "duration": film.duration,
            "video_backend": NAME,
            "frames_indices": [places[at] for at in chosen],
            "do_sample_frames": False,
        }


def _checked(options: dict[str, Any]) -> tuple[int | None, float, int, int]:
    """How many frames stay, None for all; frames a second; frames at most; pictures of a frame."""
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise OptionError(f"the video loader {NAME!r} has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}")
    wanted, fps = options.get("num_frames", -1), options.get("fps", 2.0)
    most, pictures = options.get("max_frames", 768), options.get("pictures", 2)
    for name, value in (("num_frames", wanted), ("max_frames", most), ("pictures", pictures)):
        if not isinstance(value, int) or (value < 1 and not (name == "num_frames" and value == -1)):
            raise OptionError(f"{name} of the video loader {NAME!r} is {value!r}; it must be a whole number from 1 on")
    if not isinstance(fps, int | float) or fps <= 0:
        raise OptionError(f"fps of the video loader {NAME!r} is {fps!r}; it must be more than 0")
    return None if wanted == -1 else wanted, float(fps), most, pictures
