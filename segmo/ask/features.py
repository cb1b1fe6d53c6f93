"""What is known of an encoded video, and its form on disk.

Legend: V video tokens, H hidden size, N prompt tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from segmo.ask.checkpoint import Checkpoint
from segmo.ask.prompt import VideoText, chat, fill_in, short_ids
from segmo.compat.arguments import with_arguments


@dataclass(frozen=True)
class VideoFacts:
    """What a reader of the answer may want to know of the video.

    Attributes:
        frames: sampled frames that were encoded.
        fps: sampled frames per second.
        duration: of the file, in seconds.
        cuts: seconds at which a scene after the first starts.
        notes: what a reader should know of the file.
        seconds: times of the frames, ascending.
        damaged: something of the file could not be decoded.
    """

    frames: int
    fps: float
    duration: float
    cuts: tuple[float, ...]
    notes: tuple[str, ...]
    seconds: tuple[float, ...]
    damaged: bool = False


@dataclass(frozen=True)
class Features:
    """A video as the language model takes it.

    Attributes:
        pooled: features of all video tokens, (V, H); (1, V, H) for LLaVA-OneVision.
        deepstack: features that are added again in the first layers, (V, H) each; only Qwen3-VL has them.
        text: what stands for the video in a prompt.
        extras: further inputs of the model that belong to the video, such as ``video_grid_thw``.
        typed: the model takes the kind of each token, ``mm_token_type_ids``.
        facts: of the video.
    """

    pooled: Tensor
    deepstack: tuple[Tensor, ...]
    text: VideoText
    extras: Mapping[str, Tensor]
    typed: bool
    facts: VideoFacts

    def inputs(self, loaded: Checkpoint, question: str) -> dict[str, Any]:
        """What ``generate`` takes for a question about this video.

        Raises:
            PromptError: the question holds the model's video token.
            VersionError: the model takes no ``mm_encoder_outputs``.
        """
        device = loaded.model.device
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.prompt(loaded, question).items()}
        return with_arguments(loaded.model, moved, mm_encoder_outputs={"video": self._encoder_output(device)})

    def prompt(self, loaded: Checkpoint, question: str) -> dict[str, Any]:
        """The inputs but the features, on the CPU.

        Raises:
            PromptError: the question holds the model's video token.
        """
        token = loaded.video_token
        ids = fill_in(self.text, short_ids(loaded.processor, chat(loaded.processor, question), token), token)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **self.extras}
        return {**inputs, "mm_token_type_ids": torch.where(ids == token, 2, 0)} if self.typed else inputs

    def _encoder_output(self, device: torch.device) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        pooled: Any = self.pooled.to(device)
        pooled = (pooled,) if pooled.ndim == 2 else pooled
        if self.deepstack:
            layers: Any = [(layer.to(device),) for layer in self.deepstack]  # each split by video, and there is one
            return BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=layers)
        return BaseModelOutputWithPooling(pooler_output=pooled)

    def to_disk(self) -> tuple[dict[str, Tensor], str]:
        """Tensors by name, and the rest as JSON."""
        tensors = {"pooled": self.pooled, "ids": self.text.ids}
        tensors |= {f"deepstack.{number}": layer for number, layer in enumerate(self.deepstack)}
        tensors |= {f"extra.{name}": tensor for name, tensor in self.extras.items()}
        rest = {
            "before": self.text.before,
            "after": self.text.after,
            "deepstack": len(self.deepstack),
            "typed": self.typed,
            "facts": asdict(self.facts),
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, json.dumps(rest)

    @classmethod
    def from_disk(cls, tensors: Mapping[str, Tensor], rest: str) -> Features:
        """The inverse of :meth:`to_disk`."""
        known = json.loads(rest)
        facts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in known["facts"].items()
        }
        return cls(
            tensors["pooled"],
            tuple(tensors[f"deepstack.{number}"] for number in range(known["deepstack"])),
            VideoText(tensors["ids"], known["before"], known["after"]),
            {name[len("extra.") :]: tensor for name, tensor in tensors.items() if name.startswith("extra.")},
            known["typed"],
            VideoFacts(**facts),
        )
