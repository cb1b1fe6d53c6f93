"""The documentation: links lead somewhere, options are all named, pages are in the site's navigation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from segmo.options import Options

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_files_that_a_page_shows_are_there() -> None:
    marks = [(page, line) for page in PAGES for line in page.read_text().splitlines() if re.match(r"-+\s*8\s*<", line)]
    assert marks
    for page, line in marks:
        shown = re.fullmatch(r'--8<-- "(.+)"', line)  # as the site's extension reads it, which takes no other spacing
        assert shown, f"{page.name}: {line}"
        assert (ROOT / shown[1]).is_file(), line


def test_what_pages_link_to_outside_their_folder_is_brought_to_the_site() -> None:
    kinds = set(re.findall(r'"(\.\w+)"', re.search(r"KINDS = \{(.*)\}", (ROOT / "docs" / "hooks.py").read_text())[1]))
    links = [link for page in PAGES[2:] for link in re.findall(r"\]\((\.\./[^)#]+)", page.read_text())]
    assert links
    for link in links:
        assert link.startswith("../benchmarks/"), link
        assert Path(link).suffix in kinds, link


def test_the_readme_names_every_option() -> None:
    table = (ROOT / "README.md").read_text().split("## Options")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line[:3] == "| `")))
    assert named == {field.name for field in dataclasses.fields(Options)}


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    found = re.findall(r"[\w-]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(found) == sorted(page.name for page in PAGES if page.parent.name == "docs")
    for place in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE):
        module = place.removeprefix("segmo.").replace(".", "/")
        homes = [ROOT / base / f"{name}.py" for base in ("", "segmo") for name in (module, module.rpartition("/")[0])]
        assert any(home.exists() for home in homes), place
