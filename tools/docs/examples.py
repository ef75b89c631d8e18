"""The index of examples/, from the first lines of the files."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tools.docs.docstrings import table

__all__ = ["examples_page"]

HEAD = """# Examples

<!-- Written by `python -m tools.docs`: change the first line of a file instead. -->

Run them from the root of the repository, such as `python examples/swap_lab_captions.py`; `--help` shows their options.
A test runs every script, on parts of the lab.
"""
SECTIONS = {
    "Scripts": "*.py",
    "Studies": "studies/*.py",
    "Notebooks": "notebooks/*.*",
    "A Space of Hugging Face": "space/*.py",
    "Recipes for `--config`": "recipes/*.yaml",
    "Configurations of accelerate": "accelerate/*.yaml",
    "Benchmarks": "benchmarks/*.*",
}


def examples_page(folder: Path) -> str:
    """A table for each kind that there is."""
    parts = [HEAD]
    for title, pattern in SECTIONS.items():
        paths = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
        lines: list[list[object]] = [
            [f"[{path.relative_to(folder).as_posix()}]({path.relative_to(folder).as_posix()})", first_line(path)]
            for path in paths
        ]
        if lines:
            parts.append(f"## {title}\n\n{table(['file', 'what it does'], lines)}\n")
    parts.append("What the benchmarks found stands in [benchmarks/results](benchmarks/results).\n")
    return "\n".join(parts)


def first_line(path: Path) -> str:
    """What a file says of itself at its beginning."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    if path.suffix == ".ipynb":
        return "".join(json.loads(text)["cells"][0]["source"]).splitlines()[0].lstrip("# ")
    comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#") and not line.startswith("#!"))
    return next(comments, "")
