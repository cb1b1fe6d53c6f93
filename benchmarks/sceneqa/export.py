"""Turn a training folder into the shipped model: python benchmarks/sceneqa/export.py --run out/sceneqa

Writes weights (averaged ones, bfloat16), configuration, processor and tokenizer files to
``segmo/assets/sceneqa``, and the training log and its curve next to this file; ``--run out/further --to
segmo/assets/sceneqa-busy`` writes the weights of the harder sets and their log. With another ``--to FOLDER`` nothing
that ships is touched, and ``evaluate.py --model FOLDER`` asks it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from untrained import build_config, build_model, build_processor

from segmo.sceneqa.model import BUSY_MODEL_PATH, MODEL_PATH
from segmo.sceneqa.questions import CHANCE, KINDS

HERE = Path(__file__).resolve().parent
LOGS = {MODEL_PATH: HERE / "training.jsonl", BUSY_MODEL_PATH: HERE / "further.jsonl"}  # of what ships
COLOURS = dict(zip(KINDS, ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"), strict=True))


def _smooth(values: list[float], weight: float = 0.8) -> list[float]:
    smooth: list[float] = []
    for value in values:
        smooth.append(value if not smooth else weight * smooth[-1] + (1 - weight) * value)
    return smooth


def draw_curve(records: list[dict[str, Any]]) -> Figure:
    """Accuracy of each kind over training: lines for training videos, dots for held-out ones."""
    figure = Figure(figsize=(10, 4.6), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    trained = [record for record in records if "train" in record]
    checked = [record for record in records if "validation" in record]
    for kind in KINDS:
        points = [(record["step"], record["train"][kind]) for record in trained if kind in record["train"]]
        if points:
            steps, values = zip(*points, strict=True)
            axes.plot(steps, _smooth(list(values)), color=COLOURS[kind], linewidth=1.4, label=kind)
        held = [
            (record["step"], record["validation"]["16x128"][kind])
            for record in checked
            if kind in record["validation"]["16x128"]
        ]
        if held:
            axes.scatter(*zip(*held, strict=True), color=COLOURS[kind], s=14, zorder=3)
        axes.axhline(CHANCE[kind], color=COLOURS[kind], linewidth=0.6, linestyle=":")
    digit = [(record["step"], record["train"]["digit"]) for record in trained]
    axes.plot(*zip(*digit, strict=True), color="#999999", linewidth=1, label="digit of a single frame")
    for level, since in sorted(
        {(record["level"], record["since"]) for record in trained if record.get("level", -1) >= 0}
    ):
        axes.axvline(since, color="#CCCCCC", linewidth=0.8)
        axes.text(since, 1.02, f"level {level + 1}", fontsize=7, color="#777777")
    axes.set_ylim(0, 1.06)
    axes.set_xlabel("update")
    axes.set_ylabel("accuracy")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    axes.set_title(
        "SceneQA training: single frames, then videos. Lines: training videos of all levels so far; dots: held-out "
        "digits and\nbackgrounds, 16 scenes, 128 frames; dotted: chance",
        loc="left",
        fontsize=8.5,
    )
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def main() -> None:
    """Read the command line and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder that train.py filled")
    parser.add_argument("--to", default=str(MODEL_PATH))
    args = parser.parse_args()
    run, target = Path(args.run), Path(args.to)

    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    how = checkpoint["args"]
    processor = build_processor()
    config = build_config(processor.tokenizer, how["hidden"], how["layers"], how["vision_hidden"], how["vision_depth"])
    model = build_model(config, how["seed"])
    model.load_state_dict(checkpoint["average"])
    torch.nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(target)
    processor.save_pretrained(target)

    made = {
        "stages": json.loads((run / "stages.json").read_text()),
        "updates": checkpoint["state"]["step"],
        "minutes": round(checkpoint["state"]["seconds"] / 60, 1),
        "parameters": sum(part.numel() for part in model.parameters()),
        "torch": torch.__version__,
    }
    (target / "made.json").write_text(json.dumps(made, indent=2) + "\n")

    log = LOGS.get(target.resolve())
    if log is None:
        return
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    if target.resolve() == MODEL_PATH:
        draw_curve(records).savefig(HERE / "training.png")


if __name__ == "__main__":
    main()
