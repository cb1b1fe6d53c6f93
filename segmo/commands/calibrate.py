"""``segmo calibrate``: measure this device, so that plans are made for it."""

from __future__ import annotations

from typing import Annotated

import typer


def calibrate(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    model: Annotated[str, typer.Option(help="size of the timed layer: a preset or a model's folder")] = "qwen2-0.5b",
    threads: Annotated[int, typer.Option(help="CPU threads of one rank; 0: as PyTorch has it")] = 0,
    link: Annotated[bool, typer.Option(help="also measure the link, with two processes")] = True,
) -> None:
    """Measure matrix products, attention, memory and link of this device and store the rates for planning."""
    import torch
    from rich.console import Console
    from rich.table import Table

    from segmo.commands.inputs import dtype_named, model_shape
    from segmo.runtime.cost.link import with_link
    from segmo.runtime.cost.measure import measure_device
    from segmo.runtime.cost.store import save_device

    if threads:
        torch.set_num_threads(threads)
    where, kind = torch.device(device), dtype_named(dtype)
    console = Console()
    with console.status("measuring the device"):
        measured = measure_device(where, kind, model_shape(model, kind.itemsize))
    if link:
        with console.status("measuring the link between two ranks"):
            measured = with_link(measured, where)
    file = save_device(measured, where, kind)

    table = Table(title=f"{measured.name}, {dtype}")
    table.add_column("rate")
    table.add_column("measured", justify="right")
    for name, value in (
        ("matrix products", f"{measured.gemm_flops / 1e9:,.1f} GFLOP/s"),
        ("flash attention", f"{measured.attention_flops / 1e9:,.1f} GFLOP/s"),
        ("keys visited in vain per causal row", f"{measured.tile_keys:.0f}"),
        ("elementwise work", f"{measured.memory_bytes_per_s / 1e9:,.2f} GB/s"),
        ("one operator", f"{measured.call_seconds * 1e6:.1f} us"),
        ("link latency", f"{measured.link_seconds * 1e6:.0f} us"),
        ("link bandwidth", f"{measured.link_bytes_per_s / 1e9:.2f} GB/s"),
        ("free memory", f"{measured.memory_bytes / 2**30:.1f} GiB"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"stored in {file}")
