"""``segmo.watch``: a video watched once, as a memory that questions are asked of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from segmo.memory.intake import Video, check_fps
from segmo.memory.known import watching_model
from segmo.memory.memory import Memory
from segmo.memory.options import MemoryOptions, Place, parse
from segmo.memory.prompt import FPS
from segmo.memory.store import as_folder
from segmo.runtime.host import made_here


@made_here()
def watch(
    model: Any,
    processor: Any,
    video: Video,
    *,
    fps: float | None = None,
    watch_keep: float = 1.0,
    place: Place = "device",
    folder: Path | str | None = None,
    limit: int | None = None,
    longest: int | None = None,
    bits: int | None = None,
    **options: Any,
) -> Memory:
    """Watches a video once: its keys and values, from which every question takes what it is about.

    A video token sees the text in front of the video, its own segment up to itself, and a context that does not depend
    on any question: the last ``tails`` frames of the segments before, and the first frames of the ``context`` most
    novel scenes before. Rows behind the video see the text in front of it, what CAS chooses for them, and each other.

    Args:
        model: of transformers, of a known family; it stays as it is, compiled or not.
        processor: its processor; None if prompts come as a processor's outputs and as ids.
        video: a file, frames (T, height, width, 3) uint8, or a processor's outputs for a prompt with this video.
        fps: frames per second of the frames, or to sample from a file; 2 when None.
        watch_keep: fraction of each segment's video tokens that is remembered, the newest ones, whatever is asked.
        place: where keys, values and features are kept: "device" (the model's), "host" or "disk"; or several of these
            with a budget in bytes for each, ``{"device": 2**30, "host": 2**33, "disk": None}``: the newest segments are
            kept in the first place, and where the last one is full, old segments are thinned as by ``limit``.
        folder: of a memory on disk.
        limit: bytes of the memory, at most: the recent half stays whole, older segments are thinned by novelty.
        longest: frames after which a segment ends without a cut.
        bits: 8 keeps each key and value in eight bits from when its segment is over; as the model has them when None.
        **options: keep, segments, context, tails (1 unless it is given), scorer, balance, layer, ranks of
            :class:`segmo.options.Options`. With ``scorer="attention"`` scenes are relevant that the question pays
            attention to, in one ``layer`` of the decoder or, with ``layer="each"``, in every layer for itself. With
            ``ranks``, segments are dealt out to the ranks, which all make the same calls.

    Raises:
        OptionError: a wrong option, or a model of another family.
        PromptError: the video cannot be watched: not one video, or images beside it.
    """
    if fps is not None:
        check_fps(fps)
    known, each = parse(options)
    where = None if folder is None else as_folder(folder)
    chosen = MemoryOptions(known, each, watch_keep, place, where, limit, longest, bits)
    memory = Memory(watching_model(model), processor, chosen, FPS if fps is None else fps)
    memory.extend(video)
    return memory
