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

from segmo.integrations.vllm import model as plugin

FPS = 1.0
PROMPTS = {
    "video first": (f"{MARKS} w10 w11 w12", (16,), 0),
    "text first": (f"w15 w16 {MARKS} w17", (16,), 0),
    "two videos and an image": (f"{MARKS} w20 {IMAGE} w21 {MARKS} w22 w23", (12, 8), 1),
    "no video": ("w30 w31 w32", (), 0),
}


def film(frames: int, seed: int) -> np.ndarray:
    """Frames that hold still for four at a time, with some noise."""
    random = np.random.default_rng(seed)
    held = random.integers(0, 255, (frames, tiny.SIDE, tiny.SIDE, 3))[np.arange(frames) // 4 * 4]
    return np.clip(held + random.integers(-9, 9, held.shape), 0, 255).astype(np.uint8)


def metadata(frames: int) -> dict[str, Any]:
    indices = list(range(frames))
    return {"fps": FPS, "total_num_frames": frames, "duration": frames / FPS, "frames_indices": indices}


@torch.no_grad()
def reference(
    model: Any, processor: Any, text: str, films: list[Any], images: list[Any], kept: Any, encoded: Any = None
) -> Any:
    """Log-probabilities of the next token, with these tokens of each video kept.

    ``encoded``: features of the videos, with those for deeper layers beside them, from vLLM's own encoder.
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
        if names[0] not in inputs:
            continue
        found = getattr(base, read)(inputs[names[0]], inputs[names[1]], return_dict=True)
        embeds[ids == token] = torch.cat(list(found.pooler_output)).to(embeds)
        deep[token] = list(getattr(found, "deepstack_features", None) or [])
        if encoded is not None:
            main, *deep[token] = torch.cat(encoded).float().split(embeds.shape[-1], dim=1)
            embeds[ids == token] = main
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
    hidden = base.language_model(
        inputs_embeds=embeds[:, stays[0]], position_ids=positions[:, :, stays[0]], use_cache=False, **extra
    )[0]
    return model.lm_head(hidden[0, -1]).float().log_softmax(-1), int(stays.sum())


@pytest.mark.parametrize("family", tiny.BUILD)
def test_a_family_answers_as_in_transformers(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    kept: list[list[int]] = []

    def spy(*args: Any) -> Any:
        selection = choose(*args)
        kept.append(selection.index.tolist())
        return selection

    encoded: list[torch.Tensor] = []

    def cut(self: Any, features: torch.Tensor, *args: Any) -> Any:
        encoded.append(features.clone())
        return whole(self, features, *args)

    whole = plugin.KeepsTokens._cut
    monkeypatch.setattr(plugin.KeepsTokens, "_cut", cut)
    choose = plugin.choose
    monkeypatch.setattr(plugin, "choose", spy)
    model, processor = tiny.build(family, tmp_path)
    engine = start(tmp_path, max_model_len=512, max_num_batched_tokens=512, video_pruning_rate=0.5)
    request.addfinalizer(lambda: stop(engine))
    own_encoder = family == "qwen2_5_vl"  # vLLM's encoder of Qwen3-VL gives other features, with all tokens as well
    for name, (text, lengths, pictures) in PROMPTS.items():
        if pictures and not own_encoder:
            text, pictures = text.replace(IMAGE, "w40"), 0
        films = [film(length, at) for at, length in enumerate(lengths)]
        images = [film(1, 9)[0] for _ in range(pictures)]
        data = {"video": [(f, metadata(len(f)) | {"do_sample_frames": False}) for f in films], "image": images}
        asked: Any = {"prompt": text, "multi_modal_data": {kind: found for kind, found in data.items() if found}}
        kept.clear()
        encoded.clear()
        for again in range(2):
            output = answers(engine, [asked], 1)[0]
            expected, length = reference(
                model, processor, text, films, images, [*kept], None if own_encoder else encoded
            )
            assert len(output.prompt_token_ids) == length, name
            row = output.outputs[0].logprobs[0]
            worst = max(abs(entry.logprob - float(expected[token])) for token, entry in row.items())
            assert worst < 2e-3, (name, again, worst)
            assert int(expected.argmax()) == output.outputs[0].token_ids[0], name
        assert [len(row) for row in kept] == [length // 2 * 4 // 2 for length in lengths], name
