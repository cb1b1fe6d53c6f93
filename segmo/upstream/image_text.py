"""Relevance of pictures to a question by CLIP or SigLIP: the paper's own way to score a scene.

Source: SegMo (CVPR 2026), query relevance; Radford et al., "Learning Transferable Visual Models From Natural Language
Supervision" (2021); Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023).

Legend: P pictures, C chunks of the question, D size of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from segmo.errors import OptionError

BATCH = 16  # pictures encoded at a time
OVERLAP = 4  # a chunk shares a quarter of its tokens with the one before, so that no phrase is only ever seen in halves


class ImageTextScorer:
    """Cosine of pictures with a question in the space of an image-text model.

    A question longer than the text model reads (77 tokens for CLIP, 64 for SigLIP) is not cut: it is read in
    overlapping chunks, and a picture scores as its best chunk does (the maximum: most of a long question, such as the
    answers to choose from, is not about any one picture).

    Args:
        model: with ``get_text_features`` and ``get_image_features``, such as ``CLIPModel`` or ``SiglipModel``.
        tokenizer: the model's tokenizer.
        image_processor: the model's image processor.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image_processor = image_processor

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> ImageTextScorer:
        """The model in a folder, by transformers' own ``from_pretrained``; nothing is downloaded.

        Raises:
            OptionError: the folder holds no model of this kind.
        """
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        load_tokenizer: Any = AutoTokenizer.from_pretrained
        load_processor: Any = AutoImageProcessor.from_pretrained
        try:
            model: Any = AutoModel.from_pretrained(path, local_files_only=True)
            tokenizer = load_tokenizer(path, local_files_only=True)
            processor = load_processor(path, local_files_only=True)
        except (OSError, ValueError) as error:
            raise OptionError(f"{path} holds no image-text model that transformers can read: {error}") from error
        if not hasattr(model, "get_text_features"):
            raise OptionError(f"{path} holds a {type(model).__name__}; relevance needs a CLIP or SigLIP model")
        return cls(model.to(device).eval(), tokenizer, processor)

    @property
    def longest(self) -> int:
        """Tokens that the text model reads at a time, with its special ones."""
        return int(self.model.config.text_config.max_position_embeddings)

    def chunks(self, question: str) -> Tensor:
        """Token ids of the question in pieces that the text model can read, (C, length) int64, padded."""
        room = self.longest - self.tokenizer.num_special_tokens_to_add()
        ids: Tensor = self.tokenizer(
            question,
            truncation=True,
            max_length=self.longest,
            stride=room // OVERLAP,
            return_overflowing_tokens=True,
            padding="max_length",
            return_tensors="pt",
        )["input_ids"]
        return ids

    @torch.no_grad()
    def text_features(self, question: str) -> Tensor:
        """Unit features of each chunk, (C, D) fp32."""
        # No attention mask: both kinds of models were trained without one, on padded text.
        features = self.model.get_text_features(input_ids=self.chunks(question).to(self.model.device))
        return normalize(_pooled(features).float(), dim=-1)

    @torch.no_grad()
    def image_features(self, pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Unit features of each picture, (P, D) fp32.

        Args:
            pictures: (height, width, 3) uint8 RGB each.
        """
        found = []
        for start in range(0, len(pictures), BATCH):
            batch = list(pictures[start : start + BATCH])
            pixels = self.image_processor(batch, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
            found.append(_pooled(self.model.get_image_features(pixels.to(self.model.device, self.model.dtype))).float())
        return normalize(torch.cat(found), dim=-1)

    def score(self, pictures: Sequence[NDArray[np.uint8]], question: str) -> Tensor:
        """Relevance of each picture to the question, (P,) fp32 on the CPU; 0 for all without a question."""
        if not question.strip():
            return torch.zeros(len(pictures), dtype=torch.float32)
        return self.score_features(self.image_features(pictures), question)

    def encode_frames(self, frames: Sequence[NDArray[np.uint8]]) -> Tensor:
        """As :meth:`image_features` for the first picture of each frame (pictures, height, width, 3)."""
        return self.image_features([pictures[0] for pictures in frames])

    def score_features(self, features: Tensor, question: str) -> Tensor:
        """As :meth:`score`, for pictures whose features (P, D) are known."""
        if not question.strip():
            return torch.zeros(len(features), dtype=torch.float32)
        text_CD = self.text_features(question)
        return (features.to(text_CD) @ text_CD.T).amax(dim=1).cpu()


def _pooled(features: Any) -> Tensor:
    """The pooled features, which transformers 5 returns inside an output object."""
    pooled: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return pooled
