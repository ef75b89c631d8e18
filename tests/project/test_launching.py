"""`docs/launching.md`: each of its blocks is run by bash, with a launcher that only notes what it was given."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.paths import ROOT

from fare_hf.cli import train

PAGE = (ROOT / "docs" / "launching.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NOTE = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$NOTES"; printf "\\n" >> "$NOTES"\n'
SRUN = '#!/bin/bash\nfor ((n = 0; n < SLURM_NNODES; n++)); do SLURM_NODEID=$n "$@"; done\n'
SCONTROL = '#!/bin/bash\n[ "$*" = "show hostnames node[07-08]" ] && printf "node07\\nnode08\\n"\n'
SLURM = {"SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_ID": "123456"}


def launched(block: str, folder: Path, nodes: int = 2) -> list[list[str]]:
    """The words of each `accelerate` of a block."""
    for name, text in (("accelerate", NOTE), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    notes = folder / "notes"
    settings = os.environ | SLURM | {"PATH": f"{folder}:{os.environ['PATH']}", "NOTES": str(notes)}
    settings["SLURM_NNODES"] = str(nodes)
    subprocess.run(["bash", "-eu", "-c", block], cwd=folder, env=settings, check=True)
    return [line.split("\0")[:-1] for line in notes.read_text().splitlines()]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_is_a_training_that_starts(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate knows its options and the training its own; the recipe is the paper's."""
    parsed: list[tuple[Any, Any]] = []
    monkeypatch.setattr(train, "train", lambda *both: parsed.append(both))
    monkeypatch.chdir(ROOT)
    lines = launched(BLOCKS[number], tmp_path)
    slurm = "SBATCH" in BLOCKS[number]
    assert len(lines) == (2 if slurm else 1)
    for rank, words in enumerate(lines):
        assert words[0] == "launch"
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[1:]))
        assert args.module and args.training_script == "fare_hf.train" and args.mixed_precision == "bf16"
        assert args.num_processes == 8 * args.num_machines or args.num_processes in (1, 4)
        if slurm:
            assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, rank)
            assert (args.main_process_ip, args.main_process_port) == ("node07", 23456)
        train.main([*args.training_script_args, "--use_cpu"])
        script, config = parsed.pop()
        assert script.dataset == "path/to/images" and str(config.threat_model) == "linf 4/255"
        assert (config.max_steps, config.global_batch_size, config.attack_steps) == (20000, 128, 10)
        assert config.resume_from_checkpoint == ("latest" if slurm else None)


def test_the_slurm_script_on_one_machine(tmp_path: Path) -> None:
    (words,) = launched(BLOCKS[-1], tmp_path, nodes=1)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[1:]))
    assert (args.num_machines, args.num_processes, args.machine_rank) == (1, 8, 0)


def test_each_ready_configuration_stands_on_the_page() -> None:
    for path in (ROOT / "examples" / "accelerate").glob("*.yaml"):
        assert f"examples/accelerate/{path.name}" in PAGE
    assert len(BLOCKS) == PAGE.count("```bash") == 7
