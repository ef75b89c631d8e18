"""Options of a training from YAML files: `--config FILE [FILE ...]`, before those of the command line."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fare_hf.cli.console import near_word
from fare_hf.files.documents import read_yaml
from fare_hf.training.removed_options import REMOVED

__all__ = ["expand_config"]

OPTION = "--config"


def expand_config(words: Sequence[str], known: Collection[str]) -> list[str]:
    """Replaces `--config` and its files by the options they hold, in front: a later file and the command line win.

    Args:
        words: of the command line.
        known: names of the options.

    Raises:
        ValueError: no file, one that is not a YAML mapping, or an option that does not exist.
    """
    words, found = [part for word in words for part in _separate(word)], []
    while OPTION in words:
        at = words.index(OPTION)
        end = next((i for i in range(at + 1, len(words)) if words[i].startswith("-")), len(words))
        if end == at + 1:
            raise ValueError("--config names no file; give one or more YAML files.")
        found += [word for file in words[at + 1 : end] for word in _words(file, known)]
        del words[at:end]
    return found + words


def _separate(word: str) -> list[str]:
    """`--config=FILE` as two words."""
    return [OPTION, word.partition("=")[2]] if word.startswith(f"{OPTION}=") else [word]


def _words(file: str, known: Collection[str]) -> list[str]:
    """A file as words of a command line."""
    try:
        options = read_yaml(Path(file))
    except OSError as error:
        raise ValueError(f"--config {file!r} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise ValueError(f"--config {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"--config {file!r} holds no options; write lines such as `eps: 4/255`.")
    for name in options:
        if name in REMOVED:
            raise ValueError(f"--config {file!r} has {name!r}, {REMOVED[name]}")
        if name not in known:
            near = near_word(str(name), known)
            hint = f"did you mean {near}?" if near else "--help_all shows the options."
            raise ValueError(f"--config {file!r} has the option {name!r}, which does not exist; {hint}")
    return [word for name, value in options.items() for word in _option(name, value)]


def _option(name: str, value: Any) -> list[str]:
    """`--name=value`; nothing for null."""
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, (dict, bool)) else value}"]
