"""The page of the public names, from their docstrings."""

from __future__ import annotations

import inspect
import re
from typing import Any

import fare_hf
from tools.docs.docstrings import before_sections, section

__all__ = ["api_page"]

HEAD = """# Public names

<!-- Written by `python -m tools.docs`: change the docstrings instead. -->

Everything in `fare_hf.__all__`. They are imported on first use, and a test runs each example. What is not here may
change without notice.
"""
LONGEST = 6
"""Arguments up to which a signature shows all of them."""


def api_page() -> str:
    """A section for each name."""
    links = ", ".join(f"[`{name}`](#{name.lower()})" for name in fare_hf.__all__)
    return "\n".join([HEAD, f"{links}\n", *(_entry(name, getattr(fare_hf, name)) for name in fare_hf.__all__)])


def _entry(name: str, public: Any) -> str:
    parts = [f"## `{name}`", f"`{name}({_arguments(public)})`", before_sections(public)]
    for title in ("Args:", "Attributes:", "Returns:", "Raises:"):
        if text := section(public, title):
            parts.append(f"**{title[:-1]}**\n\n{_items(text)}")
    if example := section(public, "Example:"):
        parts.append(f"**Example**\n\n```text\n{re.sub(r'  # doctest: .*', '', example)}\n```")
    return "\n\n".join(parts) + "\n"


def _arguments(public: Any) -> str:
    """Names of the arguments; of a long list those that are required."""
    said = list(inspect.signature(public).parameters.values())
    needed = [
        one for one in said if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    if len(said) <= LONGEST:
        return ", ".join(one.name if one in needed else f"{one.name}={one.default!r}" for one in said)
    return ", ".join([*(one.name for one in needed), "..."])


def _items(text: str) -> str:
    """A list where a section says something of names, else its text."""
    items = re.split(r"\n(?=\S)", text)
    if not all(re.match(r"[\w, *]+:", item) for item in items):
        return text
    split = (item.partition(":") for item in items)
    return "\n".join(f"- `{names.strip()}`: {' '.join(words.split())}" for names, _, words in split)
