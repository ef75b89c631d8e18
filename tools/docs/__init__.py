"""Pages of docs/ that are written from the code and from data files: `python -m tools.docs` writes them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.docs.api import api_page
from tools.docs.examples import examples_page
from tools.docs.gallery import gallery_page
from tools.docs.jobs import jobs_page
from tools.docs.manifest import manifest_page
from tools.docs.report import report_page
from tools.docs.training import training_page

__all__ = ["INSERTIONS", "PAGES", "ROOT", "text_of", "write_pages"]

ROOT = Path(__file__).resolve().parents[2]
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/api.md": api_page,
    "docs/reference/jobs.md": jobs_page,
    "docs/reference/manifest.md": manifest_page,
    "docs/reference/report.md": report_page,
    "docs/reference/training.md": training_page,
    "docs/gallery.md": lambda: gallery_page(ROOT / "docs" / "gallery.yaml"),
    "examples/README.md": lambda: examples_page(ROOT / "examples"),
}
INSERTIONS: dict[str, tuple[str, Path]] = {
    "docs/experimental.md": ("cheaper", ROOT / "examples" / "benchmarks" / "results" / "cheaper.md"),
}
"""Page -> its mark, and the file whose text stands there."""


def text_of(name: str, root: Path = ROOT) -> str:
    """What a page should hold."""
    if name in PAGES:
        return PAGES[name]()
    mark, source = INSERTIONS[name]
    begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
    head, rest = (root / name).read_text(encoding="utf-8").split(begin)
    return f"{head}{begin}\n{source.read_text(encoding='utf-8').strip()}\n{end}{rest.split(end)[1]}"


def write_pages(root: Path = ROOT) -> list[Path]:
    """Writes every page; returns those that changed."""
    changed = []
    for name in (*PAGES, *INSERTIONS):
        path, text = root / name, text_of(name, root)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed
