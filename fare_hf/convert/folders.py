"""The folder that a conversion writes: whole, in its place, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fare_hf.convert.checkpoints import TOKENIZER_FILES, find_file

__all__ = ["check_folder", "copy_tokenizer", "staged"]


def copy_tokenizer(sources: list[tuple[Any, str | None]], folder: Path) -> bool:
    """Copy the tokenizer files of the first source that has them."""
    for source, revision in sources:
        if source is None or Path(source).is_file():
            continue
        found = [path for name in TOKENIZER_FILES if (path := find_file(os.fspath(source), name, revision))]
        for path in found:
            shutil.copyfile(path, folder / path.name)
        if found:
            return True
    return False


def check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"'{folder}' is a file: name a folder for the converted model.")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"the folder '{folder}' is not empty: name a new folder, so that nothing is overwritten.")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one that takes its place at the end, or disappears after an error."""
    staging = folder.absolute().with_name(f".{folder.name}.converting-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        yield staging
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except SafetensorError as error:
        raise OSError(f"the weights could not be written beside '{folder}': {error}.") from error
    finally:
        if staging.exists():
            shutil.rmtree(staging)
