"""`fare-hf card`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import refuse_of_the_hub

__all__ = ["GOING_ON", "PURPOSE", "add_options", "run"]

PURPOSE = "render the model card again, with the figures of a report"
GOING_ON = "the card is as it was, or the new one; run the same command again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("encoder", help="folder of a saved encoder, rewritten in place; or a repository: printed")
    parser.add_argument("--report", type=Path, help="folder or report.json of fare-hf evaluate")
    parser.add_argument("--report_model", help="name under which the report measures this encoder")
    parser.add_argument("--license", help="identifier that the Hub knows, such as mit")
    parser.add_argument("--revision", help="of the repository")


def run(args: argparse.Namespace) -> None:
    """Rewrites the card of a folder, prints that of a repository."""
    from fare_hf.evaluation import RobustnessReport
    from fare_hf.hub import regenerate_card, rewrite_card

    given = {"license": args.license, "report_model": args.report_model}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.report is not None and not args.report.exists():
        raise ValueError(f"there is no report {str(args.report)!r}: name the output_dir of fare-hf evaluate.")
    report = None if args.report is None else RobustnessReport.load(args.report)
    refuse_of_the_hub(args, "revision", args.encoder)
    if Path(args.encoder).is_dir():
        print(rewrite_card(args.encoder, report=report, **changes))
    else:
        print(regenerate_card(args.encoder, report=report, revision=args.revision, **changes))
