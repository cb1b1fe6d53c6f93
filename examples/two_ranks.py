"""One prompt on several ranks: run with ``torchrun --nproc-per-node 2 examples/two_ranks.py``.

The same program runs alone, without torchrun. The model is tiny and its weights are random; with a real one, replace
``tiny_model`` by ``from_pretrained`` and ``tiny_prompt`` by the processor. What makes it run on ranks are three lines.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

import segmo
from segmo.runtime.distributed.vision import encode_video

VIDEO, START, END = 5, 7, 8
SIDE = 8  # patches of a frame's side; two by two are merged into a token


def tiny_model() -> Any:
    """Qwen2-VL's real architecture at a size that needs no time, the same random weights on every rank."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": None,
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return Qwen2VLForConditionalGeneration(config).eval()


def tiny_prompt(frames: int) -> dict[str, torch.Tensor]:
    """A video whose picture changes every third frame, between some text and a question."""
    cells, values = (SIDE // 2) ** 2, 3 * 2 * 4 * 4
    row = [11, 12, START, *[VIDEO] * (frames * cells), END, 13, 14, 15]
    ids = torch.tensor([row])
    pictures = torch.randn(frames // 3 + 1, SIDE * SIDE, values, generator=torch.Generator().manual_seed(0))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.where(ids == VIDEO, 2, 0),
        "pixel_values_videos": pictures[torch.arange(frames) // 3].flatten(0, 1),
        "video_grid_thw": torch.tensor([[frames, SIDE, SIDE]]),
    }


def main(frames: int = 24, tokens: int = 8) -> list[int]:
    """The generated token ids, the same on every rank."""
    with segmo.launched() as launch:  # 1: joins the ranks that torchrun has started, if there are any
        ranks, model, prompt = launch.ranks, tiny_model().to(launch.device), tiny_prompt(frames)
        prompt = {name: value.to(launch.device) for name, value in prompt.items()}

        segmo.compile(model, keep=0.5, **launch.options)  # 2: segments are spread over the ranks
        inputs = encode_video(model, prompt, ranks, spread=True)  # 3: each rank encodes its share of the frames
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)

        answer: list[int] = ids[0, prompt["input_ids"].shape[1] :].tolist()
        note = next((n for graph in segmo.last_report().graphs for n in graph.notes if "shard" in n), "one process")
        print(f"rank {ranks.rank} of {ranks.world}: {answer} ({note})")
    return answer


if __name__ == "__main__":
    main()
