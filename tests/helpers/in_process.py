"""A user's commands run in this process: one of its own spends seconds on imports before it proves anything.

The real programs run too: `accelerate launch` and `fare-hf` in test_readme.py and test_main.py, the quickstart's
launch in test_quickstart.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
from accelerate.commands.launch import launch_command_parser

from fare_hf.cli import main as cli
from fare_hf.cli import train


def run_main(main: Callable[[], None], words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls a `main()` that reads `sys.argv`."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *words])
        main()


def run_command(words: Sequence[str]) -> None:
    """`fare-hf ...`, or `accelerate launch -m` of fare_hf.train or .cli, whose options the launcher reads itself."""
    if words[0] == "fare-hf":
        cli.main(words[1:])
        return
    begin = words.index("launch" if "launch" in words else "accelerate.commands.launch")
    launch = launch_command_parser().parse_args(words[begin + 1 :])
    assert launch.module and launch.training_script in ("fare_hf.train", "fare_hf.cli")
    (cli if launch.training_script == "fare_hf.cli" else train).main(launch.training_script_args)


def instead_of_subprocess(words: Sequence[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Takes the place of `subprocess.run` in code that launches a training."""
    run_command(words)
    return subprocess.CompletedProcess(list(words), 0)
