"""Chooses frames in front of a model's vision encoder, and encodes no others where that gives the same features.

With ``frames=0.25`` this stands in front of what encodes a model's frames (``get_video_features``, mostly) while what
was compiled, or its ``generate``, is called; ``segmo.uncompile`` takes it away. Elsewhere there is no question, and
every frame is encoded.

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
from segmo.families import encoder_of, family_for
from segmo.options import Options
from segmo.passes.analyse import Facts
from segmo.passes.pipeline import build_pass
from segmo.passes.push_selection import PushSelection, vision_graph
from segmo.passes.reasons import Miss
from segmo.passes.runner import run_pipeline
from segmo.report.history import report_for
from segmo.report.prefill import FrameCounts
from segmo.report.report import Report, complain
from segmo.runtime.encoded import place_rows
from segmo.runtime.external import current_scores
from segmo.runtime.frame_budget import choose_frames, frame_count, frame_scenes, representative, scene_means
from segmo.runtime.host import made_here
from segmo.upstream.prompt import Prompt, current_prompt, prompt_known
from segmo.upstream.proof import prove_independence
from segmo.upstream.scores import descriptors, frame_scores, rows_of_videos, words_and_features
from segmo.upstream.shapes import shape_of
from segmo.upstream.tower import Tower
from segmo.upstream.video_call import VideoCall

# Scenes whose representatives the model's own encoder is asked to score, for each frame that is kept. More scenes would
# make scoring dearer than answering; a scorer that is cheap (scorer="external") has no such limit.
SCENES_PER_FRAME = 2


def chooses_frames_of(model: Any) -> bool:
    """Whether frames can be told apart in what goes into a model's vision encoder and in what comes out."""
    base = model.base_model
    encode = encoder_of(base, "video") or encoder_of(base, "image")
    return encode is not None and shape_of(inspect.signature(encode).parameters, model.config, {}) is not None


class FrameEncoder:
    """What stands in front of one model's vision encoder."""

    def __init__(self, model: Any, options: Options) -> None:
        family = family_for(model.config)
        if not chooses_frames_of(model):
            raise OptionError(
                f"frames={options.frames:g}: SegMo cannot tell which rows of a {family.model_type!r} video belong to "
                "which frame in front of its vision encoder; set frames=1"
            )
        self.model = model
        self.options = options
        self.tower = Tower(model, family)
        self.graph: GraphModule | None = None
        self.pushed = False

    @made_here()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's ``get_video_features``, with zeros in the places of frames that were not chosen."""
        prompt = current_prompt()
        if prompt is None:
            self._leave()
            return self.tower.original(*args, **kwargs)
        call = self.tower.read(args, kwargs, prompt)
        if call is None:
            return self.tower.original(*args, **kwargs)
        if self.graph is None:
            self._build(call)
        wanted = [frame_count(frames, self.options.frames) for frames in call.beside.frames]
        looks = descriptors(call)
        scored = self._scored(looks, wanted)
        if self.pushed:
            kept, features = self._encode_chosen(call, prompt, looks, wanted, scored)
        else:
            whole = self._encode(call, [torch.arange(frames) for frames in call.beside.frames])
            kept = self._choose(call, prompt, looks, wanted, scored, whole[0])
            rows = call.token_rows.of(kept).to(call.pixels.device)
            features = [place_rows(item[rows], rows, call.token_rows.total) for item in whole]
        self._note(call, kept, scored)
        missing_R = torch.ones(call.token_rows.total, dtype=torch.bool)
        missing_R[call.token_rows.of(kept)] = False
        features[0][missing_R.to(features[0].device)] = self.tower.absent(features[0], prompt.ids)
        return self.tower.output(call, features, len(prompt.ids))

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

    def _leave(self) -> None:
        """Says that every frame is encoded, because it is not known where they stand."""
        from segmo.compiler.backend import SETUP
        from segmo.compiler.left import leave

        report_for(self.model, self.options, SETUP).frames = None
        leave(self.model, self.options, "vision", [build_pass(PushSelection, self.options)], Miss.of("no-ids"))

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
        assert self.tower.shape is not None
        groups = [videos] if self.tower.shape.joint else [[video] for video in videos]
        found: list[Tensor] = []
        for group in groups:
            made = self._run(call.only(group), [kept[video] for video in group])
            spread = [call.spread(group, item) for item in made]
            found = [a + b for a, b in zip(found, spread, strict=True)] if found else spread
        return found

    def _run(self, call: VideoCall, kept: Sequence[Tensor]) -> list[Tensor]:
        """The vision graph on a call, of whose every video something is kept."""
        assert self.graph is not None
        device = call.pixels.device
        rows, total = call.token_rows.of(kept).to(device), call.token_rows.total
        few, pixel_rows = call.beside.of(kept), call.pixel_rows.of(kept).to(device)
        made = self.graph(call.pixels, call.beside, pixel_rows, few, rows, total)
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
        return self._enough(call, prompt, row_of, kept)

    def _enough(self, call: VideoCall, prompt: Prompt, row_of: Sequence[int], kept: Sequence[Tensor]) -> list[Tensor]:
        """The chosen frames, and further ones where those have fewer tokens than the decoder is to keep.

        That is so only where a processor leaves tokens out that repeat: then the frames with most tokens are taken
        along, ties by order.
        """
        share, found = min(self.options.keep, self.options.frames), [frame_M.tolist() for frame_M in kept]
        frames, frame_T = list(call.beside.frames), prompt.shown(call.token_rows).frame_T
        size_F = torch.split(torch.bincount(frame_T[frame_T >= 0], minlength=sum(frames)), frames)
        for row in set(row_of):
            videos = [video for video, place in enumerate(row_of) if place == row]
            wanted = int(share * sum(int(size_F[video].sum()) for video in videos))
            there = sum(int(size_F[video][found[video]].sum()) for video in videos)
            others = [(-int(n), v, f) for v in videos for f, n in enumerate(size_F[v].tolist()) if f not in found[v]]
            for size, video, frame in sorted(others):
                if there >= wanted:
                    break
                found[video].append(frame)
                there -= size
        return [torch.tensor(sorted(numbers)) for numbers in found]

    def _question(self, prompt: Prompt, row_of: Sequence[int], video: int, call: VideoCall) -> Tensor:
        """Token ids of the question in the row that a video stands in."""
        row = [other for other, place in enumerate(row_of) if place == row_of[video]]
        shown = prompt.shown(call.token_rows).only(row)
        return prompt.question(row_of[video], self.tower.placeholder(prompt.ids), shown, chat_of(self.model).tokens)

    def _note(self, call: VideoCall, kept: Sequence[Tensor], scored: Sequence[Tensor]) -> None:
        from segmo.compiler.backend import SETUP

        report: Report = report_for(self.model, self.options, SETUP)
        frames = sum(call.beside.frames)
        both = sum(len(torch.unique(torch.cat(pair))) for pair in zip(kept, scored, strict=True))
        report.frames = FrameCounts(frames, both if self.pushed else frames, tuple(tuple(f.tolist()) for f in kept))


_ENCODER: ContextVar[FrameEncoder | None] = ContextVar("segmo_encoder", default=None)


@contextmanager
def encoding(encoder: FrameEncoder, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Inside the block, ``encoder`` stands in front of its model's own, and the prompt is that of these arguments."""
    base, name = encoder.tower.base, encoder.tower.name
    if not isinstance(vars(base).get(name), Features):
        setattr(base, name, Features(encoder.tower))
    token = _ENCODER.set(encoder)
    try:
        with prompt_known(inputs):
            yield
    finally:
        _ENCODER.reset(token)


class Features:
    """Takes the place of what encodes a model's frames: the encoder of the running call, or else the model's own."""

    segmo = True

    def __init__(self, tower: Tower) -> None:
        self.base, self.original = tower.base, tower.original
        self.own = vars(tower.base).get(tower.name)  # what somebody else had put there

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
    for name, value in list(vars(base).items()) if base is not None else ():
        if isinstance(value, Features):
            delattr(base, name)
            if value.own is not None:
                setattr(base, name, value.own)
