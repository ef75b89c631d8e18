"""Tar archives with a sample's files side by side, of which a reader would leave images out without a word."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path

from fare_hf.data.decoding import IMAGE_ENDINGS

__all__ = ["ARCHIVE_ERRORS", "check_archives"]

ARCHIVE_ERRORS = (tarfile.TarError,)
END_OF_ARCHIVE = 2 * tarfile.BLOCKSIZE


def check_archives(paths: Sequence[Path]) -> None:
    """Looks at the end of each archive and at its first sample.

    Args:
        paths: regular files.

    Raises:
        ValueError: one that was cut off, of which the rest would be read; images of another kind than in the first
            archive, whose kind names the column of all.
    """
    kinds: dict[str, Path] = {}
    for path in paths:
        if not _is_whole(path):
            raise ValueError(f"the shard {str(path)!r} is damaged: it has no end of archive; replace that file.")
        if kind := _kind(path):
            kinds.setdefault(kind, path)
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.items())[:2]
        raise ValueError(
            f"the shard {str(second)!r} holds images named {other}, {str(first)!r} {one}: one kind becomes the column "
            "and the others would be lost; give them one ending (a decoder looks at the content, not at the name)."
        )


def _is_whole(path: Path) -> bool:
    """Whether a tar archive ends with the two empty blocks of POSIX."""
    with path.open("rb") as file:
        file.seek(-min(END_OF_ARCHIVE, path.stat().st_size), 2)
        return file.read() == bytes(END_OF_ARCHIVE)


def _kind(path: Path) -> str:
    """The endings of the images of the first sample."""
    found, sample = [], None
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name, _, ending = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or not ending:
                    continue
                if sample not in (None, name):
                    break
                sample = name
                found += [f".{ending}"] if f".{ending.rpartition('.')[2].lower()}" in IMAGE_ENDINGS else []
    except ARCHIVE_ERRORS:
        return ""  # said with its cause when it is read
    return " and ".join(sorted(found))
