"""``segmo calibrate``: measure this device, so that plans are made for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from segmo.runtime.cost.gain import Fusion


def calibrate(
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    dtype: Annotated[str, typer.Option(help="bfloat16, float16 or float32")] = "bfloat16",
    model: Annotated[str, typer.Option(help="size of the timed layer: a preset or a model's folder")] = "qwen2-0.5b",
    threads: Annotated[int, typer.Option(help="CPU threads of one rank; 0: as PyTorch has it")] = 0,
    link: Annotated[bool, typer.Option(help="also measure the link, with two processes")] = True,
    inductor: Annotated[bool, typer.Option(help="on a CPU, also measure what inductor makes of a layer")] = True,
) -> None:
    """Measure matrix products, attention, memory and link of this device and store the rates for planning.

    On a CPU also what inductor makes of a decoder layer, by which lowering="auto" chooses what compiles the rest of a
    graph there.
    """
    import dataclasses

    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from segmo.checked import check_count, device_named, dtype_named, made_folder
    from segmo.commands.inputs import model_shape
    from segmo.runtime.cost.fusion import measure_fusion
    from segmo.runtime.cost.link import with_link
    from segmo.runtime.cost.measure import measure_device
    from segmo.runtime.cost.store import devices_folder, save_device

    check_count("threads", threads, least=0)
    if threads:
        torch.set_num_threads(threads)
    where, kind = device_named(device), dtype_named(dtype)
    made_folder(devices_folder())  # now, and not after everything has been measured
    console = Console()
    with console.status("measuring the device"):
        measured = measure_device(where, kind, model_shape(model, kind.itemsize))
    if where.type == "cpu" and inductor:
        with console.status("measuring what inductor makes of a layer"):
            fusion = measure_fusion(kind, model_shape(model, kind.itemsize))
        measured = dataclasses.replace(measured, fusion=fusion)
    if link:
        with console.status("measuring the link between two ranks"):
            measured = with_link(measured, where)
    file = save_device(measured, where, kind)

    table = Table(title=escape(f"{measured.name}, {dtype}"))
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
    if measured.fusion is not None:
        _print_choice(console, measured.fusion)
    console.print(f"stored in {file}", soft_wrap=True, markup=False)


def _print_choice(console: Console, fusion: Fusion) -> None:
    """What was measured of inductor, and what lowering="auto" makes of that."""
    from segmo.runtime.rest import worth

    for kind, gain in (("prefill", fusion.prefill), ("decode", fusion.decode)):
        if gain is not None:
            rows = f"{gain.rows:,} row{'s' * (gain.rows > 1)} ({kind})"
            console.print(
                f"a layer without attention by inductor, {rows}: {gain.ratio:.2f}x ({gain.low:.2f} to {gain.high:.2f}) "
                f"of its speed as it is, compiled in {gain.compile_seconds:.1f} s",
                soft_wrap=True,
            )
        rest = worth(fusion, kind)
        choice = "compiles" if rest.inductor else "does not compile"
        console.print(f'lowering="auto" {choice} it: {rest.why}', soft_wrap=True, markup=False)
