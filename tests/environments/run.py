"""Runs the tests in environments of other releases, one after another, and prints one table (``make matrix``).

    python tests/environments/run.py oldest common pinned newest
    python tests/environments/run.py common=python3.12 --keep
    python tests/environments/run.py oldest --quick           # what "make oldest" does

Each environment takes some 6 GB and is removed when its tests are done. It needs nothing but Python itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
BUILD = ROOT / "build" / "environments"
# What each environment is installed with; None: whatever the index serves.
CONSTRAINTS = {
    "oldest": HERE / "oldest.txt",
    "common": HERE / "common.txt",
    "pinned": ROOT / "constraints.txt",
    "newest": None,
}
TOOLS = (
    "hypothesis",
    "num2words",
    "playwright",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "setuptools>=77.0.3",
    "tlparse",
)
# What an older torch or transformers is likeliest to break.
QUICK = ("capture", "compat", "arguments", "families", "identities", "generate", "attention", "passes")
SHOWN = ("torch", "triton", "transformers", "numpy", "av")


@dataclass
class Result:
    """What became of one environment."""

    name: str
    versions: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    minutes: float = 0.0
    note: str = ""

    def row(self) -> str:
        counts = f"{self.passed} | {self.failed} | {self.skipped}"
        return f"| {self.name} | {self.versions} | {counts} | {self.minutes:.0f} | {self.note} |"


HEADER = "| environment | versions | passed | failed | skipped | minutes | |\n|---|---|---|---|---|---|---|"


def install(name: str, python: str, pre: bool) -> Path:
    """Makes an environment with the package as an editable install; its interpreter."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    inside = folder / "bin" / "python"
    command = [str(inside), "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[video,eval]", *TOOLS]
    if constraints := CONSTRAINTS[name]:
        command += ["--constraint", str(constraints)]
    subprocess.run([*command, *(["--pre"] if pre else [])], check=True)
    subprocess.run([str(inside), "-m", "pip", "check"], check=True)
    return inside


def versions(python: Path) -> str:
    """The releases that matter, as they are installed."""
    code = (
        "import platform; from importlib.metadata import version; "
        f"print('Python', platform.python_version(), *(f', {{n}} {{version(n)}}' for n in {SHOWN}), sep='')"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip().replace("Python", "Python ")


def test(python: Path, name: str, quick: bool, more: list[str]) -> Result:
    """Runs the tests and counts them."""
    result, report, start = Result(name, versions(python)), BUILD / f"{name}.xml", time.monotonic()
    report.unlink(missing_ok=True)
    files = sorted(str(file) for part in QUICK for file in (ROOT / "tests").glob(f"test_{part}*.py")) if quick else []
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", f"--junitxml={report}"]
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([*command, *files, *more], cwd=ROOT, check=False, env=environment)
    result.minutes = (time.monotonic() - start) / 60
    if not report.exists():
        result.note = f"no result: pytest ended with {done.returncode}"
        return result
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    for suite in suites:
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        result.failed += bad
        result.skipped += skipped
        result.passed += int(suite.get("tests", 0)) - bad - skipped
    return result


def main() -> int:
    """The table; 1 if an environment has a failed test or none at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", nargs="+", metavar="NAME[=PYTHON]", help=", ".join(CONSTRAINTS))
    parser.add_argument("--quick", action="store_true", help="only what other releases are likeliest to break")
    parser.add_argument("--pre", action="store_true", help="pre-releases too, for newest")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    chosen, more = parser.parse_known_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for asked in chosen.environments:
        name, _, python = asked.partition("=")
        if name not in CONSTRAINTS:
            parser.error(f"unknown environment {name!r}; there are {', '.join(CONSTRAINTS)}")
        try:
            inside = install(name, python or sys.executable, chosen.pre and name == "newest")
            results.append(test(inside, name, chosen.quick, more))
        except (subprocess.CalledProcessError, OSError) as error:
            results.append(Result(name, "", note=f"not installed: {error}"))
        if not chosen.keep:
            shutil.rmtree(BUILD / name, ignore_errors=True)
        table = "\n".join([HEADER, *(result.row() for result in results)])
        (BUILD / "table.md").write_text(table + "\n", encoding="utf-8")
        print(f"\n{table}\n", flush=True)
    return int(any(result.failed or result.note or not result.passed for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
