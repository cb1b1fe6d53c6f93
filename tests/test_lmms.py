"""lmms-eval finds SegMo's chat model and answers a small local task with it: real package, real model, real files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_folders import write_folder

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make test-lmms")

from lmms_eval import evaluator
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from segmo.errors import OptionError, SegMoError
from segmo.integrations.lmms.model import SegmoChat
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


FUNCTIONS = """
def to_visual(doc):
    return [doc["video"]]


def to_text(doc, lmms_eval_specific_kwargs):
    return lmms_eval_specific_kwargs["start"] + ": " + doc["question"]
"""


ROUNDS = """
def to_visual(doc):
    return [doc["video"]]


def to_text(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["questions"][0]
    assert len(previous_output) == round_idx
    assert previous_round_info == (None if round_idx == 1 else round_idx - 1)
    if round_idx == len(doc["questions"]):
        return None, None, True, previous_output, None
    return [doc["video"]], doc["questions"][round_idx], False, previous_output, round_idx


def results(doc, results):
    right = [answer == given for answer, given in zip(doc["answers"], results[0], strict=True)]
    return {"right": sum(right) / len(right)}


def first(doc, results):
    return {"exact_match": results[0][0] == doc["answer"]}
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks over JSON files and a rendered video: one question a line, and several."""
    folder = tmp_path_factory.mktemp("task")
    sample = make_sample("validation", DIFFICULTIES["easy"], 0)
    video = str(folder / "video.mp4")
    write_sample(sample, folder / "video.mp4", crf=None)
    asked = [question for question in sample.questions if question.kind in ("retrieve", "moment")]
    rows = [{"video": video, "question": question.text, "answer": question.answer} for question in asked]
    (folder / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "sceneqa_task.py").write_text(FUNCTIONS)
    (folder / "segmo_sceneqa.yaml").write_text(TASK.format(data=folder / "test.jsonl"))

    parts = [asked[:1], asked[1:4], asked[2:4]]  # as many rounds
    rounds = [
        {"video": video, "questions": [each.text for each in part], "answers": [each.answer for each in part]}
        for part in parts
    ]
    (folder / "rounds.jsonl").write_text("\n".join(json.dumps(row) for row in rounds))
    (folder / "rounds_task.py").write_text(ROUNDS)
    text = TASK.format(data=folder / "rounds.jsonl").replace("segmo_sceneqa", "segmo_rounds")
    text = text.replace("generate_until", "generate_until_multi_round").replace("sceneqa_task", "rounds_task")
    text = text.replace('"{{question}}"', "!function rounds_task.to_text").replace('"{{answer}}"', "answers")
    text = text.replace("metric_list", "process_results: !function rounds_task.results\nmetric_list")
    (folder / "segmo_rounds.yaml").write_text(text.replace("exact_match", "right"))
    return folder


def _run(task: Path, tasks: str = "segmo_sceneqa", limit: int | None = None, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(task), include_defaults=False)
    given = {"pretrained": str(MODEL_PATH), **options}
    found: dict[str, Any] = evaluator.simple_evaluate(
        model="segmo",
        model_args=",".join(f"{name}={value}" for name, value in given.items()),
        tasks=[tasks],
        batch_size=1,
        device="cpu",
        task_manager=manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
    )
    return found


def _answers(found: dict[str, Any], task: str = "segmo_sceneqa") -> list[Any]:
    return [sample["filtered_resps"][0] for sample in found["samples"][task]]


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


def test_each_round_is_answered_as_if_it_were_asked_alone(task: Path) -> None:
    alone = {_question(sample): _answer(sample) for sample in _run(task, keep=0.25)["samples"]["segmo_sceneqa"]}
    found = _run(task, tasks="segmo_rounds", keep=0.25)
    samples = found["samples"]["segmo_rounds"]
    assert [len(_answer(sample)) for sample in samples] == [1, 3, 2]
    for sample in samples:
        assert _answer(sample) == [alone[question] for question in sample["doc"]["questions"]]
    assert 0 <= found["results"]["segmo_rounds"]["right,none"] <= 1


def _question(sample: dict[str, Any]) -> str:
    return str(sample["doc"]["question"])


def _answer(sample: dict[str, Any]) -> Any:
    return sample["filtered_resps"][0]


def test_a_task_without_rounds_has_one(task: Path) -> None:
    """lmms-eval itself would ask a text that knows no rounds for ever."""
    text = TASK.format(data=task / "test.jsonl").replace("segmo_sceneqa", "segmo_one_round")
    text = text.replace("generate_until", "generate_until_multi_round")
    text = text.replace("metric_list", "process_results: !function rounds_task.first\nmetric_list")
    (task / "segmo_one_round.yaml").write_text(text)
    samples = _run(task, tasks="segmo_one_round", keep=0.25)["samples"]["segmo_one_round"]
    assert all(len(_answer(sample)) == 1 for sample in samples)


def test_a_likelihood_is_refused() -> None:
    with pytest.raises(SegMoError, match="answers tasks of the types generate_until"):
        SegmoChat.loglikelihood(object.__new__(SegmoChat), [])


@pytest.mark.parametrize("family", ["qwen3_5", "qwen2_5_omni", "internvl", "video_llama_3", "minicpmv4_6"])
def test_any_family_answers(task: Path, tmp_path: Path, family: str) -> None:
    """From a folder, through the family's own processor; with keep=1 as transformers alone answers."""
    import segmo

    torch._dynamo.reset()
    folder = str(write_folder(family, tmp_path))
    whole = _run(task, pretrained=folder, keep=1, fps=0.5, limit=2)
    quarter = _run(task, pretrained=folder, keep=0.25, fps=0.5, limit=2)
    tokens = segmo.last_report().to_dict()["tokens"]
    assert tokens["kept"] == tokens["video"] // 4
    for found in (whole, quarter):
        assert len(_answers(found)) == 2


@pytest.mark.parametrize("shard", [False, True])
def test_two_processes_share_out_the_requests(task: Path, tmp_path: Path, shard: bool) -> None:
    """The same answers as one process gives; with ``shard`` each prompt is answered by both."""
    names = ("segmo_sceneqa", "segmo_rounds")
    alone = {name: _run(task, tasks=name, keep=0.5) for name in names}
    program = tmp_path / "two.py"  # "evaluate" is a package
    program.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    how = 'ranks="all"' if shard else "shard=False"
    arguments = [str(task), f"pretrained={MODEL_PATH},keep=0.5,{how}", str(tmp_path / "found.json"), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["answers"] == {name: _by_document(alone[name], name) for name in names}
    assert found["metric"] == alone["segmo_sceneqa"]["results"]["segmo_sceneqa"]["exact_match,none"]
    ranks = [json.loads((tmp_path / f"found.json.{rank}").read_text()) for rank in range(2)]
    count = len(found["answers"]["segmo_sceneqa"])
    assert [rank["requests"] for rank in ranks] == [(count + 1 - rank) // 2 for rank in range(2)]
    assert [rank["sharded"] for rank in ranks] == [shard, shard]


TWO = """
import json, sys
from pathlib import Path
import torch.distributed as dist
import segmo
from lmms_eval import evaluator
from lmms_eval.tasks import TaskManager
from segmo.integrations.lmms.model import SegmoChat

answered = []
original = SegmoChat._asked
SegmoChat._asked = lambda self, request: answered.append(request.args[3:5]) or original(self, request)
folder, arguments, out, *names = sys.argv[1:]
found = evaluator.simple_evaluate(
    model="segmo", model_args=arguments, tasks=names, batch_size=1, device="cpu",
    task_manager=TaskManager(include_path=folder, include_defaults=False), log_samples=True, bootstrap_iters=0,
)
rank = dist.get_rank()
passes = [record for graph in segmo.last_report().graphs for record in graph.passes]
sharded = any(record.name == "shard-segments" and record.matches for record in passes)
requests = len({number for number, name in answered if name == "segmo_sceneqa"})
Path(f"{out}.{rank}").write_text(json.dumps({"requests": requests, "sharded": sharded}))
if rank == 0:
    samples = found["samples"]
    answers = {name: {str(s["doc_id"]): s["filtered_resps"][0] for s in samples[name]} for name in names}
    metric = found["results"]["segmo_sceneqa"]["exact_match,none"]
    Path(out).write_text(json.dumps({"answers": answers, "metric": metric}))
dist.barrier()
dist.destroy_process_group()
"""


def _by_document(found: dict[str, Any], name: str) -> dict[str, Any]:
    return {str(sample["doc_id"]): _answer(sample) for sample in found["samples"][name]}


def test_sharding_needs_processes() -> None:
    with pytest.raises(OptionError, match="start several"):
        SegmoChat(str(MODEL_PATH), device="cpu", shard=True)
    with pytest.raises(OptionError, match="over all processes"):
        SegmoChat(str(MODEL_PATH), device="cpu", ranks="half")
    with pytest.raises(OptionError, match="must be True or False"):
        SegmoChat(str(MODEL_PATH), device="cpu", shard="yes")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="did you mean 'keep'"):
        SegmoChat(str(MODEL_PATH), device="cpu", kep=0.5)


def test_a_task_asks_a_family_in_its_own_way(task: Path) -> None:
    """Prompts and generation settings of the family's name, as lmms-eval gives them to its own model of it."""
    text = TASK.format(data=task / "test.jsonl").replace("segmo_sceneqa", "segmo_family")
    text = text.replace('"{{question}}"', "!function sceneqa_task.to_text")
    extra = "lmms_eval_specific_kwargs:\n  default:\n    start: which\n  qwen2_vl:\n    start: what\n"
    extra += "model_specific_generation_kwargs:\n  default: {}\n  qwen2_vl:\n    max_new_tokens: 3\n"
    (task / "segmo_family.yaml").write_text(text + extra)
    seen: list[Any] = []
    original = SegmoChat._answer
    try:
        SegmoChat._answer = lambda self, asked: seen.append(asked) or original(self, asked)  # type: ignore[method-assign]
        _run(task, tasks="segmo_family", keep=1)
    finally:
        SegmoChat._answer = original  # type: ignore[method-assign]
    assert seen
    for asked in seen:
        assert asked.messages[-1]["content"][-1]["text"].startswith("what: which ")
        assert asked.settings["max_new_tokens"] == 3
