"""Images beside a video: an image is no frame, and none of its tokens is dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kept_tokens import kept_tokens_only
from video_families import build, prompt
from video_prompts import END, IMAGE, SIDE, START, Prompt, noise

import segmo
from segmo.errors import NotRewrittenError, PromptError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

CELLS, COLON = 4, 50
SHARED = ("internvl", "smolvlm")  # one placeholder, and one argument with the pixels of all pictures
WARNING = "some pictures of the prompt are not laid out as frames of a video"


def generate(model: Any, inputs: Prompt, tokens: int = 2) -> Any:
    with torch.no_grad():
        return model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )


def with_image(family: str, inputs: Prompt, lead: list[int]) -> Prompt:
    """The prompt with an image in front of it."""
    marks = (START, END) if family in SHARED else (14, 15)
    picture = [11, *lead, marks[0], *[IMAGE] * CELLS, marks[1]]
    ids = torch.cat([torch.tensor([picture]), inputs["input_ids"]], 1)
    mixed = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    types = inputs.get("mm_token_type_ids")
    if types is not None:
        mixed["mm_token_type_ids"] = torch.cat([(torch.tensor([picture]) == IMAGE).long(), types], 1)
    if family in SHARED:
        video = inputs["pixel_values"]
        dim = video.dim() - 4
        image = noise(99, 1, *video.shape[dim + 1 :])
        return {**mixed, "pixel_values": torch.cat([image if dim == 0 else image[None], video], dim)}
    if family == "gemma4":
        return {
            **mixed,
            "pixel_values": noise(99, 1, *inputs["pixel_values_videos"].shape[-2:]),
            "image_position_ids": inputs["video_position_ids"][:1],
        }
    if "video_grid_thw" in inputs:
        image = noise(99, SIDE * SIDE, *inputs["pixel_values_videos"].shape[1:])
        return {**mixed, "pixel_values": image, "image_grid_thw": torch.tensor([[1, SIDE, SIDE]])}
    return {**mixed, "pixel_values": noise(99, 1, *inputs["pixel_values_videos"].shape[2:])}


def tagged_as_in_internvl(inputs: Prompt) -> Prompt:
    """With ``:`` in front of the mark that opens each frame, as in "Frame1: <img>"."""
    ids = inputs["input_ids"].clone()
    ids[0, (ids[0] == START).nonzero()[:, 0] - 1] = COLON
    return {**inputs, "input_ids": ids}


@pytest.mark.parametrize("family", ["gemma4", "glm5_next", "qwen3_5"])
def test_an_image_in_front_of_a_video_is_text_to_the_selection(family: str) -> None:
    """These tell them apart by their token, or (GLM-5) by the marks around the video."""
    model, inputs = build(family), with_image(family, prompt(family), [12, 13])
    out = generate(segmo.compile(model, keep=0.25, segments=1), inputs, 1)
    report = segmo.last_report()
    tokens, prefill = report.to_dict()["tokens"], report.prefill
    assert (tokens["video"], tokens["kept"]) == (6 * CELLS, 6)
    image = slice(4, 4 + CELLS)
    assert prefill.cell[0, image].tolist() == [-1] * CELLS
    assert set(range(4, 4 + CELLS)) <= set(prefill.index[0].tolist())
    segmo.uncompile(model)
    with kept_tokens_only(model, prefill.index[0], prefill.cell[0] >= 0):
        expected = generate(model, inputs, 1)
    torch.testing.assert_close(out.logits[0], expected.logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", SHARED)
def test_an_image_that_nothing_tells_from_a_frame_leaves_the_prompt_as_it_was(family: str) -> None:
    model, video = build(family), tagged_as_in_internvl(prompt(family))
    apart = with_image(family, video, [12, *range(20, 50)])
    beside = with_image(family, video, [12, 13])
    image = {
        **{name: value[:, : 5 + CELLS] for name, value in beside.items() if name != "pixel_values"},
        "pixel_values": beside["pixel_values"][:1] if family == "internvl" else beside["pixel_values"][:, :1],
    }
    expected = [generate(model, inputs).sequences for inputs in (apart, beside, image)]
    segmo.compile(model, keep=0.25, segments=1)
    for inputs, sequences in zip((apart, beside), expected, strict=False):
        with pytest.warns(UserWarning, match=WARNING):
            assert torch.equal(generate(model, inputs).sequences, sequences)
    assert torch.equal(generate(model, image).sequences, expected[2])  # no video: nothing was lost
    codes = [miss["code"] for graph in segmo.last_report().to_dict()["graphs"] for miss in graph["passes"][0]["misses"]]
    assert [code for code in codes if code != "decode"] == ["images-and-video", "images"]
    generate(model, video)  # the video alone
    assert segmo.last_report().to_dict()["tokens"]["kept"] == 6
    with pytest.raises(NotRewrittenError, match=WARNING):
        generate(segmo.compile(model, keep=0.25, strict=True), beside)


def test_a_function_around_a_model_refuses_an_image_beside_a_video() -> None:
    """What it calls is seen in its graphs alone: such a prompt cannot run as it was from there."""
    model, video = build("internvl"), tagged_as_in_internvl(prompt("internvl"))
    beside = with_image("internvl", video, [12, 13])
    ask = torch.compile(lambda **inputs: model(**inputs).logits, backend="segmo", options={"keep": 0.25, "segments": 1})

    def encoded(inputs: Prompt) -> dict[str, Any]:
        with torch.no_grad():
            features = model.model.get_image_features(pixel_values=inputs["pixel_values"])
        return {
            **{name: value for name, value in inputs.items() if name != "pixel_values"},
            "mm_encoder_outputs": {"image": features},
            "logits_to_keep": 1,
        }

    with torch.no_grad():
        assert torch.isfinite(ask(**encoded(video))).all()
        assert segmo.last_report().to_dict()["tokens"]["kept"] == 6
        with pytest.raises(PromptError, match="are not laid out as frames of a video"):
            ask(**encoded(beside))
