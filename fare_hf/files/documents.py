"""Texts, JSON and YAML that others wrote, read with bounds: on bytes, on depth, on what they unfold to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

__all__ = [
    "MIB",
    "front_matter",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_object",
    "read_text",
    "read_yaml",
]

MIB = 1 << 20
HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
DEEPEST = 64  # levels; the libraries that get these documents copy them by functions that call themselves
UNFOLDED = 100_000  # nodes of a YAML document once its aliases are followed


def read_bytes(path: Path, limit: int = MIB) -> bytes:
    """A regular file of bounded size: a pipe would keep its reader waiting for ever, a device never ends.

    Args:
        path: which; links are followed.
        limit: bytes it may have.

    Raises:
        ValueError: it is no regular file, or larger.
        OSError: there is none, or it may not be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"'{path}' is no file: name one.")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(
            f"'{path}' is larger than {limit / MIB:g} MiB, the most that is read of its kind: do not use it."
        )
    return content


def read_text(path: Path, limit: int = MIB) -> str:
    """A UTF-8 text of bounded size.

    Raises:
        ValueError: as `read_bytes`, or it is no UTF-8.
        OSError: as `read_bytes`.
    """
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is no text in UTF-8 ({error.reason} at byte {error.start}).") from None


def read_json(path: Path, limit: int = 64 * MIB) -> Any:
    """A JSON document of bounded size and depth.

    Raises:
        ValueError: as `read_text` and `parse_json`; the message names the file.
        OSError: as `read_bytes`.
    """
    return parse_json(read_text(path, limit), f"'{path}'")


def read_object(path: Path, limit: int = 64 * MIB) -> dict[str, Any]:
    """A JSON object; raises ValueError also for another kind of value."""
    found = read_json(path, limit)
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' holds no JSON object but a {type(found).__name__}.")
    return found


def read_yaml(path: Path, limit: int = MIB) -> Any:
    """A YAML document of bounded size, depth and unfolded size, of plain values alone.

    Raises:
        ValueError: as `read_text` and `parse_yaml`; the message names the file.
        OSError: as `read_bytes`.
    """
    return parse_yaml(read_text(path, limit), f"'{path}'")


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text.

    Args:
        text: of a size that the caller has bounded.
        where: it stood, for the message.

    Raises:
        ValueError: no JSON, or nested deeper than 64 levels.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_too_deep(where)) from None
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({error}).") from None
    _check_depth(found, where)
    return found


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text, as `yaml.safe_load`.

    Args:
        text: of a size that the caller has bounded.
        where: it stood, for the message.

    Raises:
        ValueError: no YAML, a name that stands twice, nested deeper than 64 levels, or aliases (`*name`) that unfold
            to 100,000 values or hold themselves.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > UNFOLDED:
            raise ValueError(f"it unfolds to more than {UNFOLDED:,} values through its aliases")
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(_too_deep(where)) from None
    except (
        Exception
    ) as error:  # a KeyError, IndexError or AttributeError too: what `!!int ''` and its like raise in there
        raise ValueError(f"{where} is not YAML ({' '.join(str(error).split())}).") from None
    finally:
        loader.dispose()


def front_matter(card: str, where: str) -> dict[str, Any]:
    """The YAML head of a model card, between its first lines of `---`; empty where it has none.

    Raises:
        ValueError: as `parse_yaml`, or the head holds no names with values.
    """
    head = HEAD.match(card)
    found = {} if head is None else parse_yaml(head[1], where)
    if not isinstance(found, dict | None):
        raise ValueError(f"{where} has a head that is a {type(found).__name__}, no names with values.")
    return found or {}


def _too_deep(where: str) -> str:
    return f"{where} is nested deeper than {DEEPEST} levels, which nothing here is: do not use it."


def _check_depth(value: Any, where: str) -> None:
    """Level by level: a function that calls itself is what such a document would break."""
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [item for part in level if isinstance(part, (dict, list)) for item in _items(part)]
        if not level:
            return
    raise ValueError(_too_deep(where))


def _items(part: dict[Any, Any] | list[Any]) -> Iterable[Any]:
    return part.values() if isinstance(part, dict) else part


def _check_names(node: yaml.Node) -> None:
    """YAML forbids a name to stand twice; PyYAML would keep the last alone."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise ValueError(f"it has {twice!r} twice in one mapping")


def _unfolded(node: yaml.Node, known: dict[int, int], depth: int = 0) -> int:
    """Values below a node, each alias counted like what it stands for; in time that does not grow with that."""
    if depth > DEEPEST:
        raise RecursionError
    if id(node) not in known:
        known[id(node)] = UNFOLDED  # what it counts as while it is counted: then one that holds itself is too large
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        _check_names(node)
        pairs = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_unfolded(part, known, depth + 1) for part in pairs)
    return known[id(node)]
