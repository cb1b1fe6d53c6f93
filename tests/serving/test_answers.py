"""SceneQA's questions, of all kinds: vLLM with the plugin against transformers on the same kept tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from serving.engine import answers, ask
from serving.reference import largest_difference, next_logprobs, positions_of

import segmo
from segmo.integrations.vllm import model as plugin
from segmo.sceneqa.model import build_prompts, load_model
from segmo.sceneqa.questions import KINDS
from segmo.sceneqa.task import DIFFICULTIES, samples

VIDEOS = 5
TOLERANCE = 1e-3  # of a log-probability


@pytest.fixture(scope="module")
def shown() -> Any:
    """Videos, and prompts for the questions about each."""
    model, processor = load_model()
    found = list(samples("test", DIFFICULTIES["standard"], VIDEOS))
    return model, [(s, build_prompts(model, processor, s.pictures, s.questions, s.index)) for s in found]


def chosen(model: Any, prompts: Any) -> list[list[int]]:
    """The tokens that SegMo keeps of each prompt in transformers, by ``segmo.compile``."""
    segmo.compile(model, keep=0.25, disable=("segment-attention", "inject-context"))
    kept = []
    with torch.no_grad():
        for at in range(len(prompts.input_ids)):
            model(**prompts.only(at).inputs())
            prefill = segmo.last_report().prefill
            assert prefill is not None
            kept.append([int(place) for place in prefill.kept()])
    segmo.uncompile(model)
    return kept


def as_transformers(
    model: Any, prompts: Any, at: int, index: list[int], given: list[int], rule: str = "grid"
) -> tuple[torch.Tensor, list[int]]:
    """Log-probabilities of what follows a question, these tokens of its video being kept, and all kept tokens."""
    ids = prompts.input_ids[at]
    video = ids == model.config.video_token_id
    place = video.nonzero()[:, 0]
    kept = [*range(int(place[0])), *place[index].tolist(), *range(int(place[-1]) + 1, len(ids))]
    embeds = model.get_input_embeddings()(ids).detach().clone()
    embeds[video] = prompts.features
    time, height, width = (int(size) for size in prompts.grid[0])
    where = positions_of(ids.tolist(), [(time, height // 2, width // 2)], {model.config.video_token_id}, rule)
    return next_logprobs(model, embeds, where, kept, given), kept


def test_answers_and_log_probabilities(sceneqa: Any, shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    selections: list[Any] = []

    def spy(*args: Any) -> Any:
        selections.append(choose(*args))
        return selections[-1]

    choose = plugin.choose
    monkeypatch.setattr(plugin, "choose", spy)
    model, asked = shown
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    worst = 0.0
    for sample, prompts in asked:
        outputs = []
        for question in sample.questions:
            outputs += answers(sceneqa, [ask(question.text, sample.pictures)], tokens=3)
        assert len(selections) == len(sample.questions)
        blind = answers(sceneqa, [ask(q.text, sample.pictures, question_blind=True) for q in sample.questions], 1)
        own = chosen(model, prompts)
        with torch.no_grad():
            dense = model(**prompts.inputs()).logits[:, -1].argmax(-1)
        for at, (output, selection) in enumerate(zip(outputs, selections, strict=False)):
            given = list(output.outputs[0].token_ids)
            expected, kept = as_transformers(model, prompts, at, selection.index.tolist(), given)
            counts["same choice"] += kept == own[at]
            counts["tokens in both"] += len({*kept} & {*own[at]})
            counts["tokens"] += len(kept)
            assert len(output.prompt_token_ids) == len(kept) == len(own[at])
            worst = max(worst, largest_difference(output, expected))
            counts["equal"] += expected.argmax(-1).tolist() == given
            answer = int(prompts.answer[at])
            counts["right"] += given[0] == answer
            counts["right dense"] += int(dense[at]) == answer
            counts["right blind"] += blind[at].outputs[0].token_ids[0] == answer
            kinds[prompts.kinds[at]] += 1
        selections.clear()
    total = kinds.total()
    print(f"\n{total} questions {dict(kinds)}: {dict(counts)}, largest difference {worst:.1e}")
    assert total >= 100
    assert set(kinds) == set(KINDS)
    assert counts["equal"] == total
    assert worst < TOLERANCE
    assert counts["tokens in both"] >= 0.99 * counts["tokens"]
    assert counts["right"] > counts["right blind"]
    assert counts["right"] >= 0.9 * counts["right dense"]


def test_text_stands_where_published_checkpoints_have_it(
    sceneqa: Any, shown: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the video's largest position, unless the config says otherwise; the video has more frames than columns."""
    selections: list[Any] = []
    choose = plugin.choose
    monkeypatch.setattr(plugin, "choose", lambda *args: selections.append(choose(*args)) or selections[-1])
    monkeypatch.setattr(sceneqa.llm_engine.model_executor.driver_worker.worker.model_runner.model, "_grid", False)
    model, [(sample, prompts), *_] = shown
    sceneqa.llm_engine.reset_mm_cache()
    sceneqa.llm_engine.engine_core.reset_encoder_cache()
    sceneqa.reset_prefix_cache()
    output = answers(sceneqa, [ask(sample.questions[0].text, sample.pictures)], tokens=3)[0]
    given, index = list(output.outputs[0].token_ids), selections[0].index.tolist()
    published, _ = as_transformers(model, prompts, 0, index, given, "largest")
    other, _ = as_transformers(model, prompts, 0, index, given, "grid")
    assert largest_difference(output, published) < TOLERANCE
    assert largest_difference(output, other) > 10 * TOLERANCE
