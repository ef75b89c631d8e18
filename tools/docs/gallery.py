"""The gallery of robust encoders, from its data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tools.docs.docstrings import table

__all__ = ["gallery_page"]

COLUMNS = ("name", "method", "base", "resolution", "eps", "licence")


def gallery_page(path: Path) -> str:
    """Tables of encoders, their figures with sources, and how each is used here."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    parts = [
        f"# Robust encoders\n\n<!-- Written by `python -m tools.docs` from {path.name}. -->\n\n{content['intro']}"
    ]
    for group in content["groups"]:
        encoders = group["encoders"]
        parts.append(f"## {group['title']}\n\n{group['text']}")
        parts.append(_encoders(encoders) + "\n")
        parts += [_figures(group["figures"])] if "figures" in group else []
        parts.append(group["use"])
    return "\n".join([*parts, content["adding"]])


def _encoders(encoders: list[dict[str, Any]]) -> str:
    lines: list[list[object]] = []
    for encoder in encoders:
        link = f"[{encoder['name']}]({encoder['link']})"
        lines.append([link, *(encoder.get(column, "") for column in COLUMNS[1:]), encoder["here"]])
    return table([*COLUMNS, "with fare_hf"], lines)


def _figures(figures: dict[str, Any]) -> str:
    head, lines = figures["columns"], [list(line) for line in figures["lines"]]
    text = figures["text"].strip()
    return f"{text}\n\n{table(head, lines)}\n\nSource: {figures['source']}\n"
