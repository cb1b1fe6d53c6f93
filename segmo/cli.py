"""The ``segmo`` program."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from segmo import __version__
from segmo.commands.calibrate import calibrate
from segmo.commands.demo import demo
from segmo.commands.doctor import doctor
from segmo.commands.eval import evaluate
from segmo.commands.families import families
from segmo.commands.frames import frames
from segmo.commands.inspect import inspect
from segmo.commands.kernels import kernels
from segmo.commands.memory import ask, chat, watch
from segmo.commands.plan import plan
from segmo.commands.run import run
from segmo.commands.serve import serve
from segmo.commands.simulate import simulate
from segmo.commands.warm import warm
from segmo.errors import SegMoError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"segmo {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """SegMo makes prefill of Video LLMs fast on long video."""


_COMMANDS = (run, frames, demo, inspect, families, kernels, calibrate, warm, plan, simulate, doctor, watch, ask, chat)
for command in _COMMANDS:
    app.command()(command)
app.command("eval")(evaluate)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)


def main() -> None:
    """Runs the program; an error of SegMo's own, or of a disk, is one line, not a traceback."""
    try:
        app()
    except (SegMoError, OSError) as error:
        print(f"segmo: {error}", file=sys.stderr)
        raise SystemExit(2) from None
