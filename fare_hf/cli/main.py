"""`fare-hf`: a thin command line over the public functions.

A command is a file here, named as the command is, with `PURPOSE`, `GOING_ON` (the answer to Ctrl-C), `add_options` and
`run`, and a place in `COMMANDS`. It imports what it runs when it runs, so that `--help` needs no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from fare_hf import __version__
from fare_hf.cli import attack, card, convert, evaluate, merge, push, quickstart, swap
from fare_hf.cli.console import Parser, hide_notices, one_sentence

__all__ = ["COMMANDS", "build_parser", "main"]

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (evaluate, attack, swap, merge, convert, push, card, quickstart)
}
OF_A_TRAINING = {
    "train": "fine-tune an encoder; same as python -m fare_hf.train",
    "estimate": "operations, memory and hours of a training",
}
"""Commands that take the options of the Trainer, and parse them themselves: their files have a `main`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what was asked wrongly is one sentence, without a traceback."""
    hide_notices()  # before anything is imported that gives them
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in OF_A_TRAINING:
        with one_sentence(f"fare-hf {words[0]}"):  # Ctrl-C while it is imported
            import_module(f"fare_hf.cli.{words[0]}").main(words[1:], prog=f"fare-hf {words[0]}")
        return
    args = build_parser().parse_args(words)
    command = COMMANDS[args.command]
    with one_sentence("fare-hf", command.GOING_ON):
        from fare_hf.hub.retry import Retries, bounded_waits

        with bounded_waits(Retries()):
            command.run(args)


def build_parser() -> Parser:
    """The parser of all commands but those `OF_A_TRAINING`."""
    parser = Parser(prog="fare-hf", description="Adversarially robust CLIP vision encoders (FARE).")
    parser.add_argument("--version", action="version", version=f"fare_hf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, purpose in OF_A_TRAINING.items():
        commands.add_parser(name, help=purpose, add_help=False)
    for name, module in COMMANDS.items():
        purpose = module.PURPOSE
        module.add_options(commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}."))
    return parser


if __name__ == "__main__":
    main()
