"""What lies in a folder: walked once, by one of several processes, which tells the others."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from fare_hf.data.decoding import IMAGE_ENDINGS

__all__ = ["METADATA", "FolderListing", "found_by_the_first", "found_once", "list_folder", "listed_once"]

Found = TypeVar("Found")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SHARDS = frozenset(".arrow .gz .h5 .hdf5 .lance .parquet .tar .tgz .vortex .zip".split())
TABLES = frozenset((*SHARDS, ".csv", ".json", ".jsonl"))
HIDDEN = (".", "__")
"""How names begin that are never read, as with `datasets`."""


@dataclass(frozen=True)
class FolderListing:
    """The regular files of a folder, and a count of what else lies there.

    Attributes:
        folder: that was listed.
        files: their paths, sorted, without hidden ones and those in hidden folders.
        others: kind -> how many entries of it were left out.
    """

    folder: Path
    files: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def __reduce__(self) -> tuple[Any, ...]:
        """Names in one text: a path of its own for each of a million would take a second to send."""
        start = len(str(self.folder))
        names = "\0".join(str(path)[start:].lstrip(os.sep) for path in self.files)
        return _listing_of, (self.folder, names, self.others)

    def as_of(self, folder: Path) -> FolderListing:
        """The same files, where the folder has another path: on another machine, say."""
        return FolderListing(folder, [folder / path.relative_to(self.folder) for path in self.files], self.others)

    @cached_property
    def images(self) -> list[Path]:
        """Files that images are read from."""
        return [path for path in self.files if path.suffix.lower() in IMAGE_ENDINGS]

    @property
    def has_data(self) -> bool:
        """Whether any file may hold images."""
        return any(path.suffix.lower() in IMAGE_ENDINGS | TABLES for path in self.files)

    @property
    def is_of_images(self) -> bool:
        """Whether these are image files, and not shards with some pictures beside them."""
        shards = sum(path.suffix.lower() in SHARDS and path.name not in METADATA for path in self.files)
        return len(self.images) > shards

    @property
    def is_plain(self) -> bool:
        """Whether these are image files, and no table says which there are and what belongs to them."""
        return self.is_of_images and not any(path.name in METADATA for path in self.files)


KNOWN: ContextVar[dict[Hashable, Any] | None] = ContextVar("KNOWN", default=None)
"""What `found_once` has found inside `listed_once`."""


def list_folder(folder: Path) -> FolderListing:
    """Lists a folder and those below it; links are followed, but for a link to a folder that was read already."""
    root = folder.resolve()  # as `datasets` names its files
    found = found_once(("files", root), lambda: _walked(root))
    return found if found.folder == root else found.as_of(root)


@contextmanager
def listed_once() -> Iterator[None]:
    """Inside, no folder is walked twice: the first process walks it, and sends its list to the others.

    On a network file system the walk of a million images takes minutes, and as many processes that walk it at once
    take each other's time. All processes of the group have to come here, and open the same inside.
    """
    token = KNOWN.set({} if KNOWN.get() is None else KNOWN.get())
    try:
        yield
    finally:
        KNOWN.reset(token)


def found_once(what: Hashable, find: Callable[[], Found]) -> Found:
    """What one process finds, in all of them and once, inside `listed_once`; elsewhere it is found here.

    Args:
        what: a name for it.
        find: of which the first process's result is sent to the others; what it raises is raised in all.

    Raises:
        OSError, ValueError: as `find`; of an error of another kind its words, as ValueError.
    """
    if (known := KNOWN.get()) is None:
        return find()
    if what not in known:
        known[what] = found_by_the_first(find)
    found: Found = known[what]
    return found


def found_by_the_first(find: Callable[[], Found]) -> Found:
    """What the first process of a group finds, in all of them, or its error; all have to come here.

    Raises:
        OSError, ValueError: as `found_once`.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return find()
    box = [_pickled(find) if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(box)
    found = pickle.loads(box[0] or b"")
    if isinstance(found, Exception):
        raise found
    return found


def _pickled(find: Callable[[], Any]) -> bytes:
    """What is found, or the error; the others wait for one of both, whatever happens here."""
    try:
        return pickle.dumps(find())
    except Exception as error:
        plain = type(error) in (ValueError, OSError, FileNotFoundError, PermissionError)
        return pickle.dumps(error if plain else ValueError(str(error)))


def _listing_of(folder: Path, names: str, others: Counter[str]) -> FolderListing:
    return FolderListing(folder, [folder / name for name in names.split("\0")] if names else [], others)


def _walked(folder: Path) -> FolderListing:
    """One look at each folder and none at its files: what they are stands in their folder."""
    found, seen, left = FolderListing(folder), set[tuple[int, int]](), [folder]
    _is_new(folder, seen)
    while left:
        read: list[Path] = []
        for entry in _entries(left.pop(), found.others):
            if entry.name.startswith(HIDDEN):
                found.others["hidden"] += 1
            elif _is(entry, os.DirEntry.is_dir):
                if _is_new(Path(entry.path), seen):
                    read.append(Path(entry.path))
                else:
                    found.others["folders linked twice"] += 1
            elif _is(entry, os.DirEntry.is_file):
                found.files.append(Path(entry.path))
            else:
                found.others["no regular files"] += 1
        left.extend(reversed(read))
    found.files.sort(key=str)
    return found


def _entries(folder: Path, others: Counter[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name; of one that may not be read nothing, which is counted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        others["unreadable folders"] += 1
        return []


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Whether an entry is a folder or a file; a link in a circle is neither."""
    try:
        return kind(entry)
    except OSError:
        return False


def _is_new(path: Path, seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is to be read: a link only once, so that links in a circle end."""
    try:
        status = path.stat()
    except OSError:
        return False
    key = (status.st_dev, status.st_ino)
    if path.is_symlink() and key in seen:
        return False
    seen.add(key)
    return True
