"""Default tile sizes per architecture. Inspected (``segmo kernels``), not timed, but for two-byte dtypes up to
128 on sm_90, which are the fastest of five on an H200 (docs/kernels.md): tune on the device to replace them.

The rule behind the rest of the table: the largest tile of rows that the matrix unit likes (128, so that keys are read
seldom), then the largest tile of keys, then the most stages, as long as no register is spilled. Accumulators
and logits of a tile take ``block_m * (D + block_n) / (32 * warps)`` registers of a thread, which is what ends
up deciding. Operands in fp32 are held in two halves, so their tiles are smaller.
"""

from __future__ import annotations

import dataclasses
import re

from segmo.runtime.kernels.specs import AttentionSpec, Config, DecodeSpec, QuestionSpec, ScanSpec

_KIB = 1024
# Shared memory that one program may have, by compute capability (CUDA C++ Programming Guide) and on CDNA.
_SHARED = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_120": 99,
    "sm_121": 99,
    "gfx942": 64,
    "gfx950": 160,
}
_SHARED_OTHERWISE = {"sm_80": 99, "sm_90": 227, "sm_100": 227, "gfx942": 64}

# (head size up to which it holds, config), for two-byte dtypes and for fp32.
_ATTENTION = {
    ("sm_80", 2): ((128, Config(128, 64, 8, 3)), (256, Config(64, 64, 4, 2))),
    ("sm_90", 2): (
        (64, Config(128, 64, 8, 3)),
        (96, Config(128, 64, 4, 3)),
        (128, Config(64, 64, 4, 3)),
        (256, Config(128, 64, 8, 2)),
    ),
    ("sm_100", 2): ((128, Config(128, 128, 8, 2)), (256, Config(64, 32, 8, 2))),
    ("gfx942", 2): ((128, Config(128, 64, 4, 2)), (256, Config(64, 32, 4, 1))),
    ("sm_80", 4): ((64, Config(64, 32, 4, 2)), (128, Config(64, 16, 4, 2)), (256, Config(16, 16, 4, 2))),
    ("sm_90", 4): ((128, Config(128, 32, 8, 2)), (256, Config(64, 32, 8, 2))),
    ("sm_100", 4): ((96, Config(128, 32, 8, 2)), (128, Config(64, 16, 8, 2)), (256, Config(16, 16, 4, 2))),
    ("gfx942", 4): ((256, Config(64, 32, 4, 1)),),
}


def family(architecture: str) -> str:
    """The row of the table that an architecture belongs to.

    wgmma exists on sm_90 alone and tcgen05 on sm_10x alone; everything else from NVIDIA, the consumer
    Blackwell sm_12x too, has mma.sync and asynchronous copies, as sm_80 has.
    """
    if architecture.startswith("gfx"):
        return "gfx942"
    if architecture == "sm_90":
        return "sm_90"
    return "sm_100" if re.fullmatch(r"sm_10\d", architecture) else "sm_80"


def _size(dtype: str) -> int:
    return 4 if dtype == "fp32" else 2


def _fit(config: Config, architecture: str, head_size: int, dtype: str) -> Config:
    """The config with fewer stages, then smaller tiles of keys, until its tiles fit the shared memory."""
    limit = _SHARED.get(architecture, _SHARED_OTHERWISE[family(architecture)]) * _KIB
    row = head_size * _size(dtype)
    rows = 0 if architecture.startswith("gfx") else config.block_m  # on CDNA the queries stay in registers
    while (rows + 2 * config.stages * config.block_n) * row > limit:
        if config.stages > 1:
            config = dataclasses.replace(config, stages=config.stages - 1)
        elif config.block_n > 16:
            config = dataclasses.replace(config, block_n=config.block_n // 2)
        else:
            break
    return config


def _precision(architecture: str) -> str:
    return "ieee" if architecture.startswith("gfx") else "tf32x3"


def attention_config(architecture: str, head_size: int, dtype: str) -> Config:
    """Tile sizes of segment attention."""
    table = _ATTENTION[family(architecture), _size(dtype)]
    config = next((config for limit, config in table if head_size <= limit), table[-1][1])
    return _fit(config, architecture, head_size, dtype)


def attention_spec(
    architecture: str,
    head_size: int,
    dtype: str,
    repeats: int,
    strides: tuple[int, int] | None = None,
    config: Config | None = None,
) -> AttentionSpec:
    """The spec of segment attention for an architecture, with its default config unless one is given.

    Args:
        architecture: such as ``"sm_90"``.
        head_size, dtype, repeats: see :class:`segmo.runtime.kernels.specs.AttentionSpec`.
        strides: from a key to the next and from a value to the next; contiguous (B, G, K, D) when not given.
        config: tile sizes.
    """
    config = config or attention_config(architecture, head_size, dtype)
    key_stride, value_stride = strides or (head_size, head_size)
    return AttentionSpec(head_size, dtype, repeats, config, key_stride, value_stride, _precision(architecture))


def decode_spec(architecture: str, head_size: int, dtype: str, repeats: int) -> DecodeSpec:
    """The spec of decode attention: query heads of a group padded to a matrix instruction, chunks of 512
    keys.
    """
    block_m = max(16, 1 << (repeats - 1).bit_length())
    wide = head_size * _size(dtype) > 256
    config = Config(block_m, 32 if wide else 64, 4, 2)
    if _size(dtype) == 4 and head_size % 32:  # the last part of the head takes a whole product's registers too
        config = Config(block_m, 16, 8 if family(architecture) == "sm_100" else 4, 2)
    config = _fit(config, architecture, head_size, dtype)
    return DecodeSpec(head_size, dtype, repeats, config, 512, _precision(architecture))


def question_spec(architecture: str, head_size: int, dtype: str, repeats: int) -> QuestionSpec:
    """The spec of the question's attention to each key: no values, so half the registers of segment
    attention.
    """
    config = Config(64, 32, 4, 2)
    if _size(dtype) == 4:
        limit, wide = (64, Config(16, 32, 4, 2)) if family(architecture) == "sm_100" else (128, Config(16, 16, 4, 2))
        config = Config(64, 16, 8, 2) if head_size <= limit else wide
    return QuestionSpec(head_size, dtype, repeats, config, 1024, _precision(architecture))


def scan_spec(architecture: str, hidden: int, dtype: str) -> ScanSpec:
    """The spec of the pass over the video features: slices of 256 values, or all of a smaller hidden size."""
    block_h = min(256, 1 << (hidden - 1).bit_length())
    return ScanSpec(hidden, dtype, Config(16, block_h, 8 if _size(dtype) == 4 else 4, 2))
