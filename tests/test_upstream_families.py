"""Frames that are left out before the encoder, for every family: it is handed the chosen ones and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from video_families import FAMILIES, OLD, build, prompt
from video_prompts import Prompt

import segmo
from segmo.errors import OptionError, PromptError
from segmo.options import Options
from segmo.upstream.encoder import FrameEncoder, encode_all, encoding

FRAMES, SHARE = 7, 0.4
# Other tests run these four; of the fifth, no tokens can be dropped.
ELSEWHERE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision", "minimax_m3_vl")
UPSTREAM = [family for family in FAMILIES if family not in ELSEWHERE]
# One or two families for each shape of an encoder's arguments; the rest with --exhaustive.
SHAPES = (
    "internvl", "gemma4", "gemma4_unified", "smolvlm", "video_llama_3", "llava_next_video", "minicpmv4_6", "molmo2",
    "ernie4_5_vl_moe", "kimi_k25", "muse_glimmer", "nemotron_h_omni", "perception_lm", "video_llava",
)  # fmt: skip


def by_frame(value: Tensor, frames: int = FRAMES) -> Tensor:
    """(frames, rows of a frame, ...) from rows that lie frame after frame."""
    return value.unflatten(0, (frames, -1))


def of_frames(family: str, inputs: Prompt, kept: tuple[int, ...]) -> dict[str, Tensor]:
    """The arguments of the family's own encoder for some frames of a video, cut by hand."""
    chosen, count = list(kept), len(kept)
    videos = inputs.get("pixel_values_videos")
    if family == "internvl":
        return {"pixel_values": inputs["pixel_values"][chosen]}
    if family == "smolvlm":
        return {"pixel_values": inputs["pixel_values"][:, chosen]}
    assert videos is not None
    if family == "kimi_k25":
        return {
            "pixel_values_videos": by_frame(videos)[chosen].flatten(0, 1),
            "video_grid_thw": inputs["video_grid_thw"][chosen],
        }
    if "video_grid_thw" in inputs:
        grid = inputs["video_grid_thw"].clone()
        grid[0, 0] = grid[0, 0] // FRAMES * count
        more = {name: inputs[name] for name in ("video_merge_sizes",) if name in inputs}
        return {"pixel_values_videos": by_frame(videos)[chosen].flatten(0, 1), "video_grid_thw": grid, **more}
    if "video_position_ids" in inputs:
        places = inputs["video_position_ids"][chosen]
        return {
            "pixel_values_videos": videos[chosen],
            "video_position_ids": places,
            "num_frames_per_video": torch.tensor([count]),
        }
    if "target_sizes_videos" in inputs:
        strips = videos.unflatten(3, (FRAMES, -1))[:, :, :, chosen]
        return {
            "pixel_values_videos": strips.flatten(3),
            "target_sizes_videos": inputs["target_sizes_videos"][chosen],
        }
    if "video_token_pooling" in inputs:
        block = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
        return {
            "pixel_values_videos": videos[chosen],
            "video_token_pooling": (block[None] + 16 * torch.arange(count)[:, None, None]).flatten(0, 1),
            "video_grids": torch.tensor([[count, 2, 2]]),
        }
    if family == "nemotron_h_omni":
        return {"pixel_values_videos": by_frame(videos)[chosen].flatten(0, 1)}
    name = "pixel_values" if family == "perception_lm" else "pixel_values_videos"
    return {name: videos[:, chosen]}


def flat(features: Any) -> Tensor:
    if isinstance(features, (tuple, list)):
        return torch.cat([flat(part) for part in features])
    rows: Tensor = features
    return rows.flatten(0, -2)


def own_encoder(model: Any) -> Callable[..., Any]:
    base = model.base_model
    found: Callable[..., Any] = getattr(base, "get_video_features", None) or base.get_image_features
    return found


@pytest.mark.parametrize("family", UPSTREAM)
def test_the_encoder_gets_the_chosen_frames_alone(family: str, request: pytest.FixtureRequest) -> None:
    """Their features are those of the model's own encoder, called with these frames cut out by hand."""
    if family not in SHAPES and not request.config.getoption("--exhaustive"):
        pytest.skip("another family of the same shape is enough")
    if family == "gemma4_unified" and OLD:
        pytest.skip("its frames cannot be told apart in the pixels of an older transformers, which is an error there")
    model, inputs = build(family), prompt(family, FRAMES)
    encoder = FrameEncoder(model, Options(frames=SHARE, scorer="external"))
    original, sizes = encoder.tower.original, []

    def spied(*args: Any, **kwargs: Any) -> Any:
        sizes.append(max(value.numel() for value in kwargs.values() if isinstance(value, Tensor)))
        return original(*args, **kwargs)

    vars(encoder.tower)["original"] = spied
    with encoding(encoder, inputs), torch.no_grad(), segmo.external_scores([9.0, 0, 0, 9, 0, 9, 0]):
        for _ in range(2):  # the first call tries the encoder out, too
            sizes.clear()
            encode = getattr(model.base_model, encoder.tower.name)
            names = encoder.tower.signature.parameters
            out = encode(**{name: inputs[name] for name in inputs if name in names}, return_dict=True)
    counts = segmo.last_report().frames
    encode_all(model)
    assert counts is not None
    kept = counts.kept[0]
    assert len(kept) == 3 == counts.encoded
    largest = max(value.numel() for name, value in inputs.items() if name.startswith("pixel_values"))
    assert sizes == [largest // FRAMES * len(kept)]
    found = flat(out.pooler_output)
    cells = len(found) // FRAMES
    with torch.no_grad():
        expected = flat(own_encoder(model)(**of_frames(family, inputs, kept), return_dict=True).pooler_output)
    torch.testing.assert_close(by_frame(found)[list(kept)].flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    missing = [frame for frame in range(FRAMES) if frame not in kept]
    behind = by_frame(found)[missing]
    if family == "molmo2":  # which adds features to the placeholders' embeddings
        behind = behind + model.get_input_embeddings()(inputs["input_ids"][inputs["input_ids"] == 6][:1])
    assert cells == len(expected) // len(kept)
    assert not behind.any()


def test_what_does_not_fit_the_prompt_is_refused() -> None:
    def encode(family: str, **changed: Any) -> None:
        model, inputs = build(family), {**prompt(family, FRAMES), **changed}
        encoder = FrameEncoder(model, Options(frames=0.5))
        names = encoder.tower.signature.parameters
        with encoding(encoder, inputs), torch.no_grad():
            getattr(model.base_model, encoder.tower.name)(**{n: inputs[n] for n in inputs if n in names})

    pictures = torch.randn(5, 3, 16, 16)
    with pytest.raises(PromptError, match="7 runs of video tokens and its videos 5 frames"):
        encode("internvl", pixel_values=pictures)
    with pytest.raises(PromptError, match=r"have \[32, 64\] patches"):
        encode("minicpmv4_6", target_sizes_videos=torch.tensor([[8, 4], *[[8, 8]] * 6]))
    with pytest.raises(PromptError, match="not whole frames"):
        encode("llava_next_video", input_ids=torch.tensor([[10, *[5] * 9, 11, *[5] * 9, 12]]))
    model = build("ernie4_5_vl_moe")
    model.config.vision_config.temporal_merge_size = 3
    with pytest.raises(OptionError, match="cannot tell which rows"):
        FrameEncoder(model, Options(frames=0.5))


def chosen(
    model: Any, inputs: Prompt, scores: list[float], **options: Any
) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """Features of a prompt's frames, zeros for those that were left out, and the numbers of the others."""
    encoder = FrameEncoder(model, Options(scorer="external", **options))
    names = encoder.tower.signature.parameters
    with encoding(encoder, inputs), torch.no_grad(), segmo.external_scores(scores):
        out = getattr(model.base_model, encoder.tower.name)(**{n: inputs[n] for n in inputs if n in names})
    counts = segmo.last_report().frames
    encode_all(model)
    assert counts is not None
    assert counts.encoded == sum(map(len, counts.kept))
    return flat(out.pooler_output), counts.kept


def there(features: Tensor, rows: list[int]) -> list[int]:
    """Numbers of the frames that have features, of frames with so many rows each."""
    return [frame for frame, part in enumerate(torch.split(features, rows)) if bool(part.any())]


def test_every_video_of_a_prompt_has_a_budget_of_its_own() -> None:
    first, second = prompt("internvl", 4, seed=1), prompt("internvl", 6, seed=2)
    both = {
        name: torch.cat([first[name], second[name]], 0 if name == "pixel_values" else 1)
        for name in ("input_ids", "attention_mask", "pixel_values")
    }
    model = build("internvl")
    features, kept = chosen(model, both, [9.0, *[0] * 8, 9], frames=0.5)
    assert [len(part) for part in kept] == [2, 3]
    assert (kept[0][0], kept[1][-1]) == (0, 5)
    assert there(features, [4] * 10) == [*kept[0], *(4 + frame for frame in kept[1])]


def test_pictures_that_fill_up_a_row_of_a_batch_are_no_frames() -> None:
    """SmolVLM: two rows, the second with an image less than there is room for."""
    inputs = prompt("smolvlm", 6)
    batch = {name: inputs[name].repeat(2, 1) for name in ("input_ids", "attention_mask")}
    empty = torch.zeros(2, 1, *inputs["pixel_values"].shape[2:])
    batch["pixel_values"] = torch.cat([inputs["pixel_values"].repeat(2, 1, 1, 1, 1), empty], 1)
    model = build("smolvlm")
    features, kept = chosen(model, batch, [9.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], frames=0.5)
    assert [len(part) for part in kept] == [3, 3]
    assert there(features, [4] * 12) == [*kept[0], *(6 + frame for frame in kept[1])]


@pytest.mark.skipif(OLD, reason="the encoder of an older transformers fails on pictures of unequal size")
def test_the_slices_of_a_frame_stay_together() -> None:
    """MiniCPM-V shows a frame whole and then in slices, in brackets of another kind."""
    row: list[int] = [11, 12]
    for frame in range(5):
        row += [20 + frame, 21, 7, *[5] * 4, 8, 14, *[5] * 2, 15, 14, *[5] * 2, 15]
    inputs = {"input_ids": torch.tensor([[*row, 30, 31, 32]])}
    inputs["target_sizes_videos"] = torch.tensor([[8, 8], [4, 8], [4, 8]] * 5)
    inputs["pixel_values_videos"] = torch.randn(1, 3, 4, 5 * 4 * (64 + 32 + 32))
    model = build("minicpmv4_6")
    features, kept = chosen(model, inputs, [0.0, 9, 0, 0, 9], frames=0.4)
    assert len(kept[0]) == 2
    assert there(features, [8] * 5) == list(kept[0])
    with torch.no_grad():
        strips = inputs["pixel_values_videos"].unflatten(3, (5, -1))[:, :, :, list(kept[0])].flatten(3)
        whole = model.base_model.get_video_features(strips, torch.tensor([[8, 8], [4, 8], [4, 8]] * 2))
    found = features.unflatten(0, (5, -1))[list(kept[0])].flatten(0, 1)
    torch.testing.assert_close(found, flat(whole.pooler_output), rtol=1e-4, atol=1e-5)


def test_where_tokens_that_repeat_are_left_out_there_are_enough_for_the_decoder() -> None:
    """VideoLLaMA3: the first frame has four tokens, the others have one. Half of nine are not in any three of those."""
    inputs = prompt("video_llama_3", 6)
    mask = torch.tensor([True] * 4 + [True, False, False, False] * 5)
    text = inputs["input_ids"][0] != 5
    stays = text.clone()
    stays[~text] = mask
    shorter = {name: inputs[name][:, stays] for name in ("input_ids", "attention_mask")}
    changed = {**inputs, **shorter, "video_compression_mask": mask}
    model = build("video_llama_3")
    scores = [0.0, 0, 0, 9, 9, 9]
    few = chosen(model, changed, scores, frames=0.5, keep=0.3)[1][0]
    assert len(few) == 3
    assert 0 not in few
    features, kept = chosen(model, changed, scores, frames=0.5, keep=1)
    assert kept == ((0, *few),)
    assert there(features, [4] * 6) == [0, *few]
