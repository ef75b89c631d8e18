"""`fare-hf quickstart`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import positive
from fare_hf.files.folders import check_new_folder
from fare_hf.numerals import parse_fraction

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "break a CLIP, make it robust, swap it into a LLaVA, measure: minutes on 2 cores, nothing is downloaded"
EXAMPLES = """\
fare-hf quickstart
fare-hf quickstart --output_dir outputs/again
fare-hf quickstart --minutes 20 --output_dir outputs/longer
"""
GOING_ON = "empty the output_dir, and run the same command again"
FOLDER = Path("outputs/quickstart")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--output_dir", type=Path, default=FOLDER, help=f"must be empty or absent (default: {FOLDER.as_posix()})"
    )
    longer = parser.add_mutually_exclusive_group()
    longer.add_argument("--max_steps", type=positive, help="training steps (default: as many as the figures are of)")
    longer.add_argument(
        "--minutes",
        type=_minutes,
        help="more time than it takes as it is: a longer training, and more images measured (default: as it is)",
    )


def check(args: argparse.Namespace) -> None:
    """The folder."""
    check_new_folder(args.output_dir)


def run(args: argparse.Namespace) -> None:
    """The quickstart of the lab."""
    from fare_hf.lab.quickstart import Quickstart
    from fare_hf.lab.quickstart_plan import Plan

    plan = Plan() if args.max_steps is None else Plan(args.max_steps)
    Quickstart(args.output_dir, plan, args.minutes).run()


def _minutes(text: str) -> float:
    """An argument that is a number of minutes."""
    try:
        if number := parse_fraction(text, "--minutes"):
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number of minutes above 0")
