"""Every kernel with its default configs, for a target: what ``segmo kernels`` compiles and what a test holds
to account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from segmo.runtime.kernels import configs
from segmo.runtime.kernels.inspection import Inspection, inspect
from segmo.runtime.kernels.render import Spec, render
from segmo.runtime.kernels.specs import DTYPES, HEAD_SIZES, CompactSpec, MergeSpec, Payload
from segmo.runtime.kernels.targets import compile_entry

REPEATS = 7  # query heads per key/value head of Qwen2.5-VL-7B; no power of two, so the harder case
HIDDEN = 3584  # of the same model
KERNELS = ("segment_attention", "merge", "decode", "question", "scan", "compact")

# Segment attention's tiles fill the target's own matrix unit. One token's query heads do not: 16 rows are
# what mma.sync takes, while wgmma and tcgen05 start at 64.
_WIDE = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05", "gfx942": "mfma"}
_NARROW = {"sm_80": "mma.sync", "sm_90": "mma.sync", "sm_100": "mma.sync", "gfx942": "mfma"}
_HAS_ASYNC_COPY = ("sm_80", "sm_90", "sm_100")


@dataclass(frozen=True)
class Entry:
    """One entry point of one spec.

    Attributes:
        kernel: name of the template.
        function: name of the entry point.
        spec: what is rendered.
        head_size: D, or None for kernels without heads.
        dtype: of the data.
    """

    kernel: str
    function: str
    spec: Spec
    head_size: int | None
    dtype: str

    @property
    def config(self) -> str:
        """Tile sizes, warps and stages, for people."""
        config = getattr(self.spec, "config", None)
        return f"{config.block_m}x{config.block_n} w{config.warps} s{config.stages}" if config else "-"


def _headed(target: str, head_size: int, dtype: str) -> Iterator[Entry]:
    attention = configs.attention_spec(target, head_size, dtype, REPEATS)
    yield Entry("segment_attention", "segment_attention_kernel", attention, head_size, dtype)
    yield Entry("segment_attention", "merge_splits_kernel", attention, head_size, dtype)
    yield Entry("merge", "merge_kernel", MergeSpec(head_size, "fp32", dtype), head_size, dtype)
    decode = configs.decode_spec(target, head_size, dtype, REPEATS)
    yield Entry("decode", "decode_kernel", decode, head_size, dtype)
    question = configs.question_spec(target, head_size, dtype, REPEATS)
    yield Entry("question", "question_lse_kernel", question, head_size, dtype)
    yield Entry("question", "key_scores_kernel", question, head_size, dtype)


def compact_spec(dtype: str) -> CompactSpec:
    """What a prefill of Qwen2.5-VL-7B compacts: hidden states, cos and sin of M-RoPE, three axes of
    positions.
    """
    return CompactSpec(
        (
            Payload("hidden", dtype, 1, HIDDEN),
            Payload("cos", dtype, 3, 128),
            Payload("sin", dtype, 3, 128),
            Payload("positions", "i64", 3, 1),
        )
    )


def entries(target: str) -> Iterator[Entry]:
    """All entry points with the target's default configs."""
    for dtype in DTYPES:
        for head_size in HEAD_SIZES:
            yield from _headed(target, head_size, dtype)
        scan = configs.scan_spec(target, HIDDEN, dtype)
        yield Entry("scan", "scan_kernel", scan, None, dtype)
        yield Entry("scan", "finish_scan_kernel", scan, None, dtype)
        yield Entry("compact", "compact_kernel", compact_spec(dtype), None, dtype)


def compile_and_inspect(entry: Entry, target: str) -> Inspection:
    """Renders, compiles and reads one entry point."""
    return inspect(compile_entry(render(entry.spec), entry.function, target))


def _rows(entry: Entry) -> int:
    config = getattr(entry.spec, "config", None)
    return config.block_m if config else 0


def expected_matrix(entry: Entry, target: str) -> str | None:
    """The matrix instruction that the entry point must use, None if it multiplies no matrices."""
    if entry.function == "segment_attention_kernel" or entry.kernel == "question":
        return _NARROW[target] if _rows(entry) < 64 else _WIDE[target]
    return _NARROW[target] if entry.function == "decode_kernel" else None


def problems(entry: Entry, target: str, found: Inspection) -> list[str]:
    """What is wrong with a default config, in words; empty if nothing is."""
    wrong = []
    if found.spills:
        wrong.append(f"spills ({found.stack} bytes, {found.spill_instructions} instructions)")
    expected = expected_matrix(entry, target)
    if found.matrix != ((expected,) if expected else ()):
        wrong.append(f"uses {' and '.join(found.matrix) or 'no matrix instruction'}, not {expected}")
    if found.occupancy < 1:
        wrong.append("does not fit a multiprocessor")
    hot = entry.function in ("segment_attention_kernel", "decode_kernel", "question_lse_kernel")
    if hot and target in _HAS_ASYNC_COPY and not found.async_copies:
        wrong.append("copies nothing asynchronously")
    return wrong


def summary(entry: Entry, target: str) -> dict[str, Any]:
    """One entry point compiled for a target, as a row of a table or of JSON. Takes about a second."""
    found = compile_and_inspect(entry, target)
    loop = found.main_loop
    return {
        "target": target,
        "kernel": entry.function,
        "head_size": entry.head_size,
        "dtype": entry.dtype,
        "config": entry.config,
        "hash": render(entry.spec).hash,
        "registers": found.registers,
        "stack_bytes": found.stack,
        "spill_instructions": found.spill_instructions,
        "shared_bytes": found.shared,
        "occupancy": found.occupancy,
        "matrix": list(found.matrix),
        "async_copies": found.async_copies,
        "instructions": found.instructions,
        "loop_instructions": loop.instructions if loop else None,
        "per_matrix_instruction": round(loop.ratio, 2) if loop else None,
        "problems": problems(entry, target, found),
    }
