"""What lies in a folder: walked once, by one process of a training, which tells the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import distributed

from fare_hf.data.decoding import IMAGE_ENDINGS

__all__ = ["KNOWN", "METADATA", "FolderListing", "list_folder", "listed_once"]

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


KNOWN: ContextVar[FolderListing | None] = ContextVar("KNOWN", default=None)
"""Of the folder that is listed once."""


def list_folder(folder: Path) -> FolderListing:
    """Lists a folder and those below it; links are followed, but for a link to a folder that was read already."""
    known = KNOWN.get()
    return known if known is not None and known.folder == folder.resolve() else _walked(folder)


@contextmanager
def listed_once(name: str, check: Callable[[FolderListing], None]) -> Iterator[None]:
    """Inside, a folder of data is not walked again: the first process did, and sent its list to the others.

    On a network file system the walk of a million images takes minutes, and as many processes that walk it at once
    take each other's time. All processes have to come here.

    Args:
        name: of a data set; one that is no folder here is left alone.
        check: looks at the list in the first process; what it raises is raised in all.

    Raises:
        OSError, ValueError: as `check`.
    """
    token = KNOWN.set(_from_first(Path(name).expanduser(), check))
    try:
        yield
    finally:
        KNOWN.reset(token)


def _from_first(folder: Path, check: Callable[[FolderListing], None]) -> FolderListing | None:
    """The first process's list of a folder, as of this machine: the files' names below the folder are sent."""
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    found = _checked(folder, check) if not several or distributed.get_rank() == 0 else None
    if several:
        box = [_packed(found) if isinstance(found, FolderListing) else found]
        distributed.broadcast_object_list(box)
        found = _unpacked(folder.resolve(), *box[0]) if isinstance(box[0], tuple) else box[0]
    if isinstance(found, Exception):
        raise found
    return found


def _checked(folder: Path, check: Callable[[FolderListing], None]) -> FolderListing | Exception | None:
    """A folder's list, or what `check` says of it."""
    if not folder.is_dir():
        return None
    listing = _walked(folder.resolve())  # as `datasets` names its files
    try:
        check(listing)
    except (OSError, ValueError) as error:
        return error
    return listing


def _packed(listing: FolderListing) -> tuple[str, dict[str, int]]:
    """Names in one text: a path of its own for each of a million would take a second to send."""
    start = len(str(listing.folder))
    return "\0".join(str(path)[start:].lstrip(os.sep) for path in listing.files), dict(listing.others)


def _unpacked(folder: Path, names: str, others: dict[str, int]) -> FolderListing:
    files = [folder / name for name in names.split("\0")] if names else []
    return FolderListing(folder, files, Counter(others))


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
