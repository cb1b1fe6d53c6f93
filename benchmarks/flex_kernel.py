"""PyTorch's FlexAttention kernel for SegMo's mask, without a GPU.

Inductor renders FlexAttention from templates that ship with PyTorch, and only once there is a CUDA device to
lower for. Here the
same template files are rendered by hand: the hooks that inductor would fill in (arguments, strides, sizes,
the mask, the store) are filled in for one shape, and the config is inductor's own default for the target. The
mask is SegMo's rule, read from a segment id and a context flag per token; blocks that are wholly visible skip
it, as in inductor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import sympy
import torch
import torch._inductor.kernel.flex

from segmo.runtime.kernels.render import Kernel
from segmo.runtime.kernels.specs import DTYPES, AttentionSpec, Config

TEMPLATES = Path(torch._inductor.kernel.flex.__file__).parent / "templates"
CAPABILITY = {"sm_80": (8, 0), "sm_90": (9, 0), "sm_100": (10, 0)}
BLOCK = 128  # FlexAttention's block size in its block mask
LENGTH = 16384

POINTERS = ("Q", "K", "V", "LSE", "MAX", "KV_NUM_BLKS", "KV_IDX", "FULL_KV_NUM_BLKS", "FULL_KV_IDX")

NAMES = (*(f"arg_{name}" for name in POINTERS), "segment_ptr", "context_ptr", "out_ptr")

MASK = """\
segment_m = tl.load(segment_ptr + m)
segment_n = tl.load(segment_ptr + n)
context_n = tl.load(context_ptr + n) != 0
mask_mod_output = (n <= m) & ((segment_n == -1) | (segment_m == -2) | (segment_m == segment_n) | context_n)"""


def default_config(target: str, head_size: int, dtype: str) -> Config:
    """Inductor's default for FlexAttention's forward kernel on an NVIDIA target."""
    from torch._inductor.heuristics.template.triton import CUDAConfigHeuristic

    before = torch.cuda.get_device_capability
    torch.cuda.get_device_capability = lambda device=None: CAPABILITY[target]
    try:
        found = CUDAConfigHeuristic().get_flex_attn_fwd_configs(head_size, sympy.Integer(LENGTH), DTYPES[dtype])[0]
    finally:
        torch.cuda.get_device_capability = before
    return Config(found.block_m, found.block_n, found.num_warps, found.num_stages)


def _options(config: Config, head_size: int, repeats: int) -> dict[str, Any]:
    rounded = 1 << (head_size - 1).bit_length()
    return {
        "PRESCALE_QK": False,
        "ROWS_GUARANTEED_SAFE": False,
        "BLOCKS_ARE_CONTIGUOUS": False,
        "OUTPUT_LOGSUMEXP": True,
        "OUTPUT_MAX": False,
        "FLOAT32_PRECISION": repr(AttentionSpec.precision),  # inductor offers none, or one pass: half of fp32's digits
        "IS_DIVISIBLE": True,
        "SAFE_HEAD_DIM": rounded == head_size,
        "SM_SCALE": head_size**-0.5,
        "GQA_SHARED_HEADS": repeats,
        "HAS_FULL_BLOCKS": True,
        "QK_HEAD_DIM": head_size,
        "QK_HEAD_DIM_ROUNDED": rounded,
        "V_HEAD_DIM": head_size,
        "V_HEAD_DIM_ROUNDED": rounded,
        "USE_TMA": False,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "SPARSE_Q_BLOCK_SIZE": BLOCK,
        "SPARSE_KV_BLOCK_SIZE": BLOCK,
        "INDEX_DTYPE": "tl.int32",
    }


def render_flex(config: Config, head_size: int, dtype: str, repeats: int, groups: int) -> Kernel:
    """FlexAttention's forward kernel for (1, G * R, N, D) queries laid out as (N, heads, D), as a model
    makes them.
    """
    options = _options(config, head_size, repeats)
    defines = "\n".join(f"{name}: tl.constexpr = {value}" for name, value in options.items())
    heads = groups * repeats
    blocks = LENGTH // BLOCK
    shapes = {
        "Q": (1, heads, LENGTH, head_size),
        "K": (1, groups, LENGTH, head_size),
        "V": (1, groups, LENGTH, head_size),
        "KV_NUM_BLKS": (1, 1, blocks),
        "KV_IDX": (1, 1, blocks, blocks),
        "FULL_KV_NUM_BLKS": (1, 1, blocks),
        "FULL_KV_IDX": (1, 1, blocks, blocks),
    }

    def stride(name: str, dim: int | None = None) -> str:
        shape = shapes[name]
        if name in "QKV":
            strides = (LENGTH * shape[1] * head_size, head_size, shape[1] * head_size, 1)
        else:
            strides = tuple(torch.empty(shape, device="meta").stride())
        return ", ".join(map(str, strides)) if dim is None else str(strides[dim])

    def modification(subgraph_number: int, output_name: str, **_: Any) -> str:
        return MASK if subgraph_number else f"{output_name} = qk"

    def store_output(indices: tuple[str, ...], value: str, mask: str, **_: Any) -> str:
        _, head, row, column = indices
        at = f"out_ptr + {row} * {heads * head_size} + {head} * {head_size} + {column}"
        return f"tl.store({at}, ({value}).to(Q.dtype.element_ty), {mask})"

    def indent(text: str, levels: int) -> str:
        return text.replace("\n", "\n" + "    " * levels)

    def def_kernel(*names: str) -> str:
        body = "\n".join([defines, *(f"{name} = arg_{name}" for name in names)])
        return f"@triton.jit\ndef flex_attention_kernel({', '.join(NAMES)}):\n    {indent(body, 1)}"

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)
    environment.filters["indent_except_first"] = indent
    text = "".join(
        (TEMPLATES / f"{name}.py.jinja").read_text() + "\n" for name in ("flex_attention", "utilities", "common")
    )
    body = environment.from_string(text).render(
        **options,
        def_kernel=def_kernel,
        stride=stride,
        size=lambda name, dim: str(shapes[name][dim]),
        modification=modification,
        store_output=store_output,
        gen_argdefs=lambda: ", ".join(NAMES),
        gen_defines=lambda: defines,
    )
    kinds = dict.fromkeys(NAMES, "*i32:16")
    kinds |= {"arg_LSE": "*fp32:16", "arg_MAX": "*fp32:16"}
    kinds |= dict.fromkeys(("arg_Q", "arg_K", "arg_V", "out_ptr"), f"*{dtype}:16")
    launch = f"NUM_WARPS = {config.warps}\nNUM_STAGES = {config.stages}\n"
    head = f"import triton\nimport triton.language as tl\n\n{launch}\n\n"
    return Kernel("flex_attention", f"{head}{body}\n\nSIGNATURES = {{'flex_attention_kernel': {kinds!r}}}\n")
