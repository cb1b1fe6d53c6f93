"""lmms-eval finds SegMo's chat model and answers a small local task with it: real package, real model, real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install 'segmo[lmms]' in another environment")

from lmms_eval import evaluator
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from segmo.errors import OptionError
from segmo.integrations.lmms.model import SegmoChat, generation, parse_options
from segmo.sceneqa.files import write_sample
from segmo.sceneqa.model import MODEL_PATH
from segmo.sceneqa.task import DIFFICULTIES, make_sample

TASK = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
task: segmo_sceneqa
test_split: test
output_type: generate_until
doc_to_visual: !function sceneqa_task.to_visual
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  max_new_tokens: 1
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a yaml task over a JSON file and a rendered video."""
    folder = tmp_path_factory.mktemp("task")
    sample = make_sample("validation", DIFFICULTIES["easy"], 0)
    write_sample(sample, folder / "video.mp4", crf=None)
    rows = [
        {"video": str(folder / "video.mp4"), "question": question.text, "answer": question.answer}
        for question in sample.questions
        if question.kind in ("retrieve", "moment")
    ]
    (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "sceneqa_task.py").write_text('def to_visual(doc):\n    return [doc["video"]]\n')
    (folder / "segmo_sceneqa.yaml").write_text(TASK.format(data=folder / "test.jsonl"))
    return folder


def _run(task: Path, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(task), include_defaults=False)
    given = {"pretrained": str(MODEL_PATH), **options}
    found: dict[str, Any] = evaluator.simple_evaluate(
        model="segmo",
        model_args=",".join(f"{name}={value}" for name, value in given.items()),
        tasks=["segmo_sceneqa"],
        batch_size=1,
        device="cpu",
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    return found


def _answers(found: dict[str, Any]) -> list[str]:
    return [sample["filtered_resps"][0] for sample in found["samples"]["segmo_sceneqa"]]


def test_the_entry_point_registers_the_chat_model() -> None:
    assert get_model("segmo") is SegmoChat


def test_the_baseline_and_a_quarter_of_the_tokens_run_on_a_local_task(task: Path) -> None:
    import segmo

    whole = _run(task, keep=1)
    assert segmo.last_report().prefill is None  # the model as it is
    quarter = _run(task, keep=0.25)
    tokens = segmo.last_report().to_dict()["tokens"]
    assert tokens["kept"] == tokens["video"] // 4
    few = _run(task, keep=1, frames=0.5, segments=1)
    frames = segmo.last_report().frames
    assert frames is not None
    assert len(frames.kept[0]) == frames.video // 2
    for found in (whole, quarter, few):
        assert len(_answers(found)) >= 4
        assert 0 <= found["results"]["segmo_sceneqa"]["exact_match,none"] <= 1
        assert all(len(answer.split()) == 1 for answer in _answers(found))


def test_model_arguments_are_segmos_options() -> None:
    assert parse_options({"keep": 1, "use_cache": True}).segments == 1
    assert parse_options({"keep": 1, "segments": "equal:4"}).segments == "equal:4"
    assert parse_options({"keep": 0.25}).segments == "scene"
    with pytest.raises(OptionError, match="did you mean 'keep'"):
        parse_options({"kep": 0.5})
    assert generation({"temperature": 0, "max_new_tokens": 16}) == {"max_new_tokens": 16, "do_sample": False}
    assert generation({"temperature": 0.7, "num_beams": 2})["do_sample"] is True
