"""Docstrings taken apart: paragraphs, sections, and what a section says of each name."""

from __future__ import annotations

import inspect
import re
from typing import Any

__all__ = ["cell", "first_paragraph", "listed", "section", "table"]

TITLES = ("Args:", "Attributes:", "Returns:", "Raises:", "Example:")


def section(owner: Any, title: str) -> str:
    """The text under a title such as `Args:`, without its indentation; empty where there is none."""
    text = inspect.getdoc(owner) or ""
    found = re.search(rf"^{title}\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return inspect.cleandoc(found[1]) if found else ""


def before_sections(owner: Any) -> str:
    """The paragraphs before the first section."""
    text = inspect.getdoc(owner) or ""
    return re.split(rf"^(?:{'|'.join(TITLES)})$", text, maxsplit=1, flags=re.MULTILINE)[0].strip()


def first_paragraph(owner: Any) -> str:
    """The first paragraph, on one line."""
    return " ".join(before_sections(owner).split("\n\n")[0].split())


def listed(text: str) -> dict[str, str]:
    """What a section says of each name; `a, b: of both` says the same of two."""
    said: dict[str, str] = {}
    for item in re.split(r"\n(?=\S)", text):
        names, _, words = item.partition(":")
        if words:
            said |= dict.fromkeys(re.split(r",\s*", names.strip()), " ".join(words.split()))
    return said


def cell(text: object) -> str:
    """Text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def table(head: list[str], lines: list[list[object]]) -> str:
    """A Markdown table."""
    rows: list[list[object]] = [[*head], ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)
