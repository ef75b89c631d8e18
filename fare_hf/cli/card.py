"""`fare-hf card`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fare_hf.cli.console import refuse_missing, refuse_of_the_hub

if TYPE_CHECKING:
    from fare_hf.evaluation import Row

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "base_hint", "check", "run"]

PURPOSE = "render the model card again, with the figures of a report"
EXAMPLES = """\
fare-hf card fare4/encoder --report outputs/photos --report_model encoder
fare-hf card fare4/encoder --base_model openai/clip-vit-large-patch14 --license mit
fare-hf card user/fare4-clip-vit-large-patch14   # of a repository: printed
"""
GOING_ON = "the card is as it was, or the new one; run the same command again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("encoder", help="folder of a saved encoder, rewritten in place; or a repository: printed")
    parser.add_argument("--report", type=Path, help="folder or report.json of fare-hf evaluate")
    parser.add_argument("--report_model", help="row of the report that is this encoder, where none has its name")
    parser.add_argument("--base_model", help="Hub name of the original, where the card names a folder, such as ./clip")
    parser.add_argument("--license", help="identifier that the Hub knows, such as mit")
    parser.add_argument("--revision", help="of the repository")


def check(args: argparse.Namespace) -> None:
    """What is read, is there."""
    refuse_of_the_hub(args, "revision", args.encoder)
    refuse_missing("ENCODER", args.encoder)
    if args.report is not None and not args.report.exists():
        raise ValueError(f"there is no report {str(args.report)!r}: name the output_dir of fare-hf evaluate.")


def run(args: argparse.Namespace) -> None:
    """Rewrites the card of a folder, prints that of a repository."""
    from fare_hf.evaluation import RobustnessReport
    from fare_hf.hub import regenerate_card, rewrite_card
    from fare_hf.hub.base_model import base_name, inherited_license

    report = None if args.report is None else RobustnessReport.load(args.report)
    own = args.report_model if args.report_model or report is None else own_name(report.rows, args.encoder)
    given = {"license": args.license, "report_model": own}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.base_model is not None:
        changes = {"base_model": base_name(args.base_model), **inherited_license(args.base_model), **changes}
    if Path(args.encoder).is_dir():
        rewrite_card(args.encoder, report=report, **changes)
        print(*facts(Path(args.encoder)), sep="\n")
    else:
        print(regenerate_card(args.encoder, report=report, revision=args.revision, **changes))


def own_name(rows: Sequence[Row], encoder: str) -> str:
    """The name under which rows measure an encoder: its own; no other is guessed, nor taken from an earlier call."""
    models = list(dict.fromkeys(row.model for row in rows))
    found = [model for model in models if model in {encoder, Path(encoder).resolve().name}]
    if len(found) != 1:
        measured = ", ".join(map(repr, models)) or "none"
        raise ValueError(
            f"which row of the report is {encoder!r} is not plain, as it measures {measured}: name the row with "
            "--report_model."
        )
    return found[0]


def facts(folder: Path) -> list[str]:
    """What was written, which figures count as this encoder's own, and what is still to be named."""
    from fare_hf.hub.card.regenerate import content_of
    from fare_hf.hub.card.render import PLOT, own_rows

    content = content_of(folder)
    parts = ("README.md", "fare_hf.json", "report.json", PLOT)
    lines = [f"written in '{folder}': {', '.join(name for name in parts if (folder / name).exists())}"]
    if content.report is not None:
        own, models = own_rows(content), sorted({row.model for row in content.report.rows})
        every = len(content.report.rows)
        lines += [
            f"this encoder is {' and '.join(map(repr, dict.fromkeys(row.model for row in own)))} of the report: "
            f"{len(own)} of {every} figures are its own"
            if own
            else f"which of {', '.join(map(repr, models))} this encoder is, is not said: give --report_model"
        ]
    if hint := base_hint(content.base_model, folder):
        lines.append(hint)
    return lines


def base_hint(base_model: str, folder: Path) -> str:
    """What to do where the card names an original that nobody else has; empty where it is a repository."""
    if not base_model.startswith("./"):
        return ""
    return (
        f"the card names {base_model!r} as the original, which nobody else can load; "
        f"fare-hf card {folder} --base_model NAMESPACE/NAME names a repository"
    )
