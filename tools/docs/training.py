"""The page of the options of a training."""

from __future__ import annotations

import argparse

from fare_hf.cli.training_options import build_parser
from tools.docs.docstrings import table

__all__ = ["training_page"]

HEAD = """# Options of a training

<!-- Written by `python -m tools.docs`: change the code instead. -->

Those that `fare-hf train --help` shows. Every other option of transformers' `TrainingArguments` works too
(`--help_all`), or is refused where it would be ignored. In a YAML file for `--config` they have the same names, and
the command line wins. In Python they are the fields of `FareConfig`, but for those of "model and data".
"""


def training_page() -> str:
    """A table for each group of the help."""
    parts = [HEAD]
    for group in build_parser("fare-hf train", "", "", everything=False)._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        lines = [_line(action) for action in actions if action.dest != "help_all"]
        if lines:
            parts.append(
                f"## {str(group.title).capitalize()}\n\n{table(['option', 'default', 'what it is'], lines)}\n"
            )
    return "\n".join(parts)


def _line(action: argparse.Action) -> list[object]:
    plain = action.default is None or action.default is argparse.SUPPRESS or action.default is False
    default = "" if plain else f"`{_shown(action.default)}`"
    if action.required:
        default = "required"
    choices = f" One of {', '.join(f'`{one}`' for one in action.choices)}." if action.choices else ""
    return [f"`{action.option_strings[0]}`", default, f"{action.help}{choices}"]


def _shown(value: object) -> str:
    text = getattr(value, "value", value)
    return " ".join(map(str, text)) if isinstance(text, list) else str(text)
