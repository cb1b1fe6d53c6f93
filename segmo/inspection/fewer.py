"""A smaller model of any family, where no rules say how to make its layers narrow: their widths stay as they are.

What is cut are counts, which hang together with nothing else: layers of the vision encoder, experts, the width of
feed-forward layers, and the vocabulary, whose special tokens move down with it. Of a deep decoder one layer of each
kind stays, unless their number is asked for. A small model stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

VOCABULARY = 4096
DEEP = 8  # decoder layers, and layers of an encoder, that are built as they are
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_k")
_WIDTHS = {"intermediate_size": 256, "dense_intermediate_size": 256, "moe_intermediate_size": 64}
_KINDS = ("layer_types", "mlp_layer_types", "layers_block_type")
_DEPTHS = ("depth", "num_hidden_layers", "encoder_layers")


def fewer(config: Any, layers: int | None = None) -> Any:
    """A copy of a config with less of everything that can be less; see the top of this file.

    Args:
        config: is left as it is.
        layers: of the decoder, where they were asked for.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    if layers is not None or text.num_hidden_layers > DEEP:
        set_layers(text, layers or one_of_each(text))
    _cut_experts(text)
    for part in _parts(small):
        if part is not small and part is not text:
            _cut_depth(part)
    _cut_vocabulary(small, text)
    return small


def set_layers(text: Any, layers: int) -> None:
    """Gives a decoder's config so many layers; what it says of each layer goes round."""
    before = text.num_hidden_layers
    own = {int(layer): fields for layer, fields in (text.to_dict().get("per_layer_config") or {}).items()}
    if own:
        text.per_layer_config = {}
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and value and (len(value) == before or name in _KINDS):
            setattr(text, name, [value[layer % len(value)] for layer in range(layers)])
    text.num_hidden_layers = layers
    if own:
        text.per_layer_config = {layer: own[layer % before] for layer in range(layers) if layer % before in own}


def one_of_each(text: Any) -> int:
    """So many of the first layers have one of each kind; two at least."""
    lists = [kinds for name in _KINDS if (kinds := getattr(text, name, None))]
    needed: list[int] = [max(map(kinds.index, set(kinds))) + 1 for kinds in lists]
    return max(2, *needed) if needed else 2


def _cut_experts(text: Any) -> None:
    for name, most in {**dict.fromkeys(_EXPERTS, 8), **dict.fromkeys(_CHOSEN, 2), **_WIDTHS}.items():
        value = getattr(text, name, None)
        if isinstance(value, int) and value > most:
            setattr(text, name, most)
        elif isinstance(value, list) and all(isinstance(each, int) for each in value):
            setattr(text, name, [min(each, most) for each in value])
    for name in ("n_group", "topk_group"):
        if getattr(text, name, None) and text.n_group > 1:
            setattr(text, name, 1)


def _cut_depth(part: Any) -> None:
    levels = getattr(part, "deepstack_visual_indexes", None) or []
    if not any((getattr(part, name, None) or 0) > DEEP for name in _DEPTHS):
        return
    depth = max(1, len(levels))
    for name in _DEPTHS:
        if isinstance(getattr(part, name, None), int):
            setattr(part, name, depth)
    if levels:
        part.deepstack_visual_indexes = list(range(depth))
    if getattr(part, "fullatt_block_indexes", None):
        part.fullatt_block_indexes = [0]
    if getattr(part, "insert_layer_id", None) is not None:
        part.insert_layer_id = 0


def _cut_vocabulary(config: Any, text: Any) -> None:
    if text.vocab_size <= VOCABULARY:
        return
    moved: dict[int, int] = {}

    def new(old: Any) -> Any:
        if isinstance(old, list):
            return [new(each) for each in old]
        if not isinstance(old, int) or isinstance(old, bool) or old < VOCABULARY - 256:
            return old
        return moved.setdefault(old, VOCABULARY - 1 - len(moved))

    for part in _parts(config):
        for name, value in list(vars(part).items()):
            if name.endswith(("_id", "_ids", "_token_index")):
                setattr(part, name, new(value))
            elif name.startswith("vocab_size") and isinstance(value, int):
                setattr(part, name, min(value, VOCABULARY))


def _parts(config: Any) -> Iterator[Any]:
    """A config and those inside it."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type"):
            yield from _parts(value)
