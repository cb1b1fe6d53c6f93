"""What was compiled is the same in every thread, and what a block says is known in the threads that it starts."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from models import LAYERS, build, prompt

import segmo
from segmo.errors import PromptError
from segmo.scoped import Scoped

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.skipif(
        torch.__version__ < "2.12" and sys.version_info >= (3, 12) and not torch.cuda.is_available(),
        reason="torch 2.11 on Python 3.12 without a GPU: a second thread that traces ends the process",
    ),
]


def generate(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    ids: torch.Tensor = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    return ids


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.families("qwen2_5_vl", "qwen3_vl")
def test_a_streamer_s_thread_is_rewritten_as_the_main_thread_is(family: str) -> None:
    model, inputs = build(family), prompt(family)
    expected = generate(model, inputs)
    segmo.compile(model, keep=1.0, segments=1, strict=True)
    assert torch.equal(in_a_thread(functools.partial(generate, model, inputs)), expected)
    graphs = segmo.last_report().graphs
    assert [graph.kind for graph in graphs] == ["prefill", "decode"]
    assert "trim-last-layer" in {record.name for record in graphs[0].passes if record.matches}


def test_ten_batch_sizes_in_a_pool_and_under_asyncio() -> None:
    """Dynamo's default limit of eight graphs would be passed in silence."""
    model = build("qwen2_vl")
    opt = torch.compile(model, backend="segmo", dynamic=True, options={"keep": 0.5, "strict": True})

    def held(batch: int) -> list[int]:
        out = opt.generate(**prompt("qwen2_vl", batch=batch), max_new_tokens=1, return_dict_in_generate=True)
        return [layer.keys.shape[2] for layer in out.past_key_values.layers]

    length = prompt("qwen2_vl")["input_ids"].shape[1] - 12
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(held, range(1, 6))) == [[length] * LAYERS] * 5

    async def serve() -> list[list[int]]:
        return await asyncio.gather(*(asyncio.to_thread(held, batch) for batch in range(6, 11)))

    assert asyncio.run(serve()) == [[length] * LAYERS] * 5


def test_what_is_said_around_a_thread_is_known_in_it() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.25, scorer="external", balance=1.0, segments=1)
    kept = []
    pool = ThreadPoolExecutor(1)  # older than the blocks
    frames = np.zeros((6, 8, 8, 3), np.uint8)
    for scores in ([0.0, 0, 0, 0, 0, 9], [9.0, 0, 0, 0, 0, 0]):
        with segmo.external_scores(scores), segmo.show_prompt(frames, question="?"), segmo.collect_reports() as reports:
            in_a_thread(functools.partial(generate, model, inputs))
            pool.submit(generate, model, inputs).result()
        assert len(reports) == 2
        shown = segmo.last_report().prefill.shown  # type: ignore[union-attr]
        assert shown is not None
        assert shown.question == "?"
        kept.append([scene["kept"] for scene in segmo.last_report().to_dict()["scenes"]])
    assert kept[0][-1] > kept[1][-1]
    assert kept[0][0] < kept[1][0]
    with pytest.raises(PromptError, match="external_scores"):
        pool.submit(generate, model, inputs).result()
    pool.shutdown()


def test_a_thread_that_two_blocks_could_mean_is_refused() -> None:
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    segmo.compile(model, keep=0.25, scorer="external")
    opened, done = threading.Event(), threading.Event()

    def other() -> None:
        with segmo.external_scores([1.0] * 6):
            opened.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    opened.wait(60)
    with segmo.external_scores([2.0] * 6), ThreadPoolExecutor(1) as pool:
        with pytest.raises(PromptError, match=r"2 blocks of segmo\.external_scores are open in other threads"):
            pool.submit(generate, model, inputs).result()
        generate(model, inputs)  # this thread has a block of its own
    done.set()
    thread.join()


def test_blocks_nest_and_belong_to_their_context() -> None:
    blocks: Scoped[int] = Scoped("blocks")
    assert (blocks.values(), blocks.innermost()) == ([], [])
    with blocks.block(1), blocks.block(2):
        assert (blocks.values(), blocks.innermost()) == ([1, 2], [2])
        assert in_a_thread(lambda: (blocks.values(), blocks.innermost())) == ([1, 2], [2])

        def nested() -> Any:
            with blocks.block(3):
                return blocks.values(), blocks.innermost(), in_a_thread(blocks.innermost)

        assert in_a_thread(nested) == ([3], [3], [2, 3])
    assert in_a_thread(blocks.values) == []
