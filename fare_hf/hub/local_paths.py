"""Paths of this machine in what others read: their last part alone is saved, and none is published."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

__all__ = ["find_local_path", "without_local_paths"]

ROOTS = (
    "home|root|Users|tmp|var|mnt|media|data|datasets|scratch|opt|srv|private|workspace|work|Volumes|gpfs|lustre|nfs|fsx|"
    "content|kaggle|storage|dev|etc"
)
END = r"[^\s\x00\"'`|<>()\[\]{},;]"
ANYWHERE = re.compile(
    rf"file:/{{1,3}}{END}+|(?<![\w.~/\\])/(?:{ROOTS})/{END}+|(?<![\w.~/\\])/root(?![\w/.-])"
    r"|(?<![A-Za-z])[A-Za-z]:\\{1,2}[\w.$ -]+\\" + f"{END}*"
)
WHOLE = re.compile(
    r"/[\w.@+ -]+(?:/[\w.@+ -]+)+/?|[A-Za-z]:[\\/][\w.@+ -]+(?:[\\/][\w.@+ -]+)*|\\\\[\w.@+$ -]+(?:\\[\w.@+$ -]+)+"
)
"""A value that is nothing but a path, of whatever root."""


def find_local_path(text: str) -> str | None:
    """The first absolute path of a machine in a text: of a usual root, or below the user's home or working folder."""
    found = WHOLE.fullmatch(text) or ANYWHERE.search(text) or _own().search(text)
    return None if found is None else found[0]


def without_local_paths(value: Any) -> Any:
    """The same plain data with the last part of each absolute path in place of it."""
    if isinstance(value, str):
        return _shortened(value)
    if isinstance(value, Mapping):
        return {_shortened(key) if isinstance(key, str) else key: without_local_paths(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_local_paths(part) for part in value]
    return value


def _shortened(text: str) -> str:
    if WHOLE.fullmatch(text) or (len(Path(text).parts) > 2 and os.path.isabs(text) and os.path.exists(text)):
        return _last(text)
    return _own().sub(lambda found: _last(found[0]), ANYWHERE.sub(lambda found: _last(found[0]), text))


def _last(path: str) -> str:
    name = PureWindowsPath(path).name if "\\" in path or path[1:2] == ":" else PurePosixPath(path).name
    return name or "folder"


def _own() -> re.Pattern[str]:
    """Paths below the user's home and the working folder, where these are deep enough to say something."""
    folders = {os.path.expanduser("~"), os.getcwd()}
    deep = [re.escape(folder) for folder in sorted(folders, key=len, reverse=True) if len(Path(folder).parts) > 2]
    return re.compile(rf"(?:{'|'.join(deep)})(?:/{END}*|(?![\w-]))" if deep else r"(?!)")
