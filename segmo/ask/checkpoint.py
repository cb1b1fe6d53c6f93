"""A model with its processor, from a folder or the one that ships with SegMo."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from segmo.checked import device_named, dtype_named
from segmo.errors import OptionError
from segmo.families import family_of, takes_video
from segmo.pretrained import load_model

PIXELS = 768 * 28 * 28  # of a frame, for models whose processor sets no limit
NOTE = (
    "This is the small model that ships with SegMo (a million parameters). It was trained on SceneQA, a synthetic "
    "task, and answers its five kinds of questions about such videos only (docs/sceneqa.md); about any other video its "
    "answer means nothing. --model PATH takes a real one."
)


@dataclass(frozen=True)
class Checkpoint:
    """A model that answers.

    Attributes:
        model, processor: of transformers.
        fingerprint: changes when the model or how it prepares frames changes; "" keeps its features off the disk.
        fps: frames that it wants per second, unless told otherwise.
        size: (width, height) of the frames it was trained on; None where any will do.
        max_pixels: of a frame, without ``size``.
        note: what a reader of its answers must know.
        folder: where it was read from.
    """

    model: Any
    processor: Any
    fingerprint: str = ""
    fps: float = 2.0
    size: tuple[int, int] | None = None
    max_pixels: int | None = PIXELS
    note: str = ""
    folder: Path | None = None

    @property
    def takes_features(self) -> bool:
        """Whether SegMo knows how a video lies in the prompt of its family, so that features serve many questions."""
        return family_of(self.model) is not None

    @property
    def video_token(self) -> int:
        """Id of the token that stands for a video in a prompt."""
        token: int = self.model.config.video_token_id
        return token

    @property
    def placeholders(self) -> list[int]:
        """Ids of the tokens that features of pictures take the place of."""
        names = [f"{kind}_token_{form}" for kind in ("video", "image") for form in ("id", "index")]
        found = [getattr(self.model.config, name, None) for name in names]
        return [token for token in found if token is not None]


def load(path: Path | None = None, dtype: str = "auto", device: str | None = None) -> Checkpoint:
    """The model in a folder, or the one that ships with SegMo when there is none.

    Args:
        path: a folder with a Video LLM and its processor, as ``save_pretrained`` writes it.
        dtype: "auto" for the dtype of the weights, or a name such as "bfloat16".
        device: such as "cuda"; a GPU if there is one when None.

    Raises:
        OptionError: the folder holds no such model, or there is no such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    device_named(device)  # now, and not after the weights have been read
    from segmo.sceneqa.model import MODEL_PATH

    if path is None or path.resolve() == MODEL_PATH.resolve():
        return _embedded(device, dtype)
    if not (path / "config.json").is_file():
        raise OptionError(f"{path} is not a folder with a model (no config.json in it)")
    from transformers import AutoProcessor

    auto_processor: Any = AutoProcessor
    try:
        processor = auto_processor.from_pretrained(path, local_files_only=True)
        model = load_model(path, dtype, local_files_only=True)
    except (ImportError, OSError, ValueError) as error:
        raise OptionError(f"{path} holds no Video LLM that transformers can read: {error}") from error
    if not takes_video(model):
        raise OptionError(f"{path} holds a {model.config.model_type!r}, which takes no video")
    if getattr(processor, "video_processor", None) is None:
        raise OptionError(f"{path} has no video processor beside its model")
    limit = _largest(processor.video_processor)
    return Checkpoint(model.to(device), processor, fingerprint(path, dtype), max_pixels=limit, folder=path)


def _largest(processor: Any) -> int:
    """Pixels of a frame that a video processor makes use of, at most."""
    size = getattr(processor, "size", None)
    longest, shortest = getattr(size, "longest_edge", None), getattr(size, "shortest_edge", None)
    if hasattr(processor, "merge_size"):  # its "edges" are numbers of pixels
        return min(longest or PIXELS, PIXELS)
    edge = getattr(size, "height", None) or longest or shortest
    return math.ceil(4 * edge * edge) if edge else PIXELS


def _embedded(device: str, dtype: str) -> Checkpoint:
    from segmo.sceneqa.model import MODEL_PATH, load_model
    from segmo.sceneqa.render import HEIGHT, PICTURES, WIDTH

    model, processor = load_model()
    dtype = "float32" if dtype == "auto" else dtype
    return Checkpoint(
        torch.nn.Module.to(model, device, dtype_named(dtype)),
        processor,
        fingerprint(MODEL_PATH, dtype),
        fps=PICTURES,  # a frame of the language model is a second
        size=(WIDTH, HEIGHT),
        note=NOTE,
        folder=MODEL_PATH,
    )


_SMALL, _WEIGHTS = (".json", ".jinja", ".txt", ".model"), (".safetensors", ".bin", ".pt", ".pth")


def fingerprint(path: Path, dtype: str) -> str:
    """A hash of a model's folder: small files by their bytes, weights by name, size and times of writing."""
    import transformers

    found = hashlib.sha256(f"{transformers.__version__} {torch.__version__} {dtype}".encode())
    for file in sorted(path.iterdir()):
        if file.suffix in _SMALL:
            found.update(file.name.encode() + file.read_bytes())
        elif file.suffix in _WEIGHTS:
            state = file.stat()  # a copy can keep the time of writing, and not the time of its own change
            found.update(f"{file.name} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}".encode())
    return found.hexdigest()


def weights_hash(path: Path) -> str:
    """SHA-256 of all that a model's folder holds, byte for byte; seconds for a large model."""
    found = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (*_SMALL, *_WEIGHTS):
            with file.open("rb") as opened:
                found.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()
