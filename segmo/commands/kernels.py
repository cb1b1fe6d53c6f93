"""``segmo kernels``: the generated kernels, what the compiler makes of them, and what they should cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from segmo.runtime.kernels.inventory import Entry

ALL_TARGETS = "sm_80,sm_90,sm_100,gfx942"


def _selected(target: str, kernel: str | None, head_size: int | None, dtype: str | None) -> list[Entry]:
    from segmo.errors import KernelError
    from segmo.runtime.kernels.inventory import entries

    chosen = [
        entry
        for entry in entries(target)
        if kernel in (None, entry.kernel)
        and (head_size is None or entry.head_size in (None, head_size))
        and dtype in (None, entry.dtype)
    ]
    if not chosen:
        raise KernelError(
            f"no kernel {kernel or ''} with head size {head_size} and dtype {dtype} in the inventory; "
            "'segmo kernels --list' shows what there is"
        )
    return chosen


def _known(option: str, value: object, known: Sequence[object]) -> None:
    from segmo.errors import OptionError

    if value is not None and value not in known:
        raise OptionError(f"{option} is {value!r}; it must be one of {', '.join(map(str, known))}")


def _row(target: str, entry: Entry) -> dict[str, Any]:
    """One line of the table, in a process of its own perhaps."""
    import torch

    from segmo.runtime.kernels.inventory import summary

    torch.set_num_threads(1)
    return summary(entry, target)


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(
        title="Generated kernels, compiled without a GPU",
        caption="regs: registers per thread; occ: programs per multiprocessor; per mma: instructions "
        "per matrix instruction in the leanest loop",
    )
    for name in ("target", "kernel", "D", "dtype", "config"):
        table.add_column(name)
    for name in ("regs", "spills", "shared", "occ", "matrix", "async", "per mma"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    for row in rows:
        spills = f"{row['stack_bytes']} B" if row["stack_bytes"] or row["spill_instructions"] else "none"
        table.add_row(
            row["target"],
            row["kernel"],
            str(row["head_size"] or "-"),
            row["dtype"],
            row["config"],
            str(row["registers"]),
            spills,
            str(row["shared_bytes"]),
            str(row["occupancy"]),
            " ".join(row["matrix"]) or "-",
            str(row["async_copies"]),
            f"{row['per_matrix_instruction']:.2f}" if row["per_matrix_instruction"] else "-",
            "[red]" + "; ".join(row["problems"]) if row["problems"] else "[green]ok",
        )
    return table


def _compile_all(work: list[tuple[str, Entry]], jobs: int) -> list[dict[str, Any]]:
    """Rows in order. Triton's compiler holds the interpreter lock, so more than one job means processes."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    targets, chosen = [target for target, _ in work], [entry for _, entry in work]
    if jobs == 1:
        return [_shown(_row(*item), at, len(work)) for at, item in enumerate(work)]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        return [_shown(row, at, len(work)) for at, row in enumerate(pool.map(_row, targets, chosen))]


def _shown(row: dict[str, Any], at: int, count: int) -> dict[str, Any]:
    """Says on stderr how far it is: compiling everything takes long. Triton's cache goes on where one stopped."""
    what = f"{row['target']} {row['kernel']} {row['head_size'] or ''} {row['dtype']}"
    typer.echo(f"{at + 1}/{count} {what}: {'; '.join(row['problems']) or 'ok'}", err=True)
    return row


def _print_source(entry: Entry) -> None:
    from segmo.runtime.kernels.render import render

    kernel = render(entry.spec)
    typer.echo(f"# {kernel.load().__file__}")
    typer.echo(f"# hash {kernel.hash}")
    typer.echo(kernel.source)


def kernels(
    target: Annotated[str, typer.Option(help="architectures to compile for, comma-separated")] = ALL_TARGETS,
    kernel: Annotated[str | None, typer.Option(help="one kernel only, such as segment_attention")] = None,
    head_size: Annotated[int | None, typer.Option(help="one head size only: 64, 80, 96, 128 or 256")] = None,
    dtype: Annotated[str | None, typer.Option(help="one dtype only: bf16, fp16 or fp32")] = None,
    source: Annotated[bool, typer.Option("--source", help="print the generated source instead")] = False,
    listing: Annotated[bool, typer.Option("--list", help="list the kernels, compile nothing")] = False,
    predict: Annotated[bool, typer.Option("--predict", help="predicted times from data sheets")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="processes that compile")] = 1,
) -> None:
    """Compile the generated kernels for GPUs that need not be there, and show what the compiler made of them.

    Exits with 1 if a default config spills registers, misses the target's matrix instruction or its
    asynchronous copies.
    """
    from rich.console import Console

    from segmo.errors import OptionError
    from segmo.runtime.kernels.hardware import machine
    from segmo.runtime.kernels.specs import DTYPES, HEAD_SIZES

    console = Console(width=None if Console().is_terminal else 200)
    targets = [machine(name.strip()).target for name in target.split(",")]
    if predict:
        if kernel is not None or source or listing:
            raise OptionError(
                "--predict has a table of its own, of all kernels; leave out --kernel, --source and --list"
            )
        _known("--head-size", head_size, HEAD_SIZES)
        _known("--dtype", dtype, list(DTYPES))
        from segmo.commands.kernels_predict import prediction_rows, prediction_table

        predicted = prediction_rows(targets, head_size or 128, dtype or "bf16")
        if as_json:
            typer.echo(json.dumps(predicted, indent=1))
        else:
            console.print(prediction_table(predicted))
        return
    work = [(name, entry) for name in targets for entry in _selected(name, kernel, head_size, dtype)]
    if as_json and (listing or source):
        raise OptionError("--json is the table of compiled kernels or of --predict; --list and --source print text")
    if listing:
        for name, entry in work:
            typer.echo(f"{name} {entry.function} D={entry.head_size or '-'} {entry.dtype} {entry.config}")
        return
    if source:
        _print_source(work[0][1])
        return
    rows = _compile_all(work, jobs)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        console.print(_table(rows))
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)
