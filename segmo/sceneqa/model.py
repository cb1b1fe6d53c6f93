"""The trained Video LLMs that ship with SegMo, their processor, and prompts for them.

Legend: Q questions about one video, N prompt tokens, V video tokens, H hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoProcessor, PreTrainedModel, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from segmo.compat.arguments import require_parameters
from segmo.errors import SegMoError
from segmo.sceneqa.questions import Question
from segmo.sceneqa.task import Difficulty

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MODEL_PATH = ASSETS / "sceneqa"
BUSY_MODEL_PATH = ASSETS / "sceneqa-busy"  # trained further, on the frames of the harder sets


def weights_for(difficulty: Difficulty) -> Path:
    """Folder of the weights that were trained on frames like those of this set."""
    return MODEL_PATH if difficulty.busy is None else BUSY_MODEL_PATH


def weights_label(model: PreTrainedModel) -> str:
    """What tells these weights from others on a table: their folder's name and a checksum over all of them."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return f"{Path(model.name_or_path or 'unnamed').name} {digest.hexdigest()[:8]}"


def load_model(path: Path = MODEL_PATH) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """The trained model in fp32 and its processor, by transformers' own ``from_pretrained``.

    Raises:
        SegMoError: the folder holds no model.
    """
    if not (path / "model.safetensors").is_file():
        raise SegMoError(f"there is no trained model in {path}; benchmarks/sceneqa/train.py makes one")
    model = Qwen2VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
    load: Any = AutoProcessor.from_pretrained  # it has no types
    processor = load(path)
    torch.nn.Module.train(model, False)
    return model, processor


@dataclass(frozen=True)
class Prompts:
    """Q questions about one video, as prompts of equal length.

    Attributes:
        video: number of the video within its split.
        input_ids: (Q, N).
        position_ids: M-RoPE positions, (3, Q, N).
        features: vision features of the video, (V, H).
        answer: token id of each right answer, (Q,).
        kinds: kind of each question.
        unseen: whether the question names a background that training never showed.
        grid: patches of the video, (1, 3): time, height, width.
    """

    video: int
    input_ids: Tensor
    position_ids: Tensor
    features: Tensor
    answer: Tensor
    kinds: tuple[str, ...]
    unseen: tuple[bool, ...]
    grid: Tensor

    def only(self, question: int) -> Prompts:
        """The prompt of one question alone."""
        row = slice(question, question + 1)
        return replace(
            self,
            input_ids=self.input_ids[row],
            position_ids=self.position_ids[:, row],
            answer=self.answer[row],
            kinds=self.kinds[row],
            unseen=self.unseen[row],
        )

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's ``forward``: the video goes in as features, once per question."""
        count = len(self.input_ids)
        video = VideoFeatures(pooler_output=(self.features.repeat(count, 1),))
        return {
            "input_ids": self.input_ids,
            "attention_mask": torch.ones_like(self.input_ids),
            "position_ids": self.position_ids,
            "mm_encoder_outputs": {"video": video},
            "use_cache": True,
            "logits_to_keep": 1,
        }


@dataclass
class VideoFeatures:
    """The part of the vision tower's output that the language model reads."""

    pooler_output: tuple[Tensor, ...]


def encode_pictures(
    model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor, pictures: NDArray[np.uint8]
) -> tuple[Tensor, Tensor]:
    """Vision features (V, H) and patch grid (1, 3) of a video, (2 * frames, height, width, 3) uint8."""
    prepare: Any = processor.video_processor
    inputs = prepare(videos=[pictures], return_tensors="pt")
    grid = inputs["video_grid_thw"]
    with torch.no_grad():
        features: Any = model.get_video_features(inputs["pixel_values_videos"], grid)
    return torch.cat(features.pooler_output), grid


def build_prompts(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    pictures: NDArray[np.uint8],
    questions: Sequence[Question],
    video: int = 0,
    *,
    text_first: bool = False,
) -> Prompts:
    """Prompts for questions about one video; the vision tower runs once.

    Args:
        model, processor: of :func:`load_model`.
        pictures: (2 * frames, height, width, 3) uint8.
        questions: of equal length.
        video: number of the video within its split.
        text_first: ask in front of the video, an order that the weights of ``MODEL_PATH`` were not trained on.

    Raises:
        VersionError: the model takes no ``mm_encoder_outputs``.
    """
    require_parameters(model, "mm_encoder_outputs", "position_ids")
    features, grid = encode_pictures(model, processor, pictures)
    tokenizer: Any = processor.tokenizer
    placeholder = model.config.video_token_id
    rows = []
    for question in questions:
        content = [{"type": "video"}, {"type": "text", "text": question.text}]
        chat: Any = [{"role": "user", "content": content[::-1] if text_first else content}]
        ids = tokenizer(processor.apply_chat_template(chat))["input_ids"]
        at = ids.index(placeholder)
        rows.append([*ids[:at], *[placeholder] * len(features), *ids[at + 1 :]])
    input_ids = torch.tensor(rows)
    positions, _ = model.model.get_rope_index(
        input_ids,
        mm_token_type_ids=2 * (input_ids == placeholder).int(),
        video_grid_thw=grid.expand(len(rows), 3),
    )
    return Prompts(
        video,
        input_ids,
        positions,
        features,
        torch.tensor(tokenizer.convert_tokens_to_ids([question.answer for question in questions])),
        tuple(question.kind for question in questions),
        tuple(question.unseen for question in questions),
        grid,
    )
