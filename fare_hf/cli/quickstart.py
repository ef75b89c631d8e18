"""`fare-hf quickstart`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import positive
from fare_hf.files.folders import check_new_folder

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "break a CLIP, make it robust, swap it into a LLaVA, measure: 8 minutes on 2 cores, nothing is downloaded"
EXAMPLES = """\
fare-hf quickstart
fare-hf quickstart --output_dir outputs/again
"""
GOING_ON = "empty the output_dir, and run the same command again"
FOLDER = Path("outputs/quickstart")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--output_dir", type=Path, default=FOLDER, help=f"must be empty or absent (default: {FOLDER.as_posix()})"
    )
    parser.add_argument("--max_steps", type=positive, help="training steps (default: as many as the figures are of)")


def check(args: argparse.Namespace) -> None:
    """The folder."""
    check_new_folder(args.output_dir)


def run(args: argparse.Namespace) -> None:
    """The quickstart of the lab."""
    from fare_hf.lab.quickstart import Quickstart

    options = {} if args.max_steps is None else {"max_steps": args.max_steps}
    Quickstart(args.output_dir, **options).run()
