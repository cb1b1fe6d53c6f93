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
            ids = prompts.input_ids[at]
            video = ids == model.config.video_token_id
            first = int(video.nonzero()[0])
            last = int(video.nonzero()[-1])
            kept = [*range(first), *(first + selection.index).tolist(), *range(last + 1, len(ids))]
            counts["same choice"] += kept == own[at]
            counts["tokens in both"] += len({*kept} & {*own[at]})
            counts["tokens"] += len(kept)
            assert len(output.prompt_token_ids) == len(kept) == len(own[at])
            embeds = model.get_input_embeddings()(ids).detach().clone()
            embeds[video] = prompts.features
            time, height, width = (int(size) for size in prompts.grid[0])
            where = positions_of(ids.tolist(), [(time, height // 2, width // 2)], {model.config.video_token_id})
            given = list(output.outputs[0].token_ids)
            expected = next_logprobs(model, embeds, where, kept, given)
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
