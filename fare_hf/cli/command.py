"""What the commands share: their parser, and revisions of what lies here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from fare_hf.cli.console import NEGATIVE_NUMBER, refuse_given

__all__ = ["Command", "add_command", "refuse_of_the_hub"]


class Command(argparse.ArgumentParser):
    """Takes `-4/255` for a number, to be refused as one; a mistake is one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage."""
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` shows the options.\n")


def add_command(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """A subcommand with one line on what it is for, in the list of commands and in its own help."""
    return commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")


def refuse_of_the_hub(args: argparse.Namespace, option: str, source: str) -> None:
    """Refuses a revision of what lies here."""
    if Path(source).exists():
        refuse_given(args, [option], f"is of a repository, and {source!r} lies here: leave it out.")
