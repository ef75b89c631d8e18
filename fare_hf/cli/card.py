"""``fare-hf card``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fare_hf.cli.command import add_command, refuse_of_the_hub

__all__ = ["add_card", "run_card"]


def add_card(commands: Any) -> None:
    """The options of ``fare-hf card``."""
    parser = add_command(commands, "card", "render the model card again, with the figures of a report")
    parser.add_argument("source", help="folder of a saved encoder, rewritten in place; or a repository: printed")
    parser.add_argument("--report", type=Path, help="folder or report.json of fare-hf evaluate")
    parser.add_argument("--report_model", help="name under which the report measures this encoder")
    parser.add_argument("--license", help="identifier that the Hub knows, such as mit")
    parser.add_argument("--revision", help="of the repository")
    parser.set_defaults(run=run_card)


def run_card(args: argparse.Namespace) -> None:
    """``fare-hf card``."""
    from fare_hf.evaluation import RobustnessReport
    from fare_hf.hub import regenerate_card, rewrite_card

    given = {"license": args.license, "report_model": args.report_model}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.report is not None and not args.report.exists():
        raise ValueError(f"there is no report {str(args.report)!r}: name the output_dir of fare-hf evaluate.")
    report = None if args.report is None else RobustnessReport.load(args.report)
    if not Path(args.source).is_dir():
        print(regenerate_card(args.source, report=report, revision=args.revision, **changes))
        return
    refuse_of_the_hub(args, "revision", args.source)
    print(rewrite_card(args.source, report=report, **changes))
