"""The options of a training on the command line: FARE's own first, those of the Trainer that are of use, the rest on
demand."""

from __future__ import annotations

import argparse

from transformers import HfArgumentParser

from fare_hf.cli.console import Parser
from fare_hf.cli.training_arguments import FareScriptArguments
from fare_hf.training.config import CHEAPER, FareConfig

__all__ = ["OptionParser", "build_parser"]

ATTACK = ("eps", "norm", "attack_steps", "attack_step_size")
OBJECTIVE = ("objective", "embedding", "class_names", "templates", "logit_scale")
TRAINING = {
    "max_steps": None,
    "num_train_epochs": "Passes over the images, if --max_steps is -1.",
    "per_device_train_batch_size": None,
    "global_batch_size": None,
    "gradient_accumulation_steps": "Batches for an update.",
    "learning_rate": None,
    "lr_scheduler_type": None,
    "warmup_steps": None,
    "weight_decay": None,
    "max_grad_norm": None,
    "bf16": "Mixed precision; weights and pixels stay in fp32.",
    "dataloader_num_workers": None,
    "seed": "Of the order of the images and of the random starts.",
    "logging_steps": None,
    "eval_strategy": "When to evaluate on --eval_split.",
    "eval_steps": "Steps between two evaluations.",
    "eval_images": None,
    "eval_attack_steps": None,
    "load_best_model_at_end": "Keep the best checkpoint, by --metric_for_best_model, and end with it.",
    "metric_for_best_model": "robust_accuracy, loss (robust too), or clean_accuracy.",
    "per_device_eval_batch_size": "Images a process takes at a time in an evaluation.",
    "save_strategy": "When to write a checkpoint.",
    "save_steps": "Steps between two checkpoints.",
    "save_total_limit": None,
    "resume_from_checkpoint": "Go on from `latest`, or from the folder of a checkpoint.",
    "push_to_hub": "Publish the encoder.",
    "hub_model_id": "Repository to publish to; by default the name of --output_dir in your account.",
    "hub_strategy": None,
}
"""Options of the Trainer that `--help` shows, with what it says of them (None: what `FareConfig` says)."""
OUTPUT = "Folder for checkpoints, the recipe and the encoder; must be empty or absent."


class OptionParser(Parser, HfArgumentParser):
    """The options of dataclasses."""


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells a default only where there is one, and each option in one spelling."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False or action.default is argparse.SUPPRESS
        return action.help if plain else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[-1 if action.dest == "help" else 0]
        if action.nargs in (0, "?"):
            return name
        return f"{name} {{{','.join(map(str, action.choices))}}}" if action.choices else f"{name} {_kind(action)}"


def build_parser(prog: str, description: str | None, everything: bool) -> OptionParser:
    """The parser of `(FareScriptArguments, FareConfig)`.

    Args:
        prog, description: of the help.
        everything: whether the help shows every option of `TrainingArguments` too.
    """
    usage = f"{prog} --model MODEL --dataset DATASET --output_dir FOLDER [options]"
    parser = OptionParser(
        (FareScriptArguments, FareConfig), prog=prog, usage=usage, description=description, formatter_class=Formatter
    )
    # Without a default: the dataclasses take every other option, and a value left over would be one object more.
    files = "YAML files of these options; the command line wins"
    parser.add_argument("--config", nargs="+", default=argparse.SUPPRESS, help=files)
    parser.add_argument("--help_all", action="help", help="show every option of the Trainer of transformers too")
    actions = {action.dest: action for action in parser._actions}
    actions["output_dir"].help = OUTPUT
    for name, text in TRAINING.items():
        actions[name].help = text or actions[name].help
    _group(
        parser,
        "model and data",
        [actions[name] for name in ("config", *FareScriptArguments.__annotations__, "output_dir")],
    )
    _group(parser, "attack", [actions[name] for name in ATTACK])
    _group(parser, "cheaper, off by default", [actions[name] for name in CHEAPER])
    _group(parser, "objective", [actions[name] for name in OBJECTIVE])
    _group(parser, "training", [actions[name] for name in TRAINING])
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


def _kind(action: argparse.Action) -> str:
    """What a value is, in capitals."""
    kind = {int: "N", float: "X"}.get(action.type, "TEXT")  # type: ignore[call-overload]
    return f"{kind} [{kind} ...]" if action.nargs in ("+", "*") else kind
