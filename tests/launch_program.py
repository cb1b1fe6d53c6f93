"""A user's program for torchrun: the same on one rank and on several; prints what each rank answered."""

from __future__ import annotations

import sys

import models
import torch.distributed as dist

import segmo
from segmo.runtime.distributed.vision import encode_video

if __name__ == "__main__":
    with segmo.launched("cpu", cache=sys.argv[1]) as launch:
        model = models.build("qwen2_vl")
        segmo.compile(model, keep=0.5, segments=3, **launch.options)
        inputs = encode_video(model, models.prompt("qwen2_vl", frames=9), launch.ranks)
        ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        # One write, so that what two ranks say at the same time stays two lines.
        sys.stdout.write(
            f"rank {launch.ranks.rank} {'speaks' if launch.speaks else 'listens'}: {ids[0, -4:].tolist()}\n"
        )
        sys.stdout.flush()
    assert not dist.is_initialized()
