"""Paths that lead nowhere, folders of strangers, and folders that are written once: new, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from filelock import FileLock, Timeout
from safetensors import SafetensorError

__all__ = [
    "LOCK",
    "check_links",
    "check_model_name",
    "check_no_lab_name",
    "check_new_folder",
    "encoder_inside",
    "files_in",
    "is_missing_path",
    "locked_folder",
    "path_inside",
    "relative_name",
    "whole_folder",
]

LOCK = ".lock"
"""File in a folder that a run writes to, held by it; gone with the run, except where that was killed."""

# What the disk or its rights say, as against a file that a reader does not find.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}


def is_missing_path(name: str) -> bool:
    """Whether a name can only be that of a file or folder, not of a repository on the Hub, and there is none."""
    looks = name.startswith((".", "/", "~")) or name.count("/") > 1
    return looks and not Path(name).expanduser().exists()


def check_no_lab_name(name: object) -> None:
    """Raises ValueError for `lab:NAME`, which the commands alone turn into a folder, and says how Python gets it."""
    if str(name).startswith("lab:"):
        short = str(name).removeprefix("lab:")
        raise ValueError(
            f"{str(name)!r} is a name for the commands: in Python an encoder is what "
            f"fare_hf.lab.encoder_folder({short!r}) returns, a vision-language model fare_hf.lab.load_llava() or "
            "load_smolvlm(), a test set fare_hf.lab.load_test_set(NAME)."
        )


def check_model_name(name: object) -> None:
    """Refuses, before the Hub is asked and asked again, what can be neither a folder here nor a repository of a model.

    Raises:
        ValueError: `lab:NAME`, a path that leads nowhere, or a single word that is no file or folder here: the Hub's
            repositories of such models are all called `namespace/name`.
    """
    check_no_lab_name(name)
    text = str(name)
    if is_missing_path(text):
        raise ValueError(f"there is nothing at {text!r}: check the path.")
    if "/" not in text and not Path(text).exists():
        raise ValueError(
            f"{text!r} is neither a folder with a model here nor a name of the Hub, which is namespace/name: check "
            "the spelling."
        )


def encoder_inside(folder: str) -> str:
    """The encoder in the output_dir of a training, for the message to who named that; empty where there is none."""
    inside = Path(folder) / "encoder"
    return f"'{inside}'" if (inside / "config.json").is_file() else ""


def relative_name(name: object, where: str) -> str:
    """A file name that came from outside (an index, a manifest, a repository's listing), which stays in its folder.

    Args:
        name: what stands there.
        where: what holds the name, for the message.

    Raises:
        ValueError: no text, an absolute path, one with `..`, a drive, a backslash, or a control character.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} names the file {name!r}, which is no file name: do not use it.")
    parts = PurePosixPath(name).parts
    foreign = "\\" in name or PureWindowsPath(name).drive or any(ord(letter) < 32 for letter in name)
    if foreign or name.startswith("/") or ".." in parts or not parts:
        raise ValueError(f"{where} names the file {name!r}, which leaves its folder: do not use it.")
    return name


def path_inside(folder: Path, name: object, where: str | None = None) -> Path:
    """The path of a file that something foreign names, in its folder; every name that was read goes through here.

    Symbolic links are followed: one that leads out of the folder is refused, except those of the Hub's cache, whose
    snapshots consist of links to the `blobs` beside them.

    Raises:
        ValueError: as `relative_name`, or a link that leaves the folder.
    """
    where = where or f"'{folder}'"
    path = folder / relative_name(name, where)
    real, root = path.resolve(), folder.resolve()
    if not any(real.is_relative_to(allowed) for allowed in (root, *_blobs(folder.absolute()))):
        raise ValueError(f"{where} holds {name!r}, a link to '{real}' outside of it: do not use it.")
    return path


def files_in(folder: Path) -> list[str]:
    """The files of a folder that something foreign may have filled, by their names in it, sorted; hidden ones, such as
    those of `.git` and `.cache`, belong to this machine.

    Raises:
        ValueError: as `path_inside`; a link to a folder or to nothing, a pipe, a device.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*"))]
    shown = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    paths = {name: path_inside(folder, name) for name in shown}
    for name, path in paths.items():
        if not path.is_file() and (path.is_symlink() or not path.is_dir()):
            raise ValueError(
                f"'{folder}' holds {name!r}, which is no file (a pipe, a device, a link to a folder or to nothing)."
            )
    return [name for name, path in paths.items() if path.is_file()]


def check_links(name_or_path: object) -> None:
    """Before a library opens the files of a model's folder by their names: none of them is a link that leaves it.

    Args:
        name_or_path: folder, and the folders in it are looked at too; the name of a repository is none.

    Raises:
        ValueError: as `path_inside`.
    """
    folder = Path(str(name_or_path))
    if folder.is_dir():
        for path in (*folder.glob("*"), *folder.glob("*/*")):
            if path.is_symlink():
                path_inside(folder, path.relative_to(folder).as_posix())


def _blobs(folder: Path) -> list[Path]:
    """The `blobs` of a repository in the Hub's cache, for a folder in one of its snapshots."""
    for snapshot in (folder, *folder.parents):
        if snapshot.parent.name == "snapshots" and snapshot.parent.parent.name.startswith(("models--", "datasets--")):
            return [(snapshot.parent.parent / "blobs").resolve()]
    return []


def check_new_folder(folder: Path) -> None:
    """Never write over or beside something; the lock of a run that was killed is nothing.

    Raises:
        ValueError: a file, or a folder that is not empty.
    """
    _check_no_file(folder)
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise ValueError(f"the folder '{folder}' is not empty: name a new folder, so that nothing is overwritten.")


def _check_no_file(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: name a folder.")


@contextmanager
def locked_folder(folder: Path, what: str) -> Iterator[None]:
    """Holds a folder for one run, which is made if absent, and goes again if nothing was written to it.

    The lock is the operating system's: a run that was killed holds none.

    Args:
        folder: that the run writes to.
        what: writes, such as "a training", for the message to the second one.

    Raises:
        ValueError: a file, or a run in another process or thread holds the folder.
    """
    _check_no_file(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{what} that is still running writes to '{folder}': wait for its end, or name another folder."
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with suppress(OSError):
            if made:
                folder.rmdir()


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
