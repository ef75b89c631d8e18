"""The options of a training on the command line: FARE's own first, those of the Trainer that are of use, the rest on
demand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from transformers import HfArgumentParser

from fare_hf.cli.console import UNKNOWN, Parser, examples
from fare_hf.cli.training_arguments import FareScriptArguments
from fare_hf.training.config import FareConfig, options_in

__all__ = ["OptionParser", "build_parser", "parse"]

OF_THE_TRAINER = {
    "training": {
        "num_train_epochs": "Passes over the images, if --max_steps is -1.",
        "gradient_accumulation_steps": "Batches for an update.",
        "bf16": "Mixed precision; weights and pixels stay in fp32.",
        "seed": "Of the order of the images and of the random starts.",
    },
    "evaluation": {
        "eval_strategy": "When to evaluate on --eval_split.",
        "eval_steps": "Steps between two evaluations.",
        "load_best_model_at_end": "Keep the best checkpoint, by --metric_for_best_model, and end with it.",
        "metric_for_best_model": "robust_accuracy, loss (robust too), or clean_accuracy.",
        "per_device_eval_batch_size": "Images a process takes at a time in an evaluation.",
    },
    "saving": {
        "resume_from_checkpoint": "Go on from `latest`, or from the folder of a checkpoint, with the same weights as "
        "without the interruption.",
        "save_steps": "Steps between two checkpoints: what an interruption costs at most.",
        "save_strategy": "When to write a checkpoint.",
        "push_to_hub": "Publish the encoder.",
        "hub_model_id": "Repository to publish to; by default the name of --output_dir in your account.",
    },
}
"""Options of the Trainer that `--help` shows beside those that `FareConfig` declares, with what it says of them."""
TITLES = {"cheaper": "cheaper, off by default", "saving": "saving, going on after an interruption, publishing"}
OUTPUT = "Folder for checkpoints, the recipe and the encoder; must be empty or absent."


class OptionParser(Parser, HfArgumentParser):
    """The options of dataclasses."""


class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default only where there is one, and each option in one spelling; keeps the lines of the examples."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return action.help if plain else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[-1 if action.dest == "help" else 0]
        if action.nargs in (0, "?"):
            return name
        return f"{name} {{{','.join(map(str, action.choices))}}}" if action.choices else f"{name} {_kind(action)}"


def build_parser(prog: str, description: str, lines: str, everything: bool) -> OptionParser:
    """The parser of `(FareScriptArguments, FareConfig)`.

    Args:
        prog, description: of the help.
        lines: examples, which the help ends with.
        everything: whether the help shows every option of `TrainingArguments` too.
    """
    parser = OptionParser(
        (FareScriptArguments, FareConfig),
        prog=prog,
        usage=f"{prog} --model MODEL --dataset DATASET --output_dir FOLDER [options]",
        description=description,
        epilog=examples(lines),
        formatter_class=Formatter,
    )
    # Without a default: the dataclasses take every other option, and a value left over would be one object more.
    files = "YAML files of these options; the command line wins"
    parser.add_argument("--config", nargs="+", default=argparse.SUPPRESS, help=files)
    parser.add_argument("--help_all", action="help", help="show every option of the Trainer of transformers too")
    actions = {action.dest: action for action in parser._actions}
    actions["output_dir"].help = OUTPUT
    shown = ("config", *FareScriptArguments.__annotations__, "output_dir")
    _group(parser, "model and data", [actions[name] for name in shown])
    for group in ("attack", "training", "saving", "evaluation", "objective", "cheaper"):
        texts = OF_THE_TRAINER.get(group, {})
        for name, text in texts.items():
            actions[name].help = text
        _group(parser, TITLES.get(group, group), [actions[name] for name in (*texts, *options_in(group))])
    for action in parser._optionals._group_actions:
        if action.dest not in ("help", "help_all") and not everything:
            action.help = argparse.SUPPRESS
    return parser


def _group(parser: argparse.ArgumentParser, title: str, actions: list[argparse.Action]) -> None:
    """Shows options under a heading of their own; how they are read does not change."""
    group = parser.add_argument_group(title)
    for action in actions:
        parser._optionals._group_actions.remove(action)
        group._group_actions.append(action)


def parse(parser: OptionParser, words: Sequence[str]) -> tuple[FareScriptArguments, FareConfig]:
    """The options that words give.

    Raises:
        SystemExit, ValueError: an option that does not exist, or a value that cannot work.
    """
    script, config, unknown = parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True)
    if unknown:
        parser.error(f"{UNKNOWN}: {' '.join(unknown)}")
    return script, config


def _kind(action: argparse.Action) -> str:
    """What a value is, in capitals."""
    kind = {int: "N", float: "X"}.get(action.type, action.dest.rpartition("_")[2].upper())  # type: ignore[call-overload]
    return f"{kind} [{kind} ...]" if action.nargs in ("+", "*") else kind
