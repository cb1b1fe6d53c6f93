"""Ways to answer that the evaluation compares: the model as it is, and the model through SegMo.

Legend: Q prompts, N prompt tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

import segmo
from segmo.errors import SegMoError
from segmo.options import Options
from segmo.runtime.schedule import attention_schedule, visible_pairs
from segmo.sceneqa.model import Prompts, VideoFeatures

LSP_PASSES = ("segment-attention", "inject-context")


@dataclass(frozen=True)
class Answers:
    """What a method made of the prompts of one video.

    Attributes:
        logits: of the next token, (Q, vocabulary).
        kept: video tokens that reach the last layer.
        flops: of the language model's prefill, one prompt.
    """

    logits: Tensor
    kept: int
    flops: float


Answer = Callable[[Qwen2VLForConditionalGeneration, Prompts], Answers]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: as printed, without the budget.
        keep: fraction of the video tokens that is kept.
        answer: runs it on the prompts of one video.
        options: options of :func:`segmo.compile` under which ``answer`` runs; None for the model as it is.
    """

    name: str
    keep: float
    answer: Answer
    options: Mapping[str, Any] | None = field(default=None)

    @property
    def key(self) -> str:
        """Name of the row in result files."""
        return f"{self.name} @ {self.keep:g}"


@contextmanager
def compiled(model: Qwen2VLForConditionalGeneration, method: Method) -> Iterator[None]:
    """The model compiled as the method wants it, and as it was afterwards."""
    if method.options is not None:
        segmo.compile(model, **method.options)
    try:
        yield
    finally:
        if method.options is not None:
            segmo.uncompile(model)


def prefill_flops(model: Qwen2VLForConditionalGeneration, tokens: Sequence[int], pairs: Sequence[float]) -> float:
    """Floating-point operations of the decoder layers, two for a multiplication with its addition.

    Args:
        tokens: rows that each layer computes.
        pairs: (query, key) pairs that each layer's attention sees.
    """
    config: Any = model.config.text_config
    layer: Any = model.model.language_model.layers[0]
    weights = sum(part.weight.numel() for part in layer.modules() if isinstance(part, torch.nn.Linear))
    return float(2 * weights * sum(tokens) + 4 * config.hidden_size * sum(pairs))


def causal_pairs(tokens: int) -> float:
    """Pairs under full causal attention."""
    return tokens * (tokens + 1) / 2


@torch.no_grad()
def answer_full(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
    """The model as it is."""
    logits = model(**prompts.inputs()).logits[:, -1]
    layers, length = model.config.get_text_config().num_hidden_layers, prompts.input_ids.shape[1]
    flops = prefill_flops(model, [length] * layers, [causal_pairs(length)] * layers)
    return Answers(logits, len(prompts.features), flops)


def segmo_method(name: str, **options: Any) -> Method:
    """The model through ``segmo.compile(model, **options)``."""
    settings = Options.parse(options)
    cas = "select-tokens" not in settings.disable
    keep = settings.keep if cas else 1.0

    @torch.no_grad()
    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        logits = model(**prompts.inputs()).logits[:, -1]
        prefill = segmo.last_report().prefill
        if prefill is None:
            raise SegMoError(f"{name} was not applied: no prefill was rewritten")
        rows = len(prefill.kept())
        pairs = causal_pairs(rows)
        if prefill.segment is not None:
            context = None if prefill.context is None else prefill.context[:1]
            pairs = visible_pairs(attention_schedule(prefill.segment[:1], context, None))
        full = prompts.input_ids.shape[1]
        layers = model.config.get_text_config().num_hidden_layers
        early = settings.layer if cas and settings.scorer == "attention" else 0  # before tokens are chosen
        flops = prefill_flops(
            model,
            [full] * early + [rows] * (layers - early),
            [causal_pairs(full)] * early + [pairs] * (layers - early),
        )
        return Answers(logits, prefill.tokens()["kept"], flops)

    return Method(name, keep, answer, options)


def cas_method(keep: float, name: str = "CAS", **options: Any) -> Method:
    """Token selection alone."""
    return segmo_method(name, keep=keep, disable=LSP_PASSES, **options)


def lsp_method(segments: int | str, context: bool, name: str = "", **options: Any) -> Method:
    """Segment attention alone, over all tokens, with or without context injection."""
    name = name or f"LSP {segments} segments, {'with' if context else 'no'} context"
    off = ("select-tokens",) if context else ("select-tokens", "inject-context")
    return segmo_method(name, keep=1.0, segments=segments, disable=off, **options)


def both_method(keep: float, name: str = "CAS+LSP", **options: Any) -> Method:
    """Token selection and segment attention, the product's defaults unless options say otherwise."""
    return segmo_method(name, keep=keep, **options)


def memory_method(keep: float, name: str = "memory", **options: Any) -> Method:
    """The video watched once, and each question on the keys that are chosen for it; work is that of the question."""
    seen: list[tuple[Prompts, segmo.Memory]] = []

    @torch.no_grad()
    def answer(model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Answers:
        if not seen or seen[0][0] is not prompts:
            video = VideoFeatures(pooler_output=(prompts.features,))
            first = {"input_ids": prompts.input_ids[:1], "video_grid_thw": prompts.grid}
            memory = segmo.watch(model, None, {**first, "mm_encoder_outputs": {"video": video}}, **options)
            seen[:] = [(prompts, memory)]
        memory = seen[0][1]
        behind = memory.watcher.length
        inputs = memory.inputs([row[behind:] for row in prompts.input_ids], keep=keep)
        rows = prompts.input_ids.shape[1] - behind
        held = inputs["input_ids"].shape[1] - rows
        # generate feeds what the cache has not seen; here the model itself is called.
        new = {name: inputs[name][..., held:] for name in ("input_ids", "position_ids")}
        logits = model(**inputs | new, logits_to_keep=1).logits[:, -1]
        layers = model.config.get_text_config().num_hidden_layers
        pairs = rows * held + causal_pairs(rows)
        kept = min(int(keep * len(prompts.features)), memory.summary()["held_video_tokens"])
        return Answers(logits, kept, prefill_flops(model, [rows] * layers, [pairs] * layers))

    return Method(name, keep, answer)
