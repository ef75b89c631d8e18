"""Several processes and killed processes: the real launcher, a real SIGKILL."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from helpers.launched_runs import (
    CONFIGURATIONS,
    LAUNCH,
    OPTIONS,
    SCRIPT,
    TWO,
    moved,
    noise,
    relative_error,
    start,
    write_images,
)
from safetensors.torch import load_file

from fare_hf.files.folders import LOCK
from fare_hf.training.checkpointing.manifest import fault_of

KILLED = SCRIPT.with_name("killed_runs.py")


def write_shards(folder: Path) -> Path:
    """Twenty images in four parquet files."""
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    for shard in range(4):
        rows = [{"bytes": noise(5 * shard + row), "path": f"{shard}-{row}.png"} for row in range(5)]
        datasets.Dataset.from_dict({"image": rows}, features).to_parquet(folder / f"train-{shard}.parquet")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        ({"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, 4 * 16),
        ({"per_device_train_batch_size": 4, "activation_checkpointing": True}, 16 + 5),
    ],
    ids=["accumulation", "checkpointing"],
)
def test_other_ways_to_run_two_processes_equal_one(
    options: dict[str, Any], blocks: int, legacy_vision_folder: Path, tmp_path: Path
) -> None:
    common = {**OPTIONS, "model": str(legacy_vision_folder)}
    result = start({**common, **options, "output_dir": str(tmp_path / "two")}, *TWO.split())
    assert result.returncode == 0, result.stderr[-3000:]
    one = tiny_trainer(output_dir=str(tmp_path / "one"), **common)
    one.train()
    assert relative_error(tmp_path / "two", one.model.state_dict()) <= 1e-6 < 1e-4 < moved(one)
    facts = json.loads((tmp_path / "two" / "facts.json").read_text())
    assert (facts["processes"], facts["blocks"]) == (2, blocks)  # two attack steps and the update, five times, and 1


@pytest.mark.slow
def test_two_machines_equal_one_process(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """Two launchers on loopback by the ready configuration, one process each: to the bit as one launcher with two."""
    options = {**OPTIONS, "model": str(legacy_vision_folder), "output_dir": str(tmp_path / "two")}
    options |= {"per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 5}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = f"{LAUNCH} --config_file {CONFIGURATIONS / 'two_nodes.yaml'} --main_process_ip 127.0.0.1"
    words += f" --main_process_port {port} --machine_rank"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda rank: start(options, *words.split(), str(rank)), range(2)))
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-2000:] + results[1].stderr[-2000:]
    same = start({**options, "output_dir": str(tmp_path / "same")}, *TWO.split())
    assert same.returncode == 0, same.stderr[-3000:]
    assert relative_error(tmp_path / "two", load_file(tmp_path / "same" / "model.safetensors")) == 0
    own = {"output_dir": str(tmp_path / "one"), "per_device_train_batch_size": 8}
    one = tiny_trainer(**{**options, **own})
    one.train()
    assert relative_error(tmp_path / "two", one.model.state_dict()) <= 1e-6
    assert json.loads((tmp_path / "two" / "facts.json").read_text())["processes"] == 2
    assert fault_of(tmp_path / "two" / "checkpoint-5") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images, two workers", "stream, two workers", "images", "stream, one worker"])
def test_runs_killed_at_random_moments_end_with_the_same_bits(kind: str, clip_folder: Path, tmp_path: Path) -> None:
    """The command line with a checkpoint a step, killed ten times; two processes for the last two kinds."""
    processes = 1 if "two" in kind else 2
    workers = 2 if "two" in kind else 1 if "one" in kind else 0
    data = write_shards(tmp_path / "shards") if "stream" in kind else write_images(tmp_path / "images")
    words = (
        f"--model {clip_folder} --dataset {data} --max_steps 12 --attack_steps 2 --attack_step_size 2/255 --use_cpu"
    )
    words += " --warmup_steps 0 --learning_rate 1e-3 --save_strategy steps --save_steps 1 --save_total_limit 2"
    words += f" --per_device_train_batch_size {4 // processes} --dataloader_num_workers {workers}"
    words += " --disable_tqdm true --dataloader_pin_memory false" + (" --streaming" if "stream" in kind else "")
    options = {"processes": processes, "kills": 10, "seed": 0, "output_dir": str(tmp_path), "words": words.split()}
    result = start(options, script=KILLED)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1])["kills"] == 10


def test_killed_and_resumed_equals_uninterrupted_to_the_bit(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints, in the middle of an epoch; for the class whose resume the Trainer breaks."""
    options = {"embedding": "pooled", "save_strategy": "steps", "save_steps": 2, "max_steps": 7}
    options |= {"model": str(legacy_vision_folder), "gradient_accumulation_steps": 2, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 4}
    whole = tiny_trainer(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    killed = start({**options, "output_dir": str(tmp_path / "killed"), "kill_at": 3})
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    assert sorted(path.name for path in (tmp_path / "killed").iterdir() if path.name != LOCK) == ["checkpoint-2"]
    resumed = tiny_trainer(output_dir=str(tmp_path / "killed"), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, resumed)]
    assert losses[0] == losses[1]
