"""The last file of a checkpoint: what the checkpoint holds and which run it is of.

A checkpoint that a kill cut off lacks it, or files that it lists, and is passed over; one of another run is refused.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fare_hf.files.documents import read_object
from fare_hf.files.folders import path_inside
from fare_hf.training.removed_options import REMOVED

__all__ = ["MANIFEST", "check_run", "fault_of", "latest_checkpoint", "write_manifest"]

MANIFEST = "fare_checkpoint.json"
STATE = "trainer_state.json"
"""The Trainer writes it after everything else."""

logger = logging.getLogger(__name__)


def write_manifest(folder: Path, step: int, run: Mapping[str, Any]) -> None:
    """Brings the files of a checkpoint to the disk, and then lists them; the list appears whole or not at all.

    Args:
        folder: of the checkpoint, with everything but the Trainer's state.
        step: of the checkpoint.
        run: what every later run that goes on from here must agree with, as JSON values.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MANIFEST, STATE)]
    for path in files:
        _to_disk(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps({"step": step, "files": sizes, "run": dict(run)}, indent=2) + "\n", encoding="utf-8")
    _to_disk(part)
    part.replace(folder / MANIFEST)
    _to_disk(folder)


def fault_of(folder: Path) -> str | None:
    """Why a run cannot go on from a checkpoint; None if it is complete."""
    try:
        manifest = read_object(folder / MANIFEST)
        step = read_object(folder / STATE)["global_step"]
        files = {name: (path_inside(folder, name), size) for name, size in manifest["files"].items()}
        recorded = manifest["step"]
        dict(manifest["run"])
    except FileNotFoundError as error:
        return f"it has no {Path(str(error.filename)).name}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or {STATE} is not readable ({error})"
    for name, (path, size) in files.items():
        if not path.is_file():
            return f"it has no {name}"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if path.suffix == ".safetensors" and not _has_header(path):
            return f"{name} is no safetensors file"
    return None if step == recorded else f"it is of step {recorded} and its state of step {step}"


def latest_checkpoint(output_dir: str | Path) -> str | None:
    """The newest complete checkpoint of a folder, or None; those cut off while being written are passed over."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        fault = fault_of(folder)
        if fault is None:
            return str(folder)
        logger.warning("%s is not complete and is passed over: %s.", folder, fault)
    return None


def check_run(folder: Path, run: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> None:
    """Refuses a checkpoint that is not complete, or of a run that makes other weights.

    Args:
        folder: the checkpoint.
        run: what decides the weights of this run.
        defaults: of options; what a checkpoint ran with that was written before there was such an option.

    Raises:
        ValueError: what is missing, or every difference.
    """
    fault = fault_of(folder)
    if fault is not None:
        raise ValueError(f"{str(folder)!r} is no complete checkpoint: {fault}; resume from another, or from 'latest'.")
    ours = json.loads(json.dumps(dict(run)))
    theirs = {name: value for name, value in (defaults or {}).items() if name in ours}
    theirs |= read_object(folder / MANIFEST)["run"]
    for name in REMOVED:
        if value := theirs.pop(name, None):
            raise ValueError(f"{str(folder)!r} was trained with {name}={value!r}, {REMOVED[name]}")
    names = [name for name, value in theirs.items() if value != ours.get(name)]
    if names:
        listed = ", ".join(f"{name} {theirs.get(name)!r} there and {ours.get(name)!r} here" for name in names)
        raise ValueError(f"{str(folder)!r} is of another run: {listed}; give the same options, or a new output_dir.")


def _has_header(path: Path) -> bool:
    """What a damaged file of the right size most often lacks; reads no tensor."""
    try:
        with safe_open(path, "pt"):
            return True
    except SafetensorError:
        return False


def _to_disk(path: Path) -> None:
    """Without it a power cut leaves files of the right size and of nothing but zeros."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
