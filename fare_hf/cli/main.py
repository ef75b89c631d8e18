"""``fare-hf``: a thin command line over the public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fare_hf import __version__
from fare_hf.cli import attack, evaluate
from fare_hf.cli.card import add_card
from fare_hf.cli.command import Command, add_command
from fare_hf.cli.console import hide_notices, one_sentence
from fare_hf.cli.convert import add_convert
from fare_hf.cli.merge import add_merge
from fare_hf.cli.push import add_push
from fare_hf.cli.quickstart import add_quickstart
from fare_hf.cli.swap import add_swap

__all__ = ["build_parser", "main"]

GOING_ON = {
    "attack": "the same command goes on from the last saved state",
    "card": "the card is as it was, or the new one; run the same command again",
    "convert": "nothing was written; run the same command again",
    "evaluate": "the same command goes on after the last finished job of a suite; one encoder is measured from the "
    "beginning",
    "merge": "nothing was written; run the same command again",
    "push": "what the Hub has is not sent again; the same command goes on",
    "quickstart": "empty the output_dir, and run the same command again",
    "swap": "nothing was written; run the same command again",
}
"""What Ctrl-C is answered with, for each command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one subcommand; what was asked wrongly is one sentence, without a traceback."""
    hide_notices()  # before anything is imported that gives them
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # its options are those of the Trainer, parsed there
        from fare_hf.cli import train

        train.main(words[1:], prog="fare-hf train")
        return
    if words[:1] == ["estimate"]:
        from fare_hf.cli import estimate

        estimate.main(words[1:])
        return
    args = build_parser().parse_args(words)
    run: Callable[[argparse.Namespace], None] = args.run
    with one_sentence("fare-hf", GOING_ON[args.command]):
        from fare_hf.hub.retry import Retries, bounded_waits

        with bounded_waits(Retries()):
            run(args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands but ``train``."""
    parser = Command(prog="fare-hf", description="Adversarially robust CLIP vision encoders (FARE).")
    parser.add_argument("--version", action="version", version=f"fare_hf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("train", help="fine-tune an encoder; same as python -m fare_hf.train", add_help=False)
    commands.add_parser("estimate", help="operations, memory and hours of a training", add_help=False)
    add_evaluate(commands)
    add_attack(commands)
    add_swap(commands)
    add_merge(commands)
    add_convert(commands)
    add_push(commands)
    add_card(commands)
    add_quickstart(commands)
    return parser


def add_evaluate(commands: Any) -> None:
    """The options of ``fare-hf evaluate``."""
    parser = add_command(commands, "evaluate", "a suite (YAML), or one encoder on the lab's zero-shot sets, attacked")
    evaluate.add_options(parser)
    parser.set_defaults(run=evaluate.run)


def add_attack(commands: Any) -> None:
    """The options of ``fare-hf attack``."""
    purpose = "make a vision-language model write given strings; success is measured from the saved PNG files"
    parser = add_command(commands, "attack", purpose)
    attack.add_options(parser)
    parser.set_defaults(run=attack.run)


if __name__ == "__main__":
    main()
