"""Paths that lead nowhere, and folders that are written once: into a new place, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

__all__ = ["check_new_folder", "is_missing_path", "whole_folder"]

# What the disk or its rights say, as against a file that a reader does not find.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def is_missing_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder, not of a repository on the Hub, and there is none."""
    looks = name.startswith((".", "/", "~")) or name.count("/") > 1
    return looks and not Path(name).expanduser().exists()


def check_new_folder(folder: Path) -> None:
    """Never write over or beside something.

    Raises:
        ValueError: a file, or a folder that is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: name a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"the folder '{folder}' is not empty: name a new folder, so that nothing is overwritten.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one that takes its place at the end, or disappears after an error.

    Raises:
        OSError: the disk is full or may not be written.
    """
    part = folder.absolute().with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in DISK_ERRORS:
            raise
        raise OSError(
            f"'{folder}' was not saved (it could not be written: {error}): make room on the disk, or name another "
            "folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
