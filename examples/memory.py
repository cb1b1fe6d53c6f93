"""A video watched once, and asked several times: with the small model that ships, about a film of its own world.

    python examples/memory.py

Its answers are single words. A real model goes in the same way: ``segmo.watch(model, processor, "film.mp4")``.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import segmo
from segmo.sceneqa.model import load_model
from segmo.sceneqa.render import PICTURES
from segmo.sceneqa.task import DIFFICULTIES, make_sample

QUESTIONS = 5


def main(questions: int = QUESTIONS) -> list[tuple[str, str, str]]:
    """Questions, what was answered, and what is right."""
    model, processor = load_model()
    film = make_sample("validation", DIFFICULTIES["standard"], 0)

    start = time.perf_counter()
    memory = segmo.watch(model, processor, film.pictures, fps=PICTURES)
    print(f"watched in {time.perf_counter() - start:.2f} s: {memory}")

    found = []
    for question in film.questions[:questions]:
        memory.forget()  # each for itself; without this, each question sees the turns before it
        start = time.perf_counter()
        answer = memory.ask(question.text, keep=0.25, max_new_tokens=1)
        seconds = time.perf_counter() - start
        most = max(memory.looked, key=lambda scene: scene.tokens)
        found.append((question.text, answer, question.answer))
        print(f"{question.text} {answer} (right: {question.answer}; {seconds:.2f} s; most from {most.start:.0f} s on)")

    with tempfile.TemporaryDirectory() as folder:
        memory.save(Path(folder) / "film.memory")
        back = segmo.Memory.load(model, Path(folder) / "film.memory")
        print(f"from disk: {back.summary()}")
    return found


if __name__ == "__main__":
    main()
