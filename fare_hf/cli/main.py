"""`fare-hf`: a thin command line over the public functions.

A command is a file here, named as the command is, with `PURPOSE`, `EXAMPLES` (lines that can be typed; a test parses
them), `GOING_ON` (the answer to Ctrl-C), `add_options`, `check` and `run`, and a place in `COMMANDS`. `check` refuses
what can be refused without torch, whose import takes seconds; `run` imports what it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fare_hf import __version__
from fare_hf.cli import app, attack, card, completion, convert, env, evaluate, merge, push, quickstart, swap
from fare_hf.cli.console import CommandParser, Parser, examples, hide_bars, hide_notices, one_sentence
from fare_hf.cli.first_look import look_first

__all__ = ["COMMANDS", "OF_A_TRAINING", "build_parser", "main"]

COMMANDS = {
    module.__name__.rpartition(".")[2]: module
    for module in (evaluate, attack, swap, merge, convert, push, card, app, quickstart, env, completion)
}
OF_A_TRAINING = {
    "train": "fine-tune an encoder; same as python -m fare_hf.train",
    "estimate": "operations, memory and hours of a training",
}
"""Commands that take the options of the Trainer, and parse them themselves: their files have a `main`."""
EXAMPLES = """\
fare-hf quickstart                                    # the whole story, offline
fare-hf evaluate lab:clip --output_dir outputs/clip   # how easily an encoder is fooled
fare-hf train --model openai/clip-vit-large-patch14 --dataset path/to/images --output_dir fare4
fare-hf swap llava-hf/llava-1.5-7b-hf fare4/encoder --output_dir robust-llava
fare-hf evaluate --help                               # options and examples of a command
"""
NOTHING_YET = "nothing was written yet; run the same command again"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; what was asked wrongly is one sentence, without a traceback."""
    hide_notices()  # before anything is imported that gives them
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in OF_A_TRAINING:
        with one_sentence("fare-hf", NOTHING_YET):  # Ctrl-C while it is imported
            if words[0] == "train":
                look_first(words[1:], "fare-hf train")
            import_module(f"fare_hf.cli.{words[0]}").main(words[1:], prog=f"fare-hf {words[0]}")
        return
    args = build_parser().parse_args(words)
    command = COMMANDS[args.command]
    with one_sentence("fare-hf", command.GOING_ON):
        command.check(args)
        from fare_hf.hub.retry import Retries, bounded_waits

        hide_bars()
        with bounded_waits(Retries()):
            command.run(args)


def build_parser() -> Parser:
    """The parser of all commands but those `OF_A_TRAINING`."""
    about = "Adversarially robust CLIP vision encoders (FARE): fine-tune, measure, swap into LLaVA, publish."
    parser = Parser(prog="fare-hf", description=about, epilog=examples(EXAMPLES))
    parser.add_argument("--version", action="version", version=f"fare_hf {__version__}")
    commands: Any = parser.add_subparsers(
        title="commands", parser_class=CommandParser, required=True, metavar="COMMAND", dest="command"
    )
    for name, purpose in OF_A_TRAINING.items():
        commands.add_parser(name, help=purpose, add_help=False)
    for name, module in COMMANDS.items():
        purpose = module.PURPOSE
        about = f"{purpose[0].upper()}{purpose[1:]}."
        module.add_options(
            commands.add_parser(name, help=purpose, description=about, epilog=examples(module.EXAMPLES))
        )
    parser.set_defaults(commands=commands.choices)  # for the script that completes them
    return parser


if __name__ == "__main__":
    main()
