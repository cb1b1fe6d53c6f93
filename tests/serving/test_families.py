"""The other families, tiny and random: vLLM with the plugin against transformers on the same kept tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import tiny
from serving.conftest import stop
from serving.engine import IMAGE, MARKS, answers, start
from serving.reference import largest_difference

from segmo.integrations.vllm import model as plugin

FPS = 1.0
TOKENS = 3
# Text, pictures of each video, and how many images there are.
PROMPTS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "video first": (f"{MARKS} w10 w11 w12", (16,), 0),
    "text first": (f"w15 w16 {MARKS} w17", (16,), 0),
    "image first": (f"{IMAGE}{MARKS} w18 w19", (16,), 1),
    "two videos and an image": (f"{MARKS} w20 {IMAGE} w21 {MARKS} w22 w23", (12, 8), 1),
    "three videos": (f"{MARKS}{MARKS} w24 {MARKS} w25", (8, 8, 4), 0),
    "no video": ("w30 w31 w32", (), 0),
    "images alone": (f"w33 {IMAGE} w34 {IMAGE}", (), 2),
}
HYBRID = ("qwen3_5", "qwen3_5_moe")  # vLLM's linear attention on the CPU is in bf16 alone


def film(frames: int, seed: int) -> np.ndarray:
    """Frames that hold still for four at a time, with some noise."""
    random = np.random.default_rng(seed)
    held = random.integers(0, 255, (frames, tiny.SIDE, tiny.SIDE, 3))[np.arange(frames) // 4 * 4]
    return np.clip(held + random.integers(-9, 9, held.shape), 0, 255).astype(np.uint8)


def metadata(frames: int) -> dict[str, Any]:
    indices = list(range(frames))
    return {"fps": FPS, "total_num_frames": frames, "duration": frames / FPS, "frames_indices": indices}


class Watched:
    """What the plugin did: tokens kept of each video, features from vLLM's encoder, positions that the decoder got."""

    def __init__(self, engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[list[int]] = []
        self.positions: list[torch.Tensor] = []  # of each step
        choose = plugin.choose

        def spy(*args: Any) -> Any:
            selection = choose(*args)
            self.kept.append(selection.index.tolist())
            return selection

        def see(_: Any, args: Any, named: dict[str, Any]) -> None:
            self.positions.append(named["positions"].clone())

        monkeypatch.setattr(plugin, "choose", spy)
        held = engine.llm_engine.model_executor.driver_worker.worker.model_runner.model
        held.register_forward_pre_hook(see, with_kwargs=True)


@torch.no_grad()
def reference(
    model: Any, processor: Any, text: str, films: list[Any], images: list[Any], kept: Any, generated: list[int]
) -> Any:
    """Log-probabilities of each of the tokens that follow, with these tokens of each video kept, (T, vocabulary).

    Also the positions of all that went in: the kept tokens, and those that follow, but for the last, (3, K + T - 1).
    """
    shown = {"videos": films, "video_metadata": [metadata(len(f)) for f in films]} if films else {}
    inputs = processor(text=[text], **shown, images=images or None, return_tensors="pt", return_mm_token_type_ids=True)
    ids = inputs["input_ids"]
    base = model.model
    embeds = base.get_input_embeddings()(ids).clone()
    stays = torch.ones_like(ids, dtype=torch.bool)
    deep: dict[int, list[torch.Tensor]] = {}
    for token, names, read in (
        (tiny.VIDEO, ("pixel_values_videos", "video_grid_thw"), "get_video_features"),
        (tiny.IMAGE, ("pixel_values", "image_grid_thw"), "get_image_features"),
    ):
        if names[0] in inputs:
            found = getattr(base, read)(inputs[names[0]].to(embeds), inputs[names[1]], return_dict=True)
            embeds[ids == token] = torch.cat(list(found.pooler_output)).to(embeds)
            deep[token] = list(getattr(found, "deepstack_features", None) or [])
    places = (ids[0] == tiny.VIDEO).nonzero()[:, 0]
    sizes = [int(grid.prod()) // 4 for grid in inputs.get("video_grid_thw", [])]
    for place, chosen in zip(places.split(sizes), kept, strict=True):
        stays[0, place] = False
        stays[0, place[chosen]] = True
    named = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    given = {name: torch.as_tensor(inputs[name]) for name in named if name in inputs}
    positions, _ = base.get_rope_index(ids, mm_token_type_ids=inputs["mm_token_type_ids"], **given)
    extra: dict[str, Any] = {}
    if any(deep.values()):
        media = (ids == tiny.VIDEO) | (ids == tiny.IMAGE)
        levels = len(next(iter(deep.values())))
        merged = [embeds.new_zeros(*embeds.shape) for _ in range(levels)]
        for token, layers in deep.items():
            for into, layer in zip(merged, layers, strict=True):
                into[ids == token] = torch.cat(list(layer)) if isinstance(layer, (list, tuple)) else layer
        extra["visual_pos_masks"] = media[:, stays[0]]
        extra["deepstack_visual_embeds"] = [layer[media & stays] for layer in merged]
    more = base.get_input_embeddings()(torch.tensor([generated[:-1]], dtype=torch.long))
    following = positions.max() + 1 + torch.arange(more.shape[1])
    where = torch.cat([positions[:, :, stays[0]], following.expand(3, 1, -1)], dim=2)
    if extra:
        extra["visual_pos_masks"] = torch.nn.functional.pad(extra["visual_pos_masks"], (0, more.shape[1]))
    hidden = base.language_model(
        inputs_embeds=torch.cat([embeds[:, stays[0]], more], dim=1), position_ids=where, use_cache=False, **extra
    )[0]
    return model.lm_head(hidden[0, -len(generated) :]).float().log_softmax(-1), where[:, 0]


@pytest.mark.parametrize("family", tiny.BUILD)
def test_a_family_answers_as_in_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Each prompt twice: the second time out of vLLM's caches."""
    model, processor = tiny.build(family, tmp_path)
    hybrid = family in HYBRID
    dtype, tolerance = ("bfloat16", 0.25) if hybrid else ("float32", 2e-3)
    model.to(getattr(torch, dtype))
    more = {"dtype": dtype, "limit_mm_per_prompt": {"video": 3, "image": 2}}
    engine = start(tmp_path, max_model_len=512, max_num_batched_tokens=512, video_pruning_rate=0.5, **more)
    request.addfinalizer(lambda: stop(engine))
    watched = Watched(engine, monkeypatch)
    for name, (text, lengths, pictures) in PROMPTS.items():
        films = [film(length, at) for at, length in enumerate(lengths)]
        images = [film(1, 9 + at)[0] for at in range(pictures)]
        data = {"video": [(f, metadata(len(f)) | {"do_sample_frames": False}) for f in films], "image": images}
        asked: Any = {"prompt": text, "multi_modal_data": {kind: found for kind, found in data.items() if found}}
        watched.kept.clear()
        for again in range(2):
            watched.positions.clear()
            output = answers(engine, [asked], TOKENS)[0]
            given = list(output.outputs[0].token_ids)
            expected, where = reference(model, processor, text, films, images, watched.kept, given)
            if not again:  # what the prefix cache holds is not run again
                assert torch.cat(watched.positions, dim=1).tolist() == where.tolist(), name
            assert len(output.prompt_token_ids) == where.shape[1] - TOKENS + 1, name
            worst = largest_difference(output, expected)
            assert worst < tolerance, (name, again, worst)
            short = expected.amax(-1) - expected[range(TOKENS), given]
            assert float(short.max()) < 2 * tolerance, name
        assert [len(row) for row in watched.kept] == [length // 2 * 4 // 2 for length in lengths], name
