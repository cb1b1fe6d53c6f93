"""Whole features of the videos seen last, so that a second question on one does not run the vision encoder again."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

LIMIT = 2**30  # bytes


class FeatureCache:
    """Features by video, the least recently used ones forgotten first. They are held in the host's memory."""

    def __init__(self, limit: int = LIMIT) -> None:
        """At most ``limit`` bytes are held."""
        self.limit = limit
        self.held = 0
        self._found: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def get(self, video: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The features of a video, None if they are not held."""
        found = self._found.get(video)
        if found is None:
            return None
        self._found.move_to_end(video)
        return found.to(device)

    def put(self, video: tuple[int, ...], features: Tensor) -> None:
        """Holds the features of a video, unless they alone are more than the limit."""
        size = features.numel() * features.element_size()
        if size > self.limit or video in self._found:
            return
        self._found[video] = features.detach().cpu().clone()
        self.held += size
        while self.held > self.limit:
            _, oldest = self._found.popitem(last=False)
            self.held -= oldest.numel() * oldest.element_size()
