"""What each part of the selection is worth: python benchmarks/sceneqa/ablation.py --keep 0.0625

CAS without SegMo's compiler, which chooses the same tokens: the runtime's own functions, one part switched off or
replaced at a time. On the validation split; prints accuracy, and the difference to the rule over the same questions.

Legend: Q prompts, N prompt tokens, V video tokens, S scenes, K kept tokens, H hidden size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from decoder import run_decoder
from evaluate import PER_KIND
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Qwen2VLForConditionalGeneration
from untrained import MERGE, SPECIAL

from segmo.runtime import frame_fit, novelty, relevance, selection
from segmo.runtime.features import scan_video
from segmo.runtime.layout import QUERY, SINK
from segmo.runtime.scenes import MAX_SCENES, find_scenes
from segmo.sceneqa.evaluate import build_set
from segmo.sceneqa.model import Prompts, load_model, weights_for
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.results import OVERALL, Share, paired_difference
from segmo.sceneqa.task import DIFFICULTIES

REACH = 1  # cells that something moves from one frame to the next, at most


@dataclass(frozen=True)
class Video:
    """What the selection sees of one video and its questions."""

    prompts: Prompts
    embeds: Tensor  # (Q, N, H)
    frame: Tensor  # (1, N)
    cell: Tensor  # (1, N)
    inside: Tensor  # (N,) bool, the video's tokens

    @classmethod
    def of(cls, model: Qwen2VLForConditionalGeneration, prompts: Prompts) -> Video:
        """Layout and embeddings of the prompts."""
        ids = prompts.input_ids
        inside = ids[0] == model.config.video_token_id
        place = inside.nonzero()[:, 0]
        cells = int(prompts.grid[0, 1] * prompts.grid[0, 2]) // MERGE**2
        frame, cell = torch.full((1, ids.shape[1]), QUERY), torch.full((1, ids.shape[1]), -1)
        frame[0, : place[0]] = SINK
        frame[0, place], cell[0, place] = torch.arange(len(place)) // cells, torch.arange(len(place)) % cells
        embeds = model.get_input_embeddings()(ids).detach()
        embeds[:, inside] = prompts.features
        return cls(prompts, embeds, frame, cell, inside)

    def moved(self) -> Tensor:
        """1 - cosine with the best of the cells around in the frame before, (1, N)."""
        rows, columns = (int(size) // MERGE for size in self.prompts.grid[0, 1:])
        unit = normalize(self.prompts.features, dim=-1).view(-1, rows, columns, self.prompts.features.shape[-1])
        before = torch.nn.functional.pad(unit[:-1], (0, 0, REACH, REACH, REACH, REACH))
        best = torch.full(unit.shape[:3], -1.0)
        for down in range(2 * REACH + 1):
            for across in range(2 * REACH + 1):
                there = before[:, down : down + rows, across : across + columns]
                alike = (unit[1:] * there).sum(-1).masked_fill(there.eq(0).all(-1), -1.0)
                best[1:] = torch.maximum(best[1:], alike)
        found = torch.zeros(self.frame.shape)
        found[0, self.inside] = (1 - best.flatten()).masked_fill(self.frame[0, self.inside] == 0, 1)
        return found


@dataclass(frozen=True)
class Variant:
    """The rule with something changed.

    Attributes:
        changes: what stands in the place of an attribute of the runtime's modules.
        balance: weight of relevance.
        motion: compare with the cells around in the frame before instead of the same cell alone.
        merge: average what is dropped into the nearest kept token of its scene.
        plain: novelty is the distance to the frame before alone, as in version 0.1.
    """

    name: str
    changes: Mapping[tuple[Any, str], Any] = field(default_factory=dict)
    balance: float = 0.5
    motion: bool = False
    merge: bool = False
    plain: bool = False

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The runtime with the changes, and as it was afterwards."""
        with ExitStack() as stack:
            for (module, name), value in self.changes.items():
                stack.enter_context(patch.object(module, name, value))
            yield


def _unlike_mean(distance_SCC: Tensor, known_SC: Tensor, start_SC: Tensor, real_SC: Tensor) -> Tensor:
    """Novelty of a first frame's tokens by their distance to its mean, instead of farthest first."""
    return torch.minimum(known_SC, 1 + start_SC).masked_fill(~real_SC, 0)


def _raster(distance_SCC: Tensor, known_SC: Tensor, start_SC: Tensor, real_SC: Tensor) -> Tensor:
    """All tokens of a first frame are as new as the next one: its top rows win."""
    return torch.ones_like(start_SC).masked_fill(~real_SC, 0)


def _softmax(relevance_S: Tensor, sharpness: float = 1.0) -> Tensor:
    away = relevance_S.double() - relevance_S.double().mean()
    return (sharpness * away / away.square().mean().sqrt().clamp(min=1e-12)).softmax(0)


def _sharp_shares(relevance_S: Tensor, dynamics_S: Tensor, balance: float) -> Tensor:
    """The softmax twice as sharp."""
    return balance * _softmax(relevance_S, 2.0) + (1 - balance) * dynamics_S.double() / dynamics_S.double().sum()


def _told_shares(relevance_S: Tensor, dynamics_S: Tensor, balance: float) -> Tensor:
    """Relevance weighs as much as it tells scenes apart: by the information in a softmax twice as sharp."""
    asked = _softmax(relevance_S, 2.0)
    told = 1 + float((asked * asked.clamp(min=1e-30).log()).sum()) / math.log(max(len(asked), 2))
    return balance * told * asked + (1 - balance * told) * dynamics_S.double() / dynamics_S.double().sum()


def _product_shares(relevance_S: Tensor, dynamics_S: Tensor, balance: float) -> Tensor:
    """What a scene has to tell, times how likely it is asked about."""
    share = (balance * _softmax(relevance_S) + (1 - balance) / len(relevance_S)) * dynamics_S.double()
    return share / share.sum()


def _reduced(reduce: str, cosine_TQ: Tensor, frame_T: Any, frames: int, heat_Q: Tensor) -> Tensor:
    """A frame fits a word as its tokens do on average ("mean", as in version 0.2), or as its best one does ("max")."""
    size_F = torch.from_numpy(np.bincount(frame_T, minlength=frames))
    return torch.segment_reduce(cosine_TQ, reduce, lengths=size_F, axis=0).T


def variants() -> list[Variant]:
    """The rule first."""
    return [
        Variant("the rule"),
        Variant("fit of a frame: mean of its tokens", {(frame_fit, "pooled"): partial(_reduced, "mean")}),
        Variant("fit of a frame: its best token", {(frame_fit, "pooled"): partial(_reduced, "max")}),
        Variant("first frames: raster order", {(novelty, "farthest_first"): _raster}),
        Variant("first frames: distance to the mean", {(novelty, "farthest_first"): _unlike_mean}),
        Variant("later frames: the frame before alone", plain=True),
        Variant("no scenes before", {(novelty, "BACK"): 0}),
        Variant("floor for every scene", {(selection, "FRESH"): -1.0}),
        Variant("no floor", {(selection, "SCENE_FLOOR"): 0}),
        *(Variant(f"balance {value:g}", balance=value) for value in (0.0, 0.25, 0.75, 1.0)),
        Variant("shares: softmax x2, balance 0.35", {(selection, "scene_shares"): _sharp_shares}, balance=0.35),
        Variant("shares: softmax x2", {(selection, "scene_shares"): _sharp_shares}),
        Variant("shares: relevance by what it tells", {(selection, "scene_shares"): _told_shares}),
        Variant("shares: product", {(selection, "scene_shares"): _product_shares}),
        Variant("floor of two", {(selection, "SCENE_FLOOR"): 2}),
        Variant("novelty by motion", motion=True),
        Variant("merging", merge=True),
    ]


def chosen(video: Video, keep: float, variant: Variant) -> Tensor:
    """Indices of the kept video tokens for each prompt, (Q, K) ascending."""
    embeds, frame, cell = video.embeds, video.frame, video.cell
    first, similarity, _ = scan_video(embeds[:1], frame, cell)
    scene = find_scenes(similarity, frame, cell, MAX_SCENES)
    known = video.moved() if variant.motion else first
    novel = novelty.scene_novelty(embeds[:1], known, frame, cell, scene)
    if variant.plain:
        heads = novelty.head_frames(frame[0, video.inside], scene[0, video.inside])
        later = video.inside & (frame[0] != heads[scene[0].clamp(min=0)])
        novel[0, later] = first[0, later]
    count, (_, length) = len(embeds), video.prompts.input_ids.shape
    asked = (video.prompts.input_ids >= len(SPECIAL)) & ~video.inside
    wide = [part.expand(count, -1) for part in (novel, frame, cell, scene)]
    relevant = relevance.embedding_relevance(embeds, wide[3], wide[2], asked, MAX_SCENES)
    total = int(video.inside.sum())
    kept = selection.kept_count(length, total, 1, keep)
    index = selection.select_tokens(*wide, relevant, kept, variant.balance)
    place = torch.full((length,), -1)
    place[video.inside] = torch.arange(total)
    return torch.stack([place[row][place[row] >= 0] for row in index])


def merged(video: Video, kept_QK: Tensor) -> Tensor:
    """Features of the kept tokens, each averaged with the dropped tokens of its scene nearest to it, (Q, K, H)."""
    features = video.prompts.features
    _, similarity, _ = scan_video(video.embeds[:1], video.frame, video.cell)
    scene = find_scenes(similarity, video.frame, video.cell, MAX_SCENES)[0, video.inside]
    unit, out = normalize(features, dim=-1), []
    for kept_K in kept_QK:
        alike_VK = (unit @ unit[kept_K].T).masked_fill(scene[:, None] != scene[kept_K], -torch.inf)
        best, nearest = alike_VK.max(dim=1)
        nearest[kept_K] = torch.arange(len(kept_K))
        told = best > -torch.inf  # a scene of which nothing is kept goes into no token
        total = torch.zeros(len(kept_K), features.shape[1]).index_add_(0, nearest[told], features[told])
        out.append(total / torch.bincount(nearest[told], minlength=len(kept_K))[:, None])
    return torch.stack(out)


def _records(
    model: Qwen2VLForConditionalGeneration, videos: list[Video], keep: float, variant: Variant
) -> list[dict[str, Any]]:
    found = []
    with variant.applied():
        for video in videos:
            prompts, kept = video.prompts, chosen(video, keep, variant)
            assert kept.shape[1] == math.floor(keep * len(prompts.features))
            features = merged(video, kept) if variant.merge else prompts.features[kept]
            right = run_decoder(model, prompts, kept, features).argmax(-1) == prompts.answer
            found.append({"video": prompts.video, "kinds": prompts.kinds, "right": right.int().tolist()})
    return found


def _share(records: list[dict[str, Any]], wanted: Collection[str]) -> Share:
    right = [mine for r in records for kind, mine in zip(r["kinds"], r["right"], strict=True) if kind in wanted]
    return Share(sum(right), len(right))


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=80)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.125, 0.0625], help="budgets")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; all when not given")
    parser.add_argument("--difficulty", default="standard", choices=tuple(DIFFICULTIES))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    difficulty = DIFFICULTIES[args.difficulty]
    model, processor = load_model(weights_for(difficulty))
    questions = build_set(model, processor, "validation", difficulty, args.videos, PER_KIND)
    videos = [Video.of(model, prompts) for prompts in questions.prompts]
    console = Console(width=160)
    for keep in args.keep:
        table = Table(title=f"{questions.label}\nCAS, {100 * keep:g}% of the tokens", title_justify="left")
        for name in ("variant", *KINDS, OVERALL, "to the rule"):
            table.add_column(name, justify="left" if name == "variant" else "right")
        rule: list[dict[str, Any]] = []
        for variant in variants():
            if args.only and variant.name not in ("the rule", *args.only):
                continue
            records = _records(model, videos, keep, variant)
            rule = rule or records
            values = [f"{100 * _share(records, wanted).value:.1f}" for wanted in (*([kind] for kind in KINDS), KINDS)]
            table.add_row(variant.name, *values, str(paired_difference(records, rule)))
        console.print(table)


if __name__ == "__main__":
    main()
