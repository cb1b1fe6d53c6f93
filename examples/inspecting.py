"""Looking inside: a report for each question, as text, as a page, and the reasons where nothing happened.

python examples/inspecting.py out/inspecting
"""

from __future__ import annotations

import sys
from pathlib import Path

import segmo
from segmo.inspection.models import build, load_config, shrink
from segmo.inspection.prompts import synthetic_prompt
from segmo.report.report import Report


def main(out: Path = Path("out/inspecting"), layers: int = 2) -> list[Report]:
    """Runs a prompt with and one without a video, writes a page for each report, and returns the reports."""
    model = build(shrink(load_config("qwen2_5_vl", layers)))
    video = synthetic_prompt(model, frames=24)
    text = {"input_ids": video["input_ids"][:, :4], "attention_mask": video["attention_mask"][:, :4]}

    segmo.compile(model, keep=0.25)
    with segmo.collect_reports() as reports:
        with segmo.show_prompt(question="What happens in the video?", name="synthetic"):
            model.generate(**video, max_new_tokens=2, do_sample=False)
        segmo.compile(model, keep=0.5)
        model.generate(**text, max_new_tokens=1, do_sample=False)

    out.mkdir(parents=True, exist_ok=True)
    for number, report in enumerate(reports):
        page = out / f"report-{number}.html"
        page.write_text(report.to_html(), encoding="utf-8")
        print(report, f"page: {page}", "", sep="\n")
    for graph in reports[-1].graphs:
        for record in graph.passes:
            for miss in record.misses:
                print(f"why not {record.name}: {miss.reason} ({miss.source or 'no place'}); {miss.remedy}")
    return reports


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
