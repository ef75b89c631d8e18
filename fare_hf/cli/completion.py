"""`fare-hf completion`: a script for the shell, made from the options of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module

from fare_hf import __version__

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run", "script"]

PURPOSE = "print a script that completes commands, options and their choices in bash or zsh"
EXAMPLES = """\
mkdir -p ~/.local/share/bash-completion/completions
fare-hf completion bash > ~/.local/share/bash-completion/completions/fare-hf   # then open a new shell
fare-hf completion zsh > ~/.fare-hf.zsh   # and in ~/.zshrc, after compinit: source ~/.fare-hf.zsh
"""
GOING_ON = "run the same command again"
SCRIPT = """\
# Completion of fare-hf {version}, made by `fare-hf completion {shell}`.{head}
_fare_hf() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$command $before" in
{choices}
        *) case "$word" in -*) case "$command" in
{options}
            esac ;; esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _fare_hf fare-hf
"""
"""Where there is nothing to offer, as where a path is meant, `-o default` offers files."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("shell", choices=("bash", "zsh"), help="that the script is for")


def check(args: argparse.Namespace) -> None:
    """Nothing: argparse has."""


def run(args: argparse.Namespace) -> None:
    """Prints the script."""
    print(script(args.shell, args.commands), end="")


def script(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for `bash` or `zsh`.

    Args:
        shell: that reads it.
        commands: name -> parser; that of a training is an empty one, in whose place its file's own is taken.
    """
    choices, options = [], []
    for name, empty in commands.items():
        parser = getattr(import_module(f"fare_hf.cli.{name}"), "parser_of", lambda prog, given=empty: given)(name)
        shown = [action for action in parser._actions if action.help is not argparse.SUPPRESS]
        offered = " ".join(word for action in shown for word in action.option_strings if _in_one_spelling(word))
        options.append(f'            {name}) words="{offered}" ;;')
        choices += [_choice(name, action) for action in shown if action.choices]
    head = "\nautoload -U +X bashcompinit && bashcompinit" if shell == "zsh" else ""
    parts = {"commands": " ".join(commands), "choices": "\n".join(choices), "options": "\n".join(options)}
    return SCRIPT.format(shell=shell, head=head, version=__version__, **parts)


def _in_one_spelling(option: str) -> bool:
    """Whether it is the long one, with underscores, of the spellings of an option."""
    return option.startswith("--no-") or (option.startswith("--") and "-" not in option[2:])


def _choice(command: str, action: argparse.Action) -> str:
    """What may follow an option, or the command itself."""
    pattern = " | ".join(f'"{command} {before}"' for before in action.option_strings or [command])
    return f'        {pattern}) words="{" ".join(map(str, action.choices or ()))}" ;;'
