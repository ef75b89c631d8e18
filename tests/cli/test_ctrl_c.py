"""Ctrl-C while a command still imports: one sentence that says how to go on, in every command, in a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fare_hf.cli import main

FARE_HF = str(Path(sys.executable).with_name("fare-hf"))
WORDS = {
    "app": "--vlm lab:llava",
    "attack": "lab:llava --dataset lab:digits --output_dir r",
    "card": "user/fare4",
    "completion": "bash",
    "convert": "user/fare4 --to transformers --output_dir r",
    "env": "",
    "estimate": "--model openai/clip-vit-base-patch32",
    "evaluate": "lab:clip --output_dir r",
    "merge": "user/llava user/fare4 --output_dir r",
    "push": "folder user/fare4",
    "quickstart": "--output_dir r",
    "swap": "lab:llava lab:fare-4 --output_dir r",
    "train": "--model lab:clip --dataset lab:drawings --output_dir r",
}


def test_the_table_has_every_command() -> None:
    assert WORDS.keys() == {*main.COMMANDS, *main.OF_A_TRAINING}


@pytest.mark.parametrize("command", WORDS)
def test_it_is_one_sentence_that_says_how_to_go_on(command: str, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (tmp_path / "folder").mkdir()
    words = WORDS[command].split()
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [FARE_HF, command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    going_on = main.COMMANDS[command].GOING_ON if command in main.COMMANDS else main.NOTHING_YET
    assert found.returncode == 130, found.stderr
    assert found.stderr == f"\nfare-hf: interrupted: {going_on}.\n"
    assert found.stdout == "" and not (tmp_path / "r").exists()
