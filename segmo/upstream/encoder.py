"""Chooses frames in front of a model's vision encoder, and encodes no others where that gives the same features.

With ``frames=0.25`` this stands in front of the model's ``get_video_features`` while what was compiled, or its
``generate``, is called; ``segmo.uncompile`` takes it away. Elsewhere there is no question, and every frame is encoded.

Legend: F frames of a video, M chosen ones, R rows of features, H hidden size, V videos.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from segmo.compiler.capture import calling_line
from segmo.compiler.chat import chat_of
from segmo.errors import OptionError
from segmo.families import Family, family_for
from segmo.options import Options
from segmo.passes.analyse import Facts
from segmo.passes.pipeline import build_pass
from segmo.passes.push_selection import PushSelection, vision_graph
from segmo.passes.runner import run_pipeline
from segmo.report.history import report_for
from segmo.report.prefill import FrameCounts
from segmo.report.report import Report, complain
from segmo.runtime.encoded import place_rows
from segmo.runtime.external import current_scores
from segmo.runtime.frame_budget import choose_frames, frame_count, frame_scenes, representative, scene_means
from segmo.upstream.prompt import Prompt, current_prompt, prompt_known
from segmo.upstream.proof import prove_independence
from segmo.upstream.scores import descriptors, frame_scores, rows_of_videos, words_and_features
from segmo.upstream.tower import Tower, VideoCall, only_rows

NAME = "get_video_features"
# Scenes whose representatives the model's own encoder is asked to score, for each frame that is kept. More scenes would
# make scoring dearer than answering; a scorer that is cheap (scorer="external") has no such limit.
SCENES_PER_FRAME = 2


def chooses_frames_of(model: Any, family: Family) -> bool:
    """Whether frames can be told apart in what goes into a model's vision encoder and in what comes out."""
    encode = getattr(model.base_model, NAME, None)
    own = getattr(model.config, "video_token_id", None) or getattr(model.config, "video_token_index", None)
    if encode is None or own is None:
        return False
    patches = "video_grid_thw" in inspect.signature(encode).parameters
    vision = model.config.vision_config
    merges = isinstance(getattr(vision, "spatial_merge_size", None), int)
    merges = merges and getattr(vision, "temporal_merge_size", 1) == 1  # ERNIE joins frames of the grid
    return merges if patches else family.cells_per_frame is not None


class FrameEncoder:
    """What stands in front of one model's vision encoder."""

    def __init__(self, model: Any, options: Options) -> None:
        family = family_for(model.config)
        if not chooses_frames_of(model, family):
            raise OptionError(
                f"frames={options.frames:g}: SegMo cannot tell which rows of a {family.model_type!r} video belong to "
                "which frame in front of its vision encoder; set frames=1"
            )
        self.model = model
        self.options = options
        self.tower = Tower(model, family)
        self.graph: GraphModule | None = None
        self.pushed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's ``get_video_features``, with zeros in the places of frames that were not chosen."""
        prompt = current_prompt()
        call = self.tower.read(args, kwargs)
        if prompt is None or call is None:
            return self.tower.original(*args, **kwargs)
        if self.graph is None:
            self._build(call)
        wanted = [frame_count(frames, self.options.frames) for frames in call.pixel_rows.frames]
        looks = descriptors(call)
        scored = self._scored(looks, wanted)
        if self.pushed:
            kept, features = self._encode_chosen(call, prompt, looks, wanted, scored)
        else:
            whole = self._encode(call, [torch.arange(frames) for frames in call.pixel_rows.frames])
            kept = self._choose(call, prompt, looks, wanted, scored, whole[0])
            rows = call.token_rows.of(kept).to(call.pixels.device)
            features = [place_rows(item[rows], rows, call.token_rows.total) for item in whole]
        self._note(call, kept, scored)
        return self.tower.output(call, features)

    def _encode_chosen(
        self,
        call: VideoCall,
        prompt: Prompt,
        looks: Sequence[Tensor],
        wanted: Sequence[int],
        scored: Sequence[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The chosen frames, and their features among zeros; no frame is encoded twice."""
        known = self._encode(call, scored) if any(len(part) for part in scored) else None
        kept = self._choose(call, prompt, looks, wanted, scored, known[0] if known else None)
        missing = [frame_M[~torch.isin(frame_M, done)] for frame_M, done in zip(kept, scored, strict=True)]
        if known is None:
            return kept, self._encode(call, missing)
        both = [frame_M[torch.isin(frame_M, done)] for frame_M, done in zip(kept, scored, strict=True)]
        rows = call.token_rows.of(both).to(call.pixels.device)
        features = [place_rows(item[rows], rows, call.token_rows.total) for item in known]
        if any(len(part) for part in missing):
            new = call.token_rows.of(missing).to(call.pixels.device)
            new = new[~torch.isin(new, rows)]
            for old, more in zip(features, self._encode(call, missing), strict=True):
                old[new] = more[new]
        return kept, features

    def _build(self, call: VideoCall) -> None:
        """Proves what can be proved of the encoder, and rewrites its graph accordingly."""
        from segmo.compiler.backend import SETUP

        miss, outputs = prove_independence(self.tower, call)
        gm = GraphModule({"encoder": self.tower}, vision_graph(outputs))
        passes = [] if PushSelection.name in self.options.disable else [build_pass(PushSelection, self.options)]
        result = run_pipeline(gm, Facts("vision", miss=miss, called_from=calling_line()), self.options, passes)
        report = report_for(self.model, self.options, SETUP)
        self.pushed = any(record.matches for record in result.records)
        complain(report.add("vision", result), self.options)
        self.graph = gm

    def _encode(self, call: VideoCall, kept: Sequence[Tensor]) -> list[Tensor]:
        """Features (R, H) of all videos with zeros where frames are not in ``kept``; one for each output."""
        videos = [video for video, frame_M in enumerate(kept) if len(frame_M)]  # of which something is encoded
        # Pictures of several videos make one array only when every video has as many of them.
        groups = [videos] if self.tower.patches else [[video] for video in videos]
        found: list[Tensor] = []
        for group in groups:
            made = self._run(call.only(group), [kept[video] for video in group])
            spread = [call.spread(group, item) for item in made]
            found = [a + b for a, b in zip(found, spread, strict=True)] if found else spread
        return found

    def _run(self, call: VideoCall, kept: Sequence[Tensor]) -> list[Tensor]:
        """The vision graph on a call, of whose every video something is kept."""
        assert self.graph is not None
        self.tower.extra = call.extra
        device = call.pixels.device
        few = call.grid.clone()
        few[:, 0] = torch.tensor([len(frame_M) for frame_M in kept])
        rows, total = call.token_rows.of(kept).to(device), call.token_rows.total
        made = self.graph(call.pixels, call.grid, call.pixel_rows.of(kept).to(device), few, rows, total)
        return list(made)

    def _scored(self, looks: Sequence[Tensor], wanted: Sequence[int]) -> list[Tensor]:
        """The frames that the model's own encoder scores, one for each scene; none with handed-in scores."""
        if self.options.scorer == "external":
            return [torch.empty(0, dtype=torch.long) for _ in wanted]
        return [
            representative(look, frame_scenes(look, SCENES_PER_FRAME * count))
            for look, count in zip(looks, wanted, strict=True)
        ]

    def _choose(
        self,
        call: VideoCall,
        prompt: Prompt,
        looks: Sequence[Tensor],
        wanted: Sequence[int],
        scored: Sequence[Tensor],
        features: Tensor | None,
    ) -> list[Tensor]:
        """The frames to keep of each video; ``features`` (R, H) are read at the scored frames."""
        row_of = rows_of_videos(call, prompt, self.tower.placeholder(prompt.ids))
        external = self.options.scorer == "external"
        given = frame_scores(current_scores(), call) if external else []
        kept = []
        for video, (look, count) in enumerate(zip(looks, wanted, strict=True)):
            limit = {} if external else {"max_scenes": SCENES_PER_FRAME * count}
            scene_F = frame_scenes(look, **limit)
            if external or features is None:
                relevance_S = scene_means(given[video], scene_F)
            else:
                words = self.tower.embed(self._question(prompt, row_of, video, call))
                relevance_S = words_and_features(words, features, call, video, scored[video])
            kept.append(choose_frames(look, scene_F, relevance_S, count, self.options.balance))
        return kept

    def _question(self, prompt: Prompt, row_of: Sequence[int], video: int, call: VideoCall) -> Tensor:
        """Token ids of the question in the row that a video stands in."""
        beside = [other for other, row in enumerate(row_of) if row == row_of[video]]
        videos = only_rows(call.token_rows, beside)
        return prompt.question(row_of[video], self.tower.placeholder(prompt.ids), videos, chat_of(self.model).tokens)

    def _note(self, call: VideoCall, kept: Sequence[Tensor], scored: Sequence[Tensor]) -> None:
        from segmo.compiler.backend import SETUP

        report: Report = report_for(self.model, self.options, SETUP)
        frames = sum(call.pixel_rows.frames)
        both = sum(len(torch.unique(torch.cat(pair))) for pair in zip(kept, scored, strict=True))
        report.frames = FrameCounts(frames, both if self.pushed else frames, tuple(tuple(f.tolist()) for f in kept))


_ENCODER: ContextVar[FrameEncoder | None] = ContextVar("segmo_encoder", default=None)


@contextmanager
def encoding(encoder: FrameEncoder, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, ``encoder`` stands in front of its model's own, and the prompt is that of these arguments."""
    base = encoder.tower.base
    if not isinstance(vars(base).get(NAME), Features):
        setattr(base, NAME, Features(base))
    token = _ENCODER.set(encoder)
    try:
        with prompt_known(inputs):
            yield
    finally:
        _ENCODER.reset(token)


class Features:
    """Takes the place of a model's ``get_video_features``: the encoder of the running call, or else the model's own."""

    segmo = True

    def __init__(self, base: Any) -> None:
        self.base = base
        self.original = base.get_video_features

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        encoder = _ENCODER.get()
        chosen = encoder if encoder is not None and encoder.tower.base is self.base else self.original
        return chosen(*args, **kwargs)


def encode_all(model: Any) -> None:
    """Takes what :func:`encoding` put there away again."""
    base = getattr(model, "base_model", None)
    if base is not None and isinstance(vars(base).get(NAME), Features):
        delattr(base, NAME)
