"""What ``import segmo`` brings in: nothing heavy, and nothing that is not on this list."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# Modules outside the standard library that "import segmo" may import, and that using its names without a model may.
IMPORT = {"segmo"}
NAMES = {"segmo", "segmo.options", "segmo.errors"}
# What the program may import before it knows the command, beside the standard library and its own modules.
PROGRAM = {"segmo", "typer", "click", "rich", "shellingham", "markdown_it", "mdurl", "pygments", "annotated_doc"}


def printed_by(code: str) -> list[str]:
    """Words that some code prints in a fresh interpreter, started in the clone."""
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    return done.stdout.split()


def imported_by(code: str) -> set[str]:
    """Modules outside the standard library that some code imports in a fresh interpreter."""
    names = printed_by(f"import sys; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))")
    return {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}


def test_the_list() -> None:
    assert imported_by("import segmo") == IMPORT


def test_a_clone_has_all_parts_where_the_installed_package_is_out_of_sight() -> None:
    hide = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]"
    code = f"{hide}; import segmo.passes.base, segmo.runtime; print(segmo.passes.base.__file__, segmo.runtime.__file__)"
    root = Path(__file__).parent.parent
    assert printed_by(code) == [str(root / "passes" / "base.py"), str(root / "runtime" / "__init__.py")]


def test_whoever_walks_the_package_s_modules_meets_each_once() -> None:
    """``TORCH_LOGS=+segmo`` walks them: with the clone on the package's path, segmo.segmo.segmo never ends."""
    names = printed_by("import segmo, pkgutil; print(*(found.name for found in pkgutil.iter_modules(segmo.__path__)))")
    assert {"api", "options"} <= set(names)
    assert not {"segmo", "tests"} & set(names)
    assert len(names) == len(set(names))


def test_looking_at_names_and_options_imports_no_torch() -> None:
    assert imported_by("import segmo; dir(segmo); segmo.Options(keep=0.5)") - {"__mp_main__"} == NAMES - {""}


def test_the_program_starts_without_torch() -> None:
    assert {name.partition(".")[0] for name in imported_by("import segmo.cli")} <= PROGRAM
