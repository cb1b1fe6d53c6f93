"""Specs: everything that a generated kernel's source depends on, as small frozen dataclasses.

Legend: A query heads, G key/value heads, R = A / G query heads per key/value head, D head size, H hidden
size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from segmo.errors import KernelError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HEAD_SIZES = (64, 80, 96, 128, 256)
_MIN_PART = 16  # a matrix instruction multiplies at least 16 columns
_WIDEST_FP32 = 32  # an fp32 operand is held in registers in two halves, so it is multiplied piece by piece


def dtype_name(dtype: torch.dtype) -> str:
    """``"bf16"``, ``"fp16"`` or ``"fp32"``.

    Raises:
        KernelError: there is no kernel for this dtype.
    """
    for name, known in DTYPES.items():
        if dtype == known:
            return name
    raise KernelError(f"there is no generated kernel for {dtype}; use one of {', '.join(DTYPES)}, or lowering='flash'")


def head_parts(head_size: int, dtype: str = "bf16") -> tuple[tuple[int, int], ...]:
    """(offset, width) of the power-of-two parts of a head: Triton's tiles are powers of two, so 80 is 64 +
    16.

    Padding 80 to 128 instead would multiply 60 % more numbers than there are.

    Raises:
        KernelError: the head size is no multiple of 16.
    """
    if head_size < _MIN_PART or head_size % _MIN_PART:
        raise KernelError(f"head size {head_size} is not a multiple of {_MIN_PART}; use lowering='flash'")
    parts, offset = [], 0
    widest = _WIDEST_FP32 if dtype == "fp32" else head_size
    while offset < head_size:
        width = 1 << (min(head_size - offset, widest).bit_length() - 1)
        parts.append((offset, width))
        offset += width
    return tuple(parts)


@dataclass(frozen=True)
class Config:
    """How a kernel is tiled and launched.

    Attributes:
        block_m: rows of a tile. For attention these are (token, query head of the group) pairs.
        block_n: keys of a tile.
        warps: warps of a program.
        stages: tiles that are in flight between memory and the matrix units.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int


class _Heads:
    """What the specs of all kernels with heads have."""

    head_size: int
    dtype: str

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(offset, width) of the parts that a head is cut into."""
        return head_parts(self.head_size, self.dtype)


@dataclass(frozen=True)
class AttentionSpec(_Heads):
    """Segment attention of one layer's shape.

    Attributes:
        head_size: D.
        dtype: of q, k, v and the output.
        repeats: R. The query heads of one key/value head are rows of the same tile, so they share its keys
        and values.
        config: tile sizes and launch parameters.
        key_stride, value_stride: elements from a key (value) to the next one's: constants of a model's
            layout, so that addresses inside a tile are constants too.
        precision: of fp32 products: ``"tf32x3"`` (three tensor core passes, fp32-like error) on NVIDIA,
            ``"ieee"`` on AMD.
    """

    template: ClassVar[str] = "segment_attention"
    head_size: int
    dtype: str
    repeats: int
    config: Config
    key_stride: int
    value_stride: int
    precision: str = "tf32x3"

    @property
    def edge(self) -> int:
        """Keys of a tile that needs a mask: fewer, because masks take registers and the diagonal cuts a
        large tile in half.
        """
        return min(self.config.block_n, max(32, self.config.block_n // 2))

    @property
    def merge_rows(self) -> int:
        """Rows that one program of the split merge takes: few, so that the merge of one long tile spreads
        out.
        """
        return min(16, self.config.block_m)


@dataclass(frozen=True)
class MergeSpec(_Heads):
    """Merge of attention over disjoint sets of keys.

    Attributes:
        head_size: D.
        part_dtype: of the partial results.
        dtype: of the output.
        block_m: rows of a program.
    """

    template: ClassVar[str] = "merge"
    head_size: int
    part_dtype: str
    dtype: str
    block_m: int = 16


@dataclass(frozen=True)
class _ChunkedSpec(_Heads):
    """What kernels over chunks of keys share.

    Attributes:
        head_size, dtype, repeats, precision: as in :class:`AttentionSpec`.
        config: tile sizes and launch parameters.
        chunk: keys of a program, a multiple of ``config.block_n``.
    """

    template: ClassVar[str]
    head_size: int
    dtype: str
    repeats: int
    config: Config
    chunk: int
    precision: str = "tf32x3"


@dataclass(frozen=True)
class DecodeSpec(_ChunkedSpec):
    """Attention of one new token per batch row over one piece of a cache; ``config.block_m`` is R rounded up
    to what a matrix instruction takes.
    """

    template: ClassVar[str] = "decode"


@dataclass(frozen=True)
class QuestionSpec(_ChunkedSpec):
    """Attention that the question pays to each key; the first of its kernels works on chunks."""

    template: ClassVar[str] = "question"


@dataclass(frozen=True)
class ScanSpec:
    """One pass over the video features.

    Attributes:
        hidden: H.
        dtype: of the features.
        config: ``block_m`` tokens and ``block_n`` values of H in a tile.
    """

    template: ClassVar[str] = "scan"
    hidden: int
    dtype: str
    config: Config

    @property
    def slices(self) -> int:
        """Slices of H, each of which has a program for every frame."""
        return -(-self.hidden // self.config.block_n)

    @property
    def block_s(self) -> int:
        """Power of two that holds the slices."""
        return 1 << (self.slices - 1).bit_length()


@dataclass(frozen=True)
class Payload:
    """A tensor whose kept tokens are copied: ``outer`` times (B, N, width).

    Attributes:
        name: of the kernel's arguments.
        dtype: Triton's name of it, such as ``"bf16"`` or ``"i64"``.
        outer: leading dimension, such as the axes of M-RoPE positions; 1 where there is none.
        width: values per token.
    """

    name: str
    dtype: str
    outer: int
    width: int

    @property
    def block(self) -> int:
        """Values that are copied at a time."""
        return min(256, 1 << (self.width - 1).bit_length())


@dataclass(frozen=True)
class CompactSpec:
    """Budgeted top-k per run and compaction of the payloads.

    Attributes:
        payloads: what is copied.
        block_t: tokens of a tile.
        block_r: keys that are compared at a time.
        warps: warps of a program.
    """

    template: ClassVar[str] = "compact"
    payloads: tuple[Payload, ...]
    block_t: int = 16
    block_r: int = 1024
    warps: int = 4
