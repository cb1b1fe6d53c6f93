"""Frames and cells as SegMo infers them, against what the real processors of transformers laid out.

Nothing is assumed about a processor's prompt. Which tokens show a frame is found by changing its pixels: they are those
whose embeddings in front of the decoder are others then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from family_folders import build_model, build_processor
from family_processors import PROCESSORS
from kept_tokens import decoder
from video_families import OLD

import segmo
import segmo.runtime.ops  # registers torch.ops.segmo
from segmo.calls.videos import cells_of, frames_of
from segmo.compiler.chat import chat_of
from segmo.families import family_for
from segmo.runtime.layout import QUERY, SINK, TURN
from segmo.runtime.videos import frames_known

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

# Compiled here too; with --exhaustive, all that can be.
COMPILED = ("qwen3_vl", "gemma4")
UNCOMPILED = ("qwen4_exp",)


def film(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def inputs_of(family: str, processor: Any, videos: Sequence[np.ndarray]) -> dict[str, Any]:
    """A prompt with text around each video, as the family's processor lays it out."""
    folder = PROCESSORS[family]
    text = "".join(f"The video {folder.placeholder} is what " for _ in videos) + "happens?"
    inputs: dict[str, Any] = processor(
        text=[text],
        videos=list(videos),
        video_metadata=[
            {"total_num_frames": len(video), "fps": 2.0, "frames_indices": list(range(len(video)))} for video in videos
        ],
        do_sample_frames=False,
        return_tensors="pt",
        **folder.call,
    )
    inputs.pop("video_metadata", None)
    return inputs


class _SeenError(Exception):
    """Ends a call in front of the decoder."""


def seen(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the model and its decoder are called with, and what is known of the videos by then."""
    found: dict[str, Any] = {}

    def outside(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(call=kwargs, frames=frames_of(model, kwargs)[0], cells=cells_of(kwargs))

    def inside(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        found.update(embeds=kwargs["inputs_embeds"], positions=kwargs.get("position_ids"))
        raise _SeenError

    hooks = [
        model.register_forward_pre_hook(outside, with_kwargs=True),
        decoder(model).register_forward_pre_hook(inside, with_kwargs=True),
    ]
    with torch.no_grad(), pytest.raises(_SeenError):
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    for hook in hooks:
        hook.remove()
    return found


def tokens_of_frames(family: str, model: Any, processor: Any, videos: Sequence[np.ndarray]) -> list[list[set[int]]]:
    """For each video the tokens of each frame that the prompt has of it: those that change with its pixels."""
    before = seen(model, inputs_of(family, processor, videos))["embeds"]
    found: list[list[set[int]]] = []
    for at, video in enumerate(videos):
        found.append([])
        for frame in range(len(video)):
            other = video.copy()
            other[frame] = 255 - other[frame]
            after = seen(model, inputs_of(family, processor, [*videos[:at], other, *videos[at + 1 :]]))["embeds"]
            tokens = set(((after - before).abs().amax(-1)[0] > 0).nonzero()[:, 0].tolist())
            if tokens not in found[-1]:  # pictures that the model merges into one frame change the same tokens
                found[-1].append(tokens)
    return found


def laid_out(model: Any, call: dict[str, Any], video_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame and cell of each token by SegMo's operator, called as its graph does."""
    config, positions = model.config, call["positions"]
    rules = family_for(config)
    mrope = positions if positions is not None and positions.dim() == 3 and rules.mrope is not False else None
    cells = rules.cells_per_frame(config) if rules.cells_per_frame else 0
    chat = chat_of(model).tokens.to_text()
    with frames_known(call["frames"], call["cells"]):
        frame_BN, cell_BN = torch.ops.segmo.video_layout(
            video_N[None], mrope, cells, rules.trailing, call["call"]["input_ids"], chat
        )
    return frame_BN[0], cell_BN[0]


def check_roles(frame_N: torch.Tensor, video_N: torch.Tensor, of_video: list[list[set[int]]]) -> None:
    """Text before, between and behind videos is that; within a video there is none but its frames' own."""
    bounds = [(min(map(min, frames)), max(map(max, frames))) for frames in of_video]
    assert set(frame_N[: bounds[0][0]].tolist()) == {SINK}
    for first, last in bounds:
        assert int(frame_N[first : last + 1].min()) >= 0
    for (_, last), (first, _) in pairwise(bounds):
        between = frame_N[last + 1 : first][~video_N[last + 1 : first]]
        assert set(between.tolist()) == {TURN}
    behind = frame_N[bounds[-1][1] + 1 :]
    assert set(behind[~video_N[bounds[-1][1] + 1 :]].tolist()) == {QUERY}


def check_layout(frame_N: torch.Tensor, cell_N: torch.Tensor, of_video: list[list[set[int]]]) -> None:
    """Each frame has the tokens that show it, and its cells in order; a newline behind a video joins its last frame."""
    shown = [tokens for frames in of_video for tokens in frames]
    ends = {sum(map(len, of_video[: at + 1])) - 1 for at in range(len(of_video))}
    for frame, tokens in enumerate(shown):
        found = ((frame_N == frame) & (cell_N >= 0)).nonzero()[:, 0]
        newline = set(found.tolist()) - tokens
        assert tokens <= set(found.tolist())
        assert not newline or (frame in ends and newline == {int(found[-1])})
        assert cell_N[found].tolist() == list(range(len(found)))
    assert int(frame_N.max()) == len(shown) - 1
    check_roles(frame_N, cell_N >= 0, of_video)


def stacks(family: str, processor: Any, videos: Sequence[np.ndarray]) -> bool:
    """Whether the processor takes these videos together; of some families those of older releases fail."""
    try:
        inputs_of(family, processor, videos)
    except (RuntimeError, ValueError):
        if OLD:
            return False
        raise
    return True


def videos_for(family: str, processor: Any) -> list[np.ndarray]:
    """Frames of odd sizes, and two videos of other lengths and shapes where a call takes them."""
    both = [film(6, 33, 47), film(4, 40, 30, seed=1)]
    return both if PROCESSORS[family].together and stacks(family, processor, both) else both[:1]


def compiled_layout(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Frame and cell of each token as a compiled prefill's report has them."""
    with torch.no_grad():
        segmo.compile(model, keep=0.25, segments=1).generate(**inputs, max_new_tokens=1, do_sample=False)
    report = segmo.last_report()
    prefill, tokens = report.prefill, report.to_dict()["tokens"]
    assert prefill is not None
    assert tokens["kept"] == tokens["video"] // 4
    return prefill.frame[0], prefill.cell[0]


@pytest.mark.parametrize("family", PROCESSORS)
def test_frames_and_cells_are_those_of_the_processor(family: str, request: pytest.FixtureRequest) -> None:
    processor = build_processor(family)
    model, videos = build_model(family, processor), videos_for(family, processor)
    of_video = tokens_of_frames(family, model, processor, videos)
    inputs = inputs_of(family, processor, videos)
    call = seen(model, inputs)
    video_N = torch.zeros(call["embeds"].shape[1], dtype=torch.bool)
    video_N[[token for frames in of_video for tokens in frames for token in tokens]] = True
    last = int(video_N.nonzero()[-1])
    ids = call["call"]["input_ids"][0]
    video_N[last + 1] |= bool(ids[last + 1] == ids[last])  # a newline shows no pixels
    check_layout(*laid_out(model, call, video_N), of_video)
    whole = family not in UNCOMPILED and request.config.getoption("--exhaustive")
    if family in COMPILED or whole:
        check_layout(*compiled_layout(model, inputs), of_video)


def test_a_frame_and_its_slices_are_one_frame() -> None:
    """MiniCPM-V's processor shows frames that are large for it whole, and then in slices."""
    processor = build_processor("minicpmv4_6")
    processor.video_slice_mode = processor.video_processor.slice_mode = True
    videos = [film(4, 64, 100), film(3, 100, 64, seed=1)]
    if not stacks("minicpmv4_6", processor, videos):
        pytest.skip(f"the processor of transformers {transformers.__version__} takes no videos of different lengths")
    model = build_model("minicpmv4_6", processor)
    of_video = tokens_of_frames("minicpmv4_6", model, processor, videos)
    assert [len(frames) for frames in of_video] == [4, 3]
    check_layout(*compiled_layout(model, inputs_of("minicpmv4_6", processor, videos)), of_video)


def test_cells_that_a_processor_left_out_stay_where_they_were() -> None:
    """VideoLLaMA3's processor leaves out what does not change: a token is compared with its own cell's."""
    processor = build_processor("video_llama_3")
    processor.video_processor.size = {"shortest_edge": 64, "longest_edge": 48 * 32 * 6}  # of all frames together
    model, videos = (
        build_model("video_llama_3", processor),
        [film(1, 32, 48).repeat(6, 0), film(1, 48, 32).repeat(4, 0)],
    )
    videos[0][2, :8, 8:24] ^= 255  # the second and third cell of six by four
    videos[0][4:, 24:, 40:] ^= 255  # the last one
    inputs = inputs_of("video_llama_3", processor, videos)
    sizes = [(grid[0], int(grid[1] * grid[2]) // 4) for grid in inputs["video_grid_thw"].tolist()]
    masks = inputs["video_compression_mask"].split([frames * cells for frames, cells in sizes])
    shown = [mask.view(frames, cells) for mask, (frames, cells) in zip(masks, sizes, strict=True)]
    expected = [row.nonzero()[:, 0].tolist() for video in shown for row in video]
    assert expected[2:5] == [[1, 2], [1, 2], [23]]
    frame_N, cell_N = compiled_layout(model, inputs)
    found = [cell_N[(frame_N == frame) & (cell_N >= 0)].tolist() for frame in range(10)]
    assert found == expected
    assert int((frame_N == TURN).sum()) > 0
    heads = [int(((frame_N == frame) & (cell_N >= 0)).nonzero()[0]) for frame in range(10)]
    assert [bool((frame_N[a:b] == TURN).any()) for a, b in pairwise(heads)] == [frame == 5 for frame in range(9)]
