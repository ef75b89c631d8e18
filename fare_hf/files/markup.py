"""Texts of others in Markdown and in code: they show as what they are, and begin nothing of their own."""

from __future__ import annotations

import re

__all__ = ["inline", "is_link", "literal"]

LONGEST = 300
ESCAPED = {"<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*[]|~$"}
LINK = re.compile(r"https?://[^\s<>()\[\]{}\"'`|\\^]{1,500}")


def inline(text: object, longest: int = LONGEST) -> str:
    """A text as part of a line or of a table's cell: no markup, no HTML, no line break, of bounded length.

    Args:
        text: of a name, a licence, a value.
        longest: characters; what is beyond ends in "...".
    """
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    shown = shown if len(shown) <= longest else f"{shown[:longest].rstrip()}..."
    shown = re.sub(r"&(?=#|\w+;)", "&amp;", shown)
    shown = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", "".join(ESCAPED.get(letter, letter) for letter in shown))
    return re.sub(r"^([#+=-])", r"\\\1", shown)


def literal(text: str) -> str:
    """A string literal of Python that equals the text, on one line."""
    return f'"{"".join(_in_literal(letter) for letter in text)}"'


def is_link(text: object) -> bool:
    """Whether a text is an address of the web, which a page may link to."""
    return isinstance(text, str) and bool(LINK.fullmatch(text))


def _in_literal(letter: str) -> str:
    if letter in '"\\':
        return f"\\{letter}"
    if letter.isprintable():
        return letter
    return f"\\U{ord(letter):08x}"
