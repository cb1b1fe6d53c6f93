"""What a Video LLM computes per token, per pair and per frame, from its config alone.

Legend: H hidden size, A query heads, G key/value heads, D head size, I intermediate size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from segmo.errors import PlanError


@dataclass(frozen=True)
class VisionShape:
    """A vision encoder whose attention stays inside a frame.

    Attributes:
        depth, hidden, intermediate: of the encoder's layers.
        mlp_matrices: 2 for a plain MLP, 3 for a gated one.
        patches: patches behind one video token (4 when 2 x 2 are merged).
    """

    depth: int
    hidden: int
    intermediate: int
    mlp_matrices: int
    patches: int

    def parameters(self) -> int:
        """Weights of the encoder's layers; embedding and merger are left out, they are below 1%."""
        return self.depth * self.hidden * (4 * self.hidden + self.mlp_matrices * self.intermediate)

    def linear_flops(self, tokens: float) -> float:
        """FLOPs of the encoder's matrix products for that many video tokens."""
        return 2.0 * self.parameters() * self.patches * tokens

    def attention_flops(self, tokens: float, tokens_per_frame: float) -> float:
        """FLOPs of attention inside each frame. Encoders with windows do less: an upper bound."""
        return 4.0 * self.depth * self.hidden * self.patches * tokens * self.patches * tokens_per_frame


@dataclass(frozen=True)
class ModelShape:
    """The language model's decoder.

    Attributes:
        hidden, layers, heads, kv_heads, head_size, intermediate, vocab: as in the config.
        value_bytes: bytes of one weight, activation or cached value.
        vision: the vision encoder, or None when the features are given.
        whole_layers: layers without segments (with a window, an index, a recurrence), which need every rank's tokens.
        joined_bytes: of one token's values that ranks gather in all of these layers together.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    value_bytes: int = 2
    vision: VisionShape | None = None
    whole_layers: int = 0
    joined_bytes: int = 0

    @property
    def segment_layers(self) -> int:
        """Layers whose attention is cut into segments."""
        return self.layers - self.whole_layers

    @property
    def layer_parameters(self) -> int:
        """Weights of a decoder layer: Q, K, V and output projections and a gated MLP."""
        attention = self.hidden * self.head_size * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def linear_flops(self) -> float:
        """FLOPs per token and layer of the matrix products."""
        return 2.0 * self.layer_parameters

    @property
    def pair_flops(self) -> float:
        """FLOPs per visible (query, key) pair and layer: score and weighted sum, over all query heads."""
        return 4.0 * self.heads * self.head_size

    @property
    def elementwise_bytes(self) -> float:
        """Bytes read and written per token and layer between the matrix products.

        Two norms (fp32 inside: 6 passes over H each), two residual sums (3 passes), rotary embedding (6
        passes over Q and K) and the gated activation (5 passes over I).
        """
        rotated = (self.heads + self.kv_heads) * self.head_size
        values = 18 * self.hidden + 6 * rotated + 5 * self.intermediate
        return float(values * self.value_bytes)

    @property
    def merge_bytes(self) -> float:
        """Bytes per row and layer of merging attention inside a segment with that to sinks and context.

        Both outputs are read and widened to fp32 (2 passes each), blended (3 passes), rounded and copied into place.
        """
        return float(self.heads * self.head_size * (5 * self.value_bytes + 7 * 4))

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token's key and value in one layer."""
        return 2 * self.kv_heads * self.head_size * self.value_bytes

    @property
    def partial_bytes(self) -> int:
        """Bytes of one row's partial attention in a layer: output and fp32 logsumexp of each query head."""
        return self.heads * (self.head_size * self.value_bytes + 4)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights on a rank; every rank holds the whole model."""
        vision = self.vision.parameters() if self.vision else 0
        return self.value_bytes * (self.layers * self.layer_parameters + 2 * self.vocab * self.hidden + vision)

    @property
    def activation_bytes(self) -> int:
        """Peak bytes per token while a layer runs: the residual, its norm, and the widest step."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_size
        return self.value_bytes * (3 * self.hidden + max(3 * self.intermediate, attention))


def _value(config: Any, name: str) -> Any:
    """A field of a config. One that differs between layers is not read as an attribute: that of most of them."""
    stored = vars(config).get(name) if hasattr(config, "__dict__") else None
    return getattr(config, name, None) if stored is None else stored


def _first(config: Any, *names: str) -> int:
    for name in names:
        value = _value(config, name)
        if value is not None:
            return int(value)
    raise PlanError(f"{type(config).__name__} has none of {', '.join(names)}: its cost cannot be modelled")


def _active_width(text: Any) -> int:
    """Width of a layer's MLP; of a mixture of experts alone, of the experts that a token goes through."""
    if _value(text, "intermediate_size") is not None or _value(text, "moe_intermediate_size") is None:
        return _first(text, "intermediate_size")
    shared = _value(text, "shared_expert_intermediate_size") or 0
    return _first(text, "moe_intermediate_size") * _first(text, "num_experts_per_tok") + int(shared)


def shape_of(config: Any, value_bytes: int = 2) -> ModelShape:
    """Shape of a transformers config of one of the supported families.

    Raises:
        PlanError: the config lacks a size that the model needs.
    """
    text = getattr(config, "text_config", config)
    heads = _first(text, "num_attention_heads")
    hidden = _first(text, "hidden_size")
    tower = getattr(config, "vision_config", None)
    vision = None
    if tower is not None:
        width = _first(tower, "embed_dim", "hidden_size")
        if getattr(tower, "intermediate_size", None) is not None:
            inner = int(tower.intermediate_size)
        else:
            inner = int(width * float(getattr(tower, "mlp_ratio", 4)))
        vision = VisionShape(
            depth=_first(tower, "depth", "num_hidden_layers"),
            hidden=width,
            intermediate=inner,
            mlp_matrices=3 if "2_5" in str(getattr(tower, "model_type", "")) else 2,
            patches=int(getattr(tower, "spatial_merge_size", 2)) ** 2,
        )
    shape = ModelShape(
        hidden=hidden,
        layers=_first(text, "num_hidden_layers"),
        heads=heads,
        kv_heads=_first(text, "num_key_value_heads", "num_attention_heads"),
        head_size=_value(text, "head_dim") or hidden // heads,
        intermediate=_active_width(text),
        vocab=_first(text, "vocab_size"),
        value_bytes=value_bytes,
        vision=vision,
    )
    kinds = [kind for kind in getattr(text, "layer_types", None) or () if not kind.startswith("full")]
    joined = sum(_joined_values(kind, text, shape) for kind in kinds) * value_bytes
    return dataclasses.replace(shape, whole_layers=len(kinds), joined_bytes=joined)


def _joined_values(kind: str, text: Any, shape: ModelShape) -> int:
    """Values of a token that ranks gather in a layer of a kind without segments, as far as a config tells.

    Keys and values of attention; what the convolution of a recurrent layer reads, and the gates.
    """
    if ("attention" in kind and "linear" not in kind) or "sparse" in kind:
        return shape.kv_bytes // shape.value_bytes
    if hasattr(text, "linear_num_key_heads"):
        keys, values = text.linear_num_key_heads, text.linear_num_value_heads
        return int(2 * keys * text.linear_key_head_dim + values * (text.linear_value_head_dim + 2))
    if kind == "mamba":
        heads = text.mamba_num_heads
        return int(heads * (text.mamba_head_dim + 1) + 2 * text.n_groups * text.ssm_state_size)
    return shape.hidden if kind == "conv" else 0


_QWEN2_5_VISION = VisionShape(depth=32, hidden=1280, intermediate=3420, mlp_matrices=3, patches=4)
_QWEN2_VISION = VisionShape(depth=32, hidden=1280, intermediate=5120, mlp_matrices=2, patches=4)

PRESETS: dict[str, ModelShape] = {
    "qwen2-0.5b": ModelShape(896, 24, 14, 2, 64, 4864, 151936),
    "qwen2-vl-2b": ModelShape(1536, 28, 12, 2, 128, 8960, 151936, vision=_QWEN2_VISION),
    "qwen2.5-vl-7b": ModelShape(3584, 28, 28, 4, 128, 18944, 152064, vision=_QWEN2_5_VISION),
    "qwen2.5-vl-72b": ModelShape(
        8192, 80, 64, 8, 128, 29568, 152064, vision=dataclasses.replace(_QWEN2_5_VISION, intermediate=3456)
    ),
}
"""Sizes of published models, from their config files."""
