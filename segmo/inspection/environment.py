"""What this installation of SegMo stands on, and what is wrong with it: the facts of ``segmo doctor``.

Nothing here imports the backend, so that a version it refuses is told like everything else.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import segmo
from segmo.compat.versions import RANGES, installed
from segmo.inspection.caches import compiled_folders, held, own_folders

# What comes with segmo[video], by distribution.
_VIDEO = (
    "av",
    "opencv-python-headless",
    "scenedetect-headless",
    "scikit-video",
    "torchvision",
    "filelock",
    "matplotlib",
)


@dataclass(frozen=True)
class Fact:
    """One line of the report.

    Attributes:
        topic, found: what was looked at, and what is there.
        remedy: what to do about it; empty if all is well.
        broken: SegMo does not work like this; otherwise a remedy is advice.
    """

    topic: str
    found: str
    remedy: str = ""
    broken: bool = False


def examine() -> list[Fact]:
    """Everything, in the order of the report. A probe that fails is a line of the report, never an error."""
    probes = (_segmo, _versions, _backend, _parts, _device, _inductor, _triton, _video, _caches)
    return [fact for probe in probes for fact in _guarded(probe)]


def _guarded(probe: Callable[[], Iterator[Fact]]) -> list[Fact]:
    try:
        return list(probe())
    except Exception as error:  # noqa: BLE001  # what is broken is what is asked for
        topic = probe.__name__.strip("_")
        return [Fact(topic, f"{type(error).__name__}: {error}", "please report this, with these lines", broken=True)]


def _segmo() -> Iterator[Fact]:
    yield Fact("segmo", f"{segmo.__version__} in {Path(segmo.__file__).parent}")
    yield Fact("python", f"{platform.python_version()} on {platform.platform()}")


def _versions() -> Iterator[Fact]:
    for bounds in RANGES:
        found = installed(bounds.package)
        tested = f"tested: {bounds.oldest} to {bounds.newest}"
        if found is None:
            remedy = f'pip install "{bounds.package}>={bounds.oldest}"'
            yield Fact(bounds.package, f"not installed ({tested})", remedy, broken=True)
            continue
        place = bounds.place(found)
        remedy = ""
        if place < 0:
            remedy = f'{bounds.why}: pip install "{bounds.package}>={bounds.oldest}"'
        elif place > 0:
            remedy = "newer than anything tested: if something is wrong, report it with these lines"
        yield Fact(bounds.package, f"{found} ({tested})", remedy, broken=place < 0)
    packages = ("numpy", "networkx", "jinja2", "rich", "typer", "platformdirs")
    yield Fact("with them", ", ".join(f"{name} {installed(name) or 'missing'}" for name in packages))


def _backend() -> Iterator[Fact]:
    found = {point.name: point.value for point in entry_points(group="torch_dynamo_backends")}
    if "segmo" in found:
        yield Fact("backend", f'"segmo" is {found["segmo"]}')
    else:
        remedy = "install the package (pip install .), a folder on the path is not enough"
        yield Fact("backend", 'torch.compile does not find "segmo"', remedy, broken=True)


def _parts() -> Iterator[Fact]:
    from segmo.compat.parts import PARTS, misfits

    wrong = misfits()
    for what, why in wrong.items():
        yield Fact("inside", f"{what}: {why}", "SegMo may compile more often or refuse a model; please report it")
    yield Fact("inside", f"{len(PARTS) - len(wrong)} of {len(PARTS)} parts of torch and transformers are as known")


def _device() -> Iterator[Fact]:
    import torch

    from segmo.bfloat16 import multiplies_bfloat16

    for index in range(torch.cuda.device_count()):
        seen = torch.cuda.get_device_properties(index)
        name = f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, compute capability {seen.major}.{seen.minor}"
        yield Fact(f"cuda:{index}", name)
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        yield Fact("gpu", f"none ({built}); models run on the CPU")
    can = torch.cpu.get_capabilities()
    sets = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16") if can.get(name)]
    slow = "" if multiplies_bfloat16() else "it multiplies bfloat16 slowly: load models in float32 on this CPU"
    yield Fact("cpu", f"{torch.get_num_threads()} threads, {', '.join(sets) or platform.machine()}", slow)


def _inductor() -> Iterator[Fact]:
    import torch

    from segmo.options import Options
    from segmo.runtime.rest import choose_rest

    with torch.no_grad():
        for dtype in (torch.bfloat16, torch.float32):
            for kind in ("prefill", "decode"):
                rest = choose_rest(Options(), kind, torch.device("cpu"), dtype)
                name = f"{str(dtype).removeprefix('torch.')} {kind}"
                yield Fact("inductor", f"{'yes' if rest.inductor else 'no'} for a {name} on this CPU: {rest.why}")


def _triton() -> Iterator[Fact]:
    import torch

    found = installed("triton")
    if found is None:
        remedy = "install torch's own build for GPUs, which brings it" if torch.cuda.is_available() else ""
        yield Fact("triton", "not installed: no generated kernels, and none are needed on the CPU", remedy)
        return
    import triton  # noqa: F401  # a Triton that does not import is a line of the report

    from segmo.runtime.kernels.targets import TARGETS

    yield Fact("triton", f"{found}, kernels for {', '.join(TARGETS)}")


def _video() -> Iterator[Fact]:
    missing = [name for name in _VIDEO if installed(name) is None]
    if missing:
        yield Fact("video", f"missing: {', '.join(missing)}", "for files and the demo: pip install segmo[video]")
    if installed("av"):
        import av

        libraries = av.library_versions["libavcodec"]
        codecs = [name for name in ("h264", "hevc", "av1", "vp9") if name in av.codecs_available]
        version = ".".join(map(str, libraries))
        yield Fact("decoder", f"PyAV {av.__version__} with libavcodec {version}: {', '.join(codecs)}")
    torch, vision = installed("torch"), installed("torchvision")
    if torch and vision and find_spec("torchvision"):
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # noqa: BLE001  # built for another torch: any error at all
            remedy = f"install the torchvision of torch {torch} (0.X for 2.X: 0.26 for 2.11, 0.29 for 2.14)"
            yield Fact("torchvision", f"{vision} does not import beside torch {torch}: {error}", remedy, broken=True)


def _caches() -> Iterator[Fact]:
    for folder in [*own_folders(), *compiled_folders()]:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = f"{shutil.disk_usage(there).free / 2**30:.0f} GiB free"
        remedy = "" if os.access(there, os.W_OK) else "make it writable, or set XDG_CACHE_HOME"
        yield Fact("cache", f"{folder} ({held([folder])}; {free})", remedy)


def broken(facts: list[Fact]) -> bool:
    """Whether SegMo does not work here."""
    return any(fact.broken for fact in facts)


def as_text(facts: list[Fact]) -> str:
    """Plain lines to paste into a report of a fault."""
    width = max(len(fact.topic) for fact in facts)
    lines = [f"{fact.topic:{width}}  {fact.found}" for fact in facts]
    return "\n".join([*lines, "", *(f"- {fact.topic}: {fact.remedy}" for fact in facts if fact.remedy)]).rstrip()
