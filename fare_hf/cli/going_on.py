"""An evaluation that was interrupted: the same command, given again, goes on in its folder."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["going_on"]

STATES = "states"
NOT_OF_THE_RUN = {"command", "commands", "output_dir", "json"}
SETTINGS = "settings.json"


@contextmanager
def going_on(args: argparse.Namespace) -> Iterator[Path]:
    """Holds the folder of an evaluation for its time; of several processes the first one does.

    Args:
        args: options of the command; those that are None say nothing.

    Yields:
        A folder in `args.output_dir` for what is finished, which goes at the end, or where nothing was finished.

    Raises:
        ValueError: a folder that holds something else, or a run with other options, or one that still runs.
    """
    from fare_hf.evaluation.processes import held_by_the_first, process_state
    from fare_hf.evaluation.resume import claim
    from fare_hf.files.folders import locked_folder

    first, states = process_state().is_main_process, args.output_dir / STATES
    told = {name: value for name, value in vars(args).items() if name not in NOT_OF_THE_RUN and value is not None}

    @contextmanager
    def held() -> Iterator[None]:
        _check_folder(args.output_dir)
        with locked_folder(args.output_dir, "an evaluation"):
            _check_folder(args.output_dir)  # another run may have ended in it
            claim(
                states,
                {_option(name): value if isinstance(value, list) else str(value) for name, value in told.items()},
            )
            yield

    with held_by_the_first(held):
        ended = False
        try:
            yield states
            ended = True
        finally:
            if first and (ended or not _holds_something(states)):
                shutil.rmtree(states, ignore_errors=True)


def _option(name: str) -> str:
    return "ENCODER" if name == "encoder" else f"--{name}"


def _check_folder(folder: Path) -> None:
    """A new folder, or one with the states of a command that was interrupted."""
    from fare_hf.files.folders import LOCK, check_new_folder

    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - {LOCK} != {STATES}:
        check_new_folder(folder)


def _holds_something(states: Path) -> bool:
    """Whether anything is finished: settings alone say only whose folder it is."""
    return any(path.is_file() and path.name != SETTINGS for path in states.rglob("*"))
