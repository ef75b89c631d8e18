"""``fare-hf quickstart``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fare_hf.cli.command import add_command
from fare_hf.cli.console import positive

__all__ = ["add_quickstart", "run_quickstart"]


def add_quickstart(commands: Any) -> None:
    """The options of ``fare-hf quickstart``."""
    parser = add_command(
        commands,
        "quickstart",
        "break a CLIP, make it robust, swap it into a LLaVA, measure: 8 minutes on 2 cores, nothing is downloaded",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("outputs/quickstart"),
        help="where everything goes; must be empty or absent (default: outputs/quickstart)",
    )
    parser.add_argument(
        "--max_steps", type=positive, default=None, help="training steps (default: as many as the figures are of)"
    )
    parser.set_defaults(run=run_quickstart)


def run_quickstart(args: argparse.Namespace) -> None:
    """``fare-hf quickstart``."""
    from fare_hf.lab.quickstart import Quickstart

    options = {} if args.max_steps is None else {"max_steps": args.max_steps}
    Quickstart(args.output_dir, **options).run()
