"""A Video LLM that neither transformers nor SegMo has ever seen, written here: it works by inference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import video_families
from kept_tokens import cached, kept_tokens_only
from transformers import GenerationMixin, LlamaConfig, LlamaModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

import segmo
from segmo import families
from segmo.compat.cache_name import cache_of
from segmo.errors import NotRewrittenError, OptionError, PromptError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

PLACEHOLDER, CELLS, PIXELS = 5, 4, 12


class ToyConfig(PretrainedConfig):
    """Its text decoder is a Llama."""

    model_type = "toy_video"
    sub_configs = {"text_config": LlamaConfig}  # noqa: RUF012  # as transformers has it

    def __init__(self, text_config: Any = None, **more: Any) -> None:
        self.text_config = (
            LlamaConfig(**(text_config or {})) if not isinstance(text_config, LlamaConfig) else text_config
        )
        self.video_token_id = PLACEHOLDER
        super().__init__(**more)


class Toy(PreTrainedModel, GenerationMixin):
    """Each cell of a frame becomes a token through one layer; a time stands in front of every frame."""

    config_class = ToyConfig
    _supports_sdpa = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.look = torch.nn.Linear(PIXELS, config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.language_model.get_input_embeddings()

    def get_video_features(self, pixel_values_videos: torch.Tensor, **_: Any) -> Any:
        return BaseModelOutputWithPooling(pooler_output=self.look(pixel_values_videos).flatten())  # a flat vector

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        pixel_values_videos: Any = None, mm_encoder_outputs: Any = None, use_cache: Any = None, logits_to_keep: int = 0,
        **more: Any,
    ) -> Any:  # fmt: skip
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values_videos is not None:
            mm_encoder_outputs = {"video": self.get_video_features(pixel_values_videos)}
        if mm_encoder_outputs:
            features = mm_encoder_outputs["video"].pooler_output
            embeds = embeds.masked_scatter((input_ids == PLACEHOLDER)[..., None], features.to(embeds.dtype))
        out = self.language_model(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, use_cache=use_cache, **more,
        )  # fmt: skip
        hidden = out.last_hidden_state[:, -logits_to_keep:] if logits_to_keep else out.last_hidden_state
        return CausalLMOutputWithPast(logits=self.lm_head(hidden), past_key_values=out.past_key_values)


def build(kind: type[Toy] = Toy) -> Toy:
    torch.manual_seed(0)
    text = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    model = kind(ToyConfig(text_config=text))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def prompt(frames: int = 6) -> dict[str, torch.Tensor]:
    row = [20, 21, *(token for frame in range(frames) for token in (30 + frame, *[PLACEHOLDER] * CELLS)), 40, 41, 42]
    ids = torch.tensor([row])
    pixels = torch.randn(frames * CELLS, PIXELS, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels}


def generate(model: Any, inputs: dict[str, torch.Tensor], tokens: int = 1) -> Any:
    with torch.no_grad():
        return model.generate(
            **inputs, max_new_tokens=tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
        )


def test_everything_kept_is_the_model() -> None:
    model = build()
    eager = generate(model, prompt(), 4).sequences
    assert torch.equal(generate(segmo.compile(model, keep=1.0, segments=1), prompt(), 4).sequences, eager)


def test_the_cut_is_the_decoder_on_the_kept_tokens() -> None:
    """Its features are a flat vector, of which one number would be a token if tokens were counted by the last size."""
    model, inputs = build(), prompt()
    out = generate(segmo.compile(model, keep=0.25, segments=1), inputs)
    report = segmo.last_report()
    assert report.to_dict()["tokens"] == {"prompt": 35, "video": 24, "kept": 6}
    assert report.prefill is not None
    assert report.prefill.index is not None
    assert int(report.prefill.frame.max()) == 5  # six frames: the text between them parts them
    segmo.uncompile(model)
    with kept_tokens_only(model, report.prefill.index[0], report.prefill.cell[0] >= 0):
        expected = generate(model, inputs)
    torch.testing.assert_close(out.logits[0], expected.logits[0], rtol=1e-4, atol=1e-4)
    for name, value in cached(expected.past_key_values).items():
        torch.testing.assert_close(cached(out.past_key_values)[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_a_family_without_its_entry_is_inferred(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames by the M-RoPE positions of the one, by the shape of the other's pixels; the rest joins the last frame."""
    monkeypatch.delitem(families.FAMILIES, family)
    model, inputs = video_families.build(family), video_families.prompt(family)
    out = generate(segmo.compile(model, keep=0.25, segments=1), inputs)
    tokens, prefill = segmo.last_report().to_dict()["tokens"], segmo.last_report().prefill
    assert tokens["kept"] == int(0.25 * tokens["video"])
    assert prefill is not None
    assert prefill.index is not None
    assert int(prefill.frame.max()) == 5
    segmo.uncompile(model)
    with kept_tokens_only(model, prefill.index[0], prefill.cell[0] >= 0):
        expected = generate(model, inputs)
    torch.testing.assert_close(out.logits[0], expected.logits[0], rtol=1e-3, atol=1e-3)
    theirs = cached(expected.past_key_values)
    for name, value in cached(out.past_key_values).items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-3)


class Where(Toy):
    """It merges by torch.where, as SmolVLM did before transformers 5.20."""

    def forward(
        self, input_ids: Any = None, mm_encoder_outputs: Any = None, pixel_values_videos: Any = None, **more: Any
    ) -> Any:
        if pixel_values_videos is not None:
            mm_encoder_outputs = {"video": self.get_video_features(pixel_values_videos)}
        embeds = self.get_input_embeddings()(input_ids)
        if mm_encoder_outputs:
            features = mm_encoder_outputs["video"].pooler_output.view(-1, embeds.shape[-1])
            mask = input_ids == PLACEHOLDER
            embeds = torch.where(mask[..., None], features[(mask.cumsum(1) - 1).clamp(min=0)], embeds)
        out = self.language_model(inputs_embeds=embeds, past_key_values=cache_of(more))
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state), past_key_values=out.past_key_values)


def test_a_video_that_is_merged_in_another_way_is_no_prompt_without_video() -> None:
    model = build(Where)
    expected = generate(model, prompt(), 2).sequences
    with pytest.warns(UserWarning, match="by another operation than masked_scatter"):
        found = generate(segmo.compile(model, keep=0.25), prompt(), 2)
    assert torch.equal(found.sequences, expected)
    with pytest.raises(NotRewrittenError, match="by another operation than masked_scatter"):
        generate(segmo.compile(build(Where), keep=0.25, strict=True), prompt())


@pytest.mark.parametrize("more", [1, -1])
def test_a_wrong_number_of_placeholders_is_said_with_both_numbers(more: int) -> None:
    """The model itself has no check, and would fill the places that there are."""
    model, inputs = segmo.compile(build(), keep=0.5), prompt()
    ids = inputs["input_ids"].clone()
    ids[0, 3 if more < 0 else 1] = 25 if more < 0 else PLACEHOLDER
    with pytest.raises(PromptError, match=rf"{24 + more} video tokens, but there are features for 24"):
        generate(model, {**inputs, "input_ids": ids})


def test_a_model_without_video_is_refused() -> None:
    from transformers import LlamaForCausalLM

    with pytest.raises(OptionError, match="no Video LLM"):
        segmo.compile(LlamaForCausalLM(build().config.text_config))
