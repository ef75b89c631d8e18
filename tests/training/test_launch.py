"""What launchers hand over: the ready configurations are read by accelerate, what cannot work is one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.launched_runs import TWO
from helpers.paths import EXAMPLES, ROOT

from fare_hf.lab import recipes
from fare_hf.training import FareConfig
from fare_hf.training.checks import check_launch

CONFIGURATIONS = EXAMPLES / "accelerate"


@pytest.mark.parametrize(
    ("name", "processes", "machines"),
    [("one_gpu", 1, 1), ("eight_gpus", 8, 1), ("fsdp", 8, 1), ("two_nodes", 16, 2)],
)
def test_ready_configurations_are_read_by_accelerate(name: str, processes: int, machines: int) -> None:
    """An unknown key is an error of `load_config_from_file`."""
    path = CONFIGURATIONS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.num_processes, config.num_machines, config.mixed_precision) == (processes, machines, "bf16")
    words = ["--config_file", str(path), "-m", "fare_hf.train", "--eps", "2/255"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.num_processes == processes and args.training_script_args == ["--eps", "2/255"]
    assert args.use_fsdp == (name == "fsdp") and (name != "fsdp" or int(args.fsdp_version) == 2)


def test_every_configuration_is_tested() -> None:
    tested = Path(__file__).read_text()
    assert all(f'"{path.stem}"' in tested for path in CONFIGURATIONS.glob("*.yaml"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "use FSDP, which shards the same: .*fsdp.yaml"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM was never tried with gradients to the pixels; use FSDP"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config was never tried .*; use FSDP"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "mixed_precision='fp8' is not known here; give one of no, fp16, bf16"),
        ({"LOCAL_WORLD_SIZE": "4"}, "4 processes were started on a machine with 2 visible GPUs; give --num_processes"),
    ],
)
def test_what_a_launcher_cannot_ask_for_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_launch(False, None, {"LOCAL_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "bf16"})
    check_launch(True, None, {"LOCAL_WORLD_SIZE": "4"})
    with pytest.raises(ValueError, match=message):
        check_launch(False, None, environment)


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, "fp16=True does nothing on a CPU; use bf16=True"),
        (
            {},
            {"deepspeed": {"zero_optimization": {"stage": 2}}},
            "DeepSpeed was never tried with gradients to the pixels",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed was never tried with gradients to the pixels"),
    ],
)
def test_the_configuration_looks_at_the_launcher(
    environment: dict[str, str], options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        FareConfig(output_dir=str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("words", ["-m fare_hf.train", "-m fare_hf.cli train"])
def test_ctrl_c_while_libraries_are_imported_is_one_sentence(words: str, tmp_path: Path) -> None:
    """A `torch` that is interrupted as it is imported, in the place of the real one."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    options = ["--model", "m", "--dataset", "d", "--output_dir", str(tmp_path / "o")]
    command = [sys.executable, *words.split(), *options]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert found.returncode == 130 and "interrupted" in found.stderr and "Traceback" not in found.stderr, found.stderr


def refused(launcher: str, folder: Path) -> str:
    """What is left on the terminal of a command that cannot work, under the real launcher."""
    command = [sys.executable, *launcher.split(), "-m", "fare_hf.cli", "evaluate", "nowhere", "--eps", "4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [*command, "--output_dir", str(folder)]
    found = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder)
    assert found.returncode == 1
    return found.stderr


def test_under_the_launcher_a_refusal_ends_with_its_sentence(tmp_path: Path) -> None:
    """Of one process nothing comes after it; of two it is the last line of torchrun's report."""
    sentence = "fare-hf: error: eps 4 is outside [0, 1], the range of the pixels: did you mean 4/255?"
    launch = recipes.command({}, tmp_path)
    alone = " ".join(launch[1 : launch.index("-m", 2)])
    assert refused(alone, tmp_path) == f"{sentence}\n"
    *_, last, frame = refused(TWO, tmp_path).rstrip().splitlines()
    assert last.split(" : ") == ["  traceback", sentence] and not frame.strip("=")
