"""Of the site's builder: pictures and tables that lie under benchmarks/, beside what makes them, become part of it.

Pages link to them as the repository has them, ``../benchmarks/...``, so that they show there too.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

KINDS = {".png", ".txt", ".csv"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds each picture and table under its path in the repository."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / "benchmarks").rglob("*")):
        if path.suffix in KINDS:
            name = path.relative_to(root).as_posix()
            files.append(File(name, str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """On the site they lie below the pages, not beside their folder."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")
