"""Attention implementations: whatever a model was loaded with, its decoder uses sdpa while SegMo's calls run.

transformers asks the config of each part of a model for its implementation in every call. ``eager``, flex attention and
the flash attentions compute what sdpa computes, to rounding; only sdpa is one node of a graph that Dynamo captures.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from segmo.compat.attention_config import implementation, is_usable, put_implementation

SDPA = "sdpa"
# What computes the same as sdpa. An implementation that a user registered may not.
SAME = ("eager", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


class Attention:
    """The attention implementations of one model, which several compilations may hold at sdpa at a time.

    Attributes:
        loaded: configs whose implementation is changed while anybody holds them, with the one they were loaded with.
        decoder: what the decoder was loaded with, if that is changed.
    """

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        configs = {id(config): config for config in (model.config, text)}
        decoder = set(configs)
        for module in model.modules():
            config = vars(module).get("config")
            if config is not None and implementation(config) is not None:
                configs.setdefault(id(config), config)
        self.loaded = [
            (config, loaded)
            for config in configs.values()
            if (loaded := implementation(config)) in SAME
            # A vision encoder runs before the graph, with what it was loaded with, if that runs here at all.
            and (id(config) in decoder or not is_usable(loaded))
        ]
        self.decoder = next((loaded for config, loaded in self.loaded if config is text), None)
        self.holders = 0

    def hold(self) -> None:
        """Uses sdpa until :meth:`release`."""
        if not self.loaded:
            return
        with _LOCK:
            self.holders += 1
            for config, _ in self.loaded:
                put_implementation(config, SDPA)

    def release(self) -> None:
        """Goes back to what was loaded when nobody holds sdpa any more."""
        if not self.loaded:
            return
        with _LOCK:
            self.holders -= 1
            if not self.holders:
                self.back()

    def back(self) -> None:
        """Goes back to what was loaded."""
        for config, loaded in self.loaded:
            put_implementation(config, loaded)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Uses sdpa inside the block."""
        self.hold()
        try:
            yield
        finally:
            self.release()


_LOCK = threading.Lock()
_KNOWN: WeakKeyDictionary[Any, Attention] = WeakKeyDictionary()


def attention_of(model: Any) -> Attention:
    """The one object for a model; a new one when nobody holds it, because the user may load another implementation."""
    found = _KNOWN.get(model)
    if found is None or not found.holders:
        found = _KNOWN[model] = Attention(model)
    return found
