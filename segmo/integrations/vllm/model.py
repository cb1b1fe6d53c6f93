"""The model's side of the plugin: features of the kept tokens alone, each at its position in the whole video.

It runs in vLLM's workers, on every rank of a tensor-parallel group alike: the vision encoder's features and the
question's embeddings are the same on each, and the selection is deterministic.

Legend: V video tokens, L rows of a video's range in the prompt (kept tokens and text between frames), N prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from segmo.integrations.vllm import metrics, plan, rows
from segmo.integrations.vllm.features import FeatureCache
from segmo.integrations.vllm.processor import selects
from segmo.integrations.vllm.select import choose, kept_tokens


class KeepsTokens:
    """Stands in front of a built-in model. Where pruning is off, nothing of the built-in model changes."""

    supports_multimodal_pruning = True
    config: Any
    language_model: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model_config = vllm_config.model_config
        self._selects = selects(model_config.multimodal_config)
        self._hidden = model_config.get_inputs_embeds_size()
        self._width = self._hidden * (1 + getattr(self, "deepstack_num_level", 0))  # what deeper layers add goes along
        self._features = FeatureCache()
        if self._selects:
            self.is_multimodal_pruning_enabled = False  # of the built-in model: it encodes whole videos

    # Features

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Features of media; those of a video are the rows of its range in the cut prompt, with their channels."""
        if not self._selects or plan.VIDEO not in kwargs:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        ours = {name: kwargs.pop(name) for name in plan.FIELDS}
        videos = [tuple(video.tolist()) for video in ours[plan.VIDEO]]
        device = next(self.language_model.parameters()).device
        known = [self._features.get(video, device) for video in videos]
        features: list[Tensor] = [found for found in known if found is not None]
        encoded = len(features) < len(videos)
        if encoded:
            features = list(super().embed_multimodal(**kwargs))  # type: ignore[misc]
            for video, found in zip(videos, features, strict=True):
                self._features.put(video, found)
        return tuple(
            self._cut(features[at], self._item(kwargs, at), ours[plan.QUESTION][at], ours[plan.SETTINGS][at], encoded)
            for at in range(len(videos))
        )

    def _item(self, kwargs: dict[str, Any], at: int) -> dict[str, Any]:
        """What is known of one video of a batch, under the names of its fields."""
        names = ("video_grid_thw", "second_per_grid_ts", "timestamps")
        return {name: kwargs[name][at] for name in names if kwargs.get(name) is not None}

    def _cut(self, features: Tensor, item: dict[str, Any], question: Tensor, settings: Tensor, encoded: bool) -> Tensor:
        keep, balance, ends = settings.tolist()
        video, cells = features.shape[0], self._cells(item)
        asked = question.to(features.device).long()
        question_QH = self.language_model.embed_input_ids(asked) if len(asked) else features[:0, : self._hidden]
        width = question_QH.shape[1]
        kept = kept_tokens(video, keep)
        selection = choose(features[:, :width], cells, question_QH, kept, balance, bool(ends))
        metrics.log(selection, video, kept, encoded)
        ids = self._range_ids(item, [cells] * (video // cells))
        positions_3L = self._alone(item, ids)
        place_V = (torch.tensor(ids) == self.config.video_token_id).nonzero()[:, 0]
        stays_L = torch.ones(len(ids), dtype=torch.bool)
        stays_L[place_V] = False
        stays_L[place_V[selection.index.cpu()]] = True
        held = self._held_rows(features[selection.index], torch.tensor(ids)[stays_L])
        return rows.attach(held, positions_3L[:, stays_L], int(place_V[0]))

    def _cells(self, item: dict[str, Any]) -> int:
        merge: int = self.config.vision_config.spatial_merge_size
        _, height, width = (int(size) for size in item["video_grid_thw"])
        return (height // merge) * (width // merge)

    def _range_ids(self, item: dict[str, Any], counts: Sequence[int]) -> list[int]:
        """Token ids of a video's range in the prompt, with so many placeholders for each frame."""
        del item
        return [self.config.video_token_id] * sum(counts)

    def _held_rows(self, kept: Tensor, ids_L: Tensor) -> Tensor:
        """Rows of the range: the kept features, among the embeddings of the text in it."""
        del ids_L
        return kept

    # Positions

    def _whole_positions(self, ids: list[int], features: list[Any]) -> Tensor:
        """Positions of a prompt of which nothing is cut, (3, N)."""
        positions, _ = super().get_mrope_input_positions(ids, features)  # type: ignore[misc]
        found: Tensor = positions
        return found

    def _alone(self, item: dict[str, Any], ids: list[int]) -> Tensor:
        """Positions of a whole video's range, counted from its start."""
        return self._whole_positions(ids, [_feature(item, 0, len(ids))])

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of the cut prompt: text stands where it stands in the whole one.

        Those of a video's placeholders wait for the selection. Generated tokens follow the largest position of the
        whole prompt.
        """
        ids: list[int] = []
        whole: list[Any] = []
        held: list[tuple[int, int, int]] = []  # start in the whole prompt, length there, length in the cut one
        done = 0
        for feature in sorted(mm_features, key=lambda found: found.mm_position.offset):
            place = feature.mm_position
            ids += input_tokens[done : place.offset]
            done = place.offset + place.length
            full = input_tokens[place.offset : done]
            if feature.modality == "video" and self._selects:
                item = {name: element.data for name, element in feature.data.items()}
                full = self._range_ids(item, [self._cells(item)] * int(item["video_grid_thw"][0]))
                held.append((len(ids), len(full), place.length))
            whole.append(replace(feature, mm_position=replace(place, offset=len(ids), length=len(full))))
            ids += full
        ids += input_tokens[done:]
        positions = self._whole_positions(ids, whole)
        following = int(positions.max()) + 1
        stays = torch.ones(len(ids), dtype=torch.bool)
        for start, length, count in held:
            stays[start + count : start + length] = False
        positions = positions[:, stays]
        positions.segmo_following = following  # type: ignore[attr-defined]  # the runner hands in this tensor again
        return positions, following - len(input_tokens)

    def recompute_mrope_positions(
        self, input_ids: Any, multimodal_embeddings: Sequence[Tensor], mrope_positions: Tensor, num_computed_tokens: int
    ) -> tuple[list[Tensor], Tensor, int]:
        """Takes the channels off the rows of this step, and writes their positions; all others stay as they are."""
        if not self._selects:
            return super().recompute_mrope_positions(  # type: ignore[misc,no-any-return]
                input_ids, multimodal_embeddings, mrope_positions, num_computed_tokens
            )
        width = self._width
        features: list[Tensor] = []
        positions = mrope_positions
        starts: list[int] | None = None
        for found in multimodal_embeddings:
            if found.shape[1] <= width or found.shape[0] == 0:
                features.append(found[:, :width])
                continue
            taken, part = rows.detach(found, width)
            features.append(taken)
            starts = _first_of_runs(input_ids, self.config.video_token_id) if starts is None else starts
            start = next(at - part.lead for at in starts if at - part.lead + part.place >= num_computed_tokens)
            starts = [at for at in starts if at > start + part.lead]
            if positions is mrope_positions:
                positions = mrope_positions.clone()
            base = int(mrope_positions[:, start - 1].max()) + 1 if start else 0
            here = start + part.place
            positions[:, here : here + found.shape[0]] = part.positions_3L.to(positions.device) + base
        following = getattr(mrope_positions, "segmo_following", None) or int(positions.max()) + 1
        return features, positions, following - len(input_ids)

    def get_encoder_cudagraph_config(self) -> Any:
        """Graphs of the encoder go past :meth:`embed_multimodal`, so there are none where tokens are selected."""
        config = super().get_encoder_cudagraph_config()  # type: ignore[misc]
        return replace(config, modalities=[]) if self._selects else config


def _first_of_runs(ids: Any, token: int) -> list[int]:
    """Where runs of a token begin."""
    found = ids.tolist() if isinstance(ids, Tensor) else ids
    return [at + 1 for at, (a, b) in enumerate(pairwise([-1, *found]), start=-1) if b == token != a]


def _feature(item: dict[str, Any], offset: int, length: int) -> Any:
    """A video for ``get_mrope_input_positions``."""
    from vllm.multimodal.inputs import (
        MultiModalFeatureSpec,
        MultiModalFieldConfig,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        PlaceholderRange,
    )

    field = MultiModalFieldConfig.batched("video", keep_on_cpu=True).field
    elements = {name: MultiModalFieldElem(data=value, field=field) for name, value in item.items()}
    return MultiModalFeatureSpec(
        data=MultiModalKwargsItem(elements),
        modality="video",
        identifier="",
        mm_position=PlaceholderRange(offset=offset, length=length),
    )
