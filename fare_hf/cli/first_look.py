"""What the words of a training can be refused for in a moment, before the seconds in which torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fare_hf.cli.console import Parser, refuse_missing, refuse_no_file
from fare_hf.lab.names import TRAINING_SETS, is_in_lab, lab_name, trained_path
from fare_hf.numerals import parse_eps
from fare_hf.training.checkpointing.output_folder import checkpoint_to_resume

__all__ = ["look_first"]

NEEDED = ("model", "dataset", "output_dir")


def look_first(words: Sequence[str], prog: str) -> None:
    """Refuses what is missing, folders that are not there or in the way, and a radius that is none.

    Args:
        words: of the command line. The whole parser reads them again, and says what else is wrong.
        prog: the program, for the message.

    Raises:
        ValueError: the first fault.
    """
    parser = Parser(prog=prog, add_help=False)
    for name in (*NEEDED, "resume_from_checkpoint", "eps"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--config", nargs="+", default=[])
    parser.add_argument("-h", "--help", "--help_all", action="store_true")
    given, _ = parser.parse_known_args(words)
    refuse_no_file("--config", *given.config)
    if not given.help and not given.config:  # which may say what is not said here
        _look(given, prog)


def _look(given: argparse.Namespace, prog: str) -> None:
    if missing := [f"--{name}" for name in NEEDED if getattr(given, name) is None]:
        raise ValueError(f"{' and '.join(missing)} must be given; `{prog} --help` shows the options.")
    if given.eps is not None:
        parse_eps(given.eps, given.norm)
    refuse_missing("--model", trained_path(given.model))
    refuse_missing("--dataset", given.dataset)
    if is_in_lab(given.dataset):
        lab_name(given.dataset, TRAINING_SETS, "dataset=")
    if given.resume_from_checkpoint != "latest":  # of which something may be said, which is said once
        checkpoint_to_resume(given.output_dir, given.resume_from_checkpoint)
