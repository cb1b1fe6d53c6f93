"""A memory as a folder, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segmo.errors import CacheError, OptionError
from segmo.memory.block import Block
from segmo.memory.known import known_family
from segmo.memory.options import EACH, READ, MemoryOptions, parse
from segmo.memory.stale import check, identity
from segmo.memory.store import (
    PREFIX,
    read_block,
    read_index,
    read_tensors,
    write_block,
    write_index,
    write_tensors,
    writing,
)
from segmo.memory.watcher import Watcher

PROCESSOR = "processor"
# Lists and counts of a watcher, its detector, its positions and its script, as JSON holds them.
_WATCHER = ("borders", "ends", "starts", "similarity", "freshness", "seconds", "each", "tokens", "video", "grid")
_DETECTOR = ("sharpest", "length", "frames")
_POSITIONS = ("next", "start", "frames")
_SCRIPT = ("fps", "head", "lead", "sampled", "grid")
# What was decided when the video was watched; the other options are a question's or say where the memory lives.
WATCHED = ("segments", "context", "tails")
_OWN = ("watch_keep", "longest", "bits")


def write_memory(memory: Any, folder: Path) -> None:
    """Writes a memory; files of segments that are in the folder already stay. Of ranks, the first one writes."""
    watcher, script = memory.watcher, memory.script
    keeper = watcher.keeper
    if keeper.ranks.rank:
        for block in watcher.closed:
            keeper.whole(block)
        keeper.together("a memory is written")
        return
    options = memory.options
    with writing(folder):
        memory.identity = memory.identity or identity(memory.model, memory.family)
        tensors = {"last": watcher.last} if watcher.last is not None else {}
        if script is not None and script.last is not None:
            tensors["frames"] = torch.from_numpy(script.last)
        names = {
            "sinks": [write_block(folder, watcher.sinks)],
            "closed": [write_block(folder, keeper.whole(block)) for block in watcher.closed],
            "open": [write_block(folder, block) for block in watcher.open],
            "tail": [write_block(folder, watcher.tail)] if watcher.tail is not None else [],
            "state": [write_tensors(folder, tensors)],
        }
        index = {
            "identity": memory.identity,
            "files": names,
            "options": {name: options.options.as_dict()[name] for name in READ if name != "ranks"}
            | ({"layer": EACH} if options.each_layer else {}),
            **{name: getattr(options, name) for name in (*_OWN, "limit")},
            "fps": memory.fps,
            "watcher": {name: getattr(watcher, name) for name in _WATCHER},
            "detector": {name: getattr(watcher.detector, name) for name in _DETECTOR}
            | {"recent": list(watcher.detector.recent)},
            "positions": {name: getattr(watcher.positions, name) for name in _POSITIONS},
            "intervals": {name: torch.as_tensor(value).tolist() for name, value in watcher.positions.intervals.items()},
            "script": None if script is None else {name: getattr(script, name) for name in _SCRIPT},
            "turns": list(memory.turns),
            "ids": list(memory.talk.ids),
            "summary": memory.summary(),
        }
        known = memory.processor_in == folder.resolve() and (folder / PROCESSOR).exists()
        if script is not None and not known:
            _write_processor(script.processor, folder)
            memory.processor_in = folder.resolve()
        write_index(folder, index, [name for group in names.values() for name in group])
    if folder == options.folder:  # what stays beside the model is written once, too
        written = zip(watcher.closed, names["closed"], strict=True)
        watcher.closed = [replace(block, file=folder.resolve() / name) for block, name in written]
    keeper.together("a memory is written")


def read_memory(kind: Any, model: Any, folder: Path, processor: Any, given: dict[str, Any]) -> Any:
    """See :meth:`segmo.Memory.load`."""
    index = read_index(folder)
    here = identity(model, known_family(model))
    check(index["identity"], here, str(folder))
    try:
        return _read(kind, model, folder, processor, given, index, here)
    except (KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{folder} holds no whole memory ({error!r}); watch the video again") from error


def _read(
    kind: Any,
    model: Any,
    folder: Path,
    processor: Any,
    given: dict[str, Any],
    index: dict[str, Any],
    here: dict[str, Any],
) -> Any:
    options = _options(index, folder, given)
    own = processor is None and index["script"] is not None
    if own:
        processor = _processor(folder / PROCESSOR)
    memory: Any = kind(model, processor if index["script"] is not None else None, options, index["fps"])
    memory.processor_in = folder.resolve() if own else None
    memory.identity = here
    intervals = {name: torch.tensor(value) for name, value in index["intervals"].items()}
    watcher = memory._watcher = Watcher(model, memory.family, options, intervals)
    for name in _WATCHER:
        setattr(watcher, name, index["watcher"][name])
    for name in _DETECTOR:
        setattr(watcher.detector, name, index["detector"][name])
    watcher.detector.recent.extend(index["detector"]["recent"])
    for name in _POSITIONS:
        setattr(watcher.positions, name, index["positions"][name])
    files = index["files"]

    def blocks(name: str) -> list[Block]:
        return [read_block(folder, file) for file in files[name]]

    (watcher.sinks,) = map(watcher.keeper.beside, blocks("sinks"))
    watcher.open = list(map(watcher.keeper.beside, blocks("open")))
    watcher.tail = next(map(watcher.keeper.beside, blocks("tail")), None)
    watcher.closed = watcher.keeper.arrange(list(map(watcher.keeper.take, blocks("closed"))))
    state = read_tensors(folder / files["state"][0])
    watcher.last = state["last"].to(model.device) if "last" in state else None
    if memory.script is not None:
        for name in _SCRIPT:
            setattr(memory.script, name, index["script"][name])
        memory.script.grid = memory.script.grid and tuple(memory.script.grid)
        memory.script.last = state["frames"].clone().numpy() if "frames" in state else None
    memory.talk.turns, memory.talk.ids = index["turns"], index.get("ids", [])
    return memory


def _write_processor(processor: Any, folder: Path) -> None:
    """Puts a processor in the place of the folder's; broken off, that one stays as it was."""
    with TemporaryDirectory(prefix=PREFIX, dir=folder) as aside:
        fresh, place = Path(aside) / "fresh", folder / PROCESSOR
        processor.save_pretrained(fresh)
        if place.exists():
            place.rename(Path(aside) / "old")
        fresh.rename(place)


def _processor(folder: Path) -> Any:
    from transformers import AutoProcessor

    load: Any = AutoProcessor
    try:
        return load.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CacheError(f"{folder} holds no processor; hand one in: Memory.load(model, folder, processor)") from error


def _options(index: dict[str, Any], folder: Path, given: dict[str, Any]) -> MemoryOptions:
    """The options that a memory was watched with, and those that may be others.

    Raises:
        CacheError: one of those that the keys depend on is another.
        OptionError: there is no such option.
    """
    saved = dict(index["options"])
    for name, value in (saved | {key: index[key] for key in _OWN}).items():
        if name in given and (name in WATCHED or name not in saved) and given[name] != value:
            raise CacheError(
                f"{folder} is stale: it was watched with {name}={value!r}, not {given[name]!r}; watch the video again"
            )
    own = {"place", "folder", "limit", *_OWN}
    for name in given:
        if name not in own and name not in READ:
            raise OptionError(f"a memory has no option {name!r}; it takes {', '.join((*READ, *sorted(own)))}")
    place = given.get("place", "device")
    where = given.get("folder", folder if "disk" in ([place] if isinstance(place, str) else place) else None)
    options, each = parse(saved | {name: value for name, value in given.items() if name in READ})
    return MemoryOptions(
        options,
        each,
        place=place,
        folder=None if where is None else Path(where),
        limit=given.get("limit", index["limit"]),
        **{name: index[name] for name in _OWN},
    )
