"""`FareTrainer` and `python -m fare_hf.train` publish the clean folder, never the output folder or a token."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from helpers.hub import FILES, online_hub, stop_time
from helpers.launched_runs import FSDP, TWO
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.paths import ROOT, TESTS
from PIL import Image
from safetensors.torch import load, load_file

from fare_hf.cli.train import FareScriptArguments, main
from fare_hf.training.publish import recipe


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """The Hub that the Trainer finds by itself."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found


def test_the_recipe_on_the_card_says_what_made_the_training_cheaper(clip_folder: Path, tmp_path: Path) -> None:
    options = {"attack_steps": 3, "attack_steps_start": 1, "attack_bf16": True, "trained_blocks": 2}
    said = recipe(tiny_trainer(str(clip_folder), str(tmp_path / "cheap"), **options))
    wanted = {"attack steps start": 1, "attack bf16": True, "trained blocks": 2}
    assert said.items() >= wanted.items()
    assert not wanted.keys() & recipe(tiny_trainer(str(clip_folder), str(tmp_path / "paper"))).keys()


def test_checkpoints_as_revisions_and_the_end_on_main(hub: LoopbackHub, clip_folder: Path, tmp_path: Path) -> None:
    options = {"push_to_hub": True, "hub_model_id": "me/run", "hub_token": TOKEN, "hub_strategy": "all_checkpoints"}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path / "out"), save_strategy="steps", save_steps=2, **options)
    assert hub.count("POST") == 0
    trainer.train()
    found = trainer.push_to_hub(tag="v1")
    repo = hub.repos["me/run"]
    assert found is not None and repo.tags == {"v1": found.commit}
    assert set(repo.branches) == {"main", "checkpoint-2", "checkpoint-4"}
    for name in repo.branches:
        assert set(repo.tree(name)) == FILES | {".gitattributes"}
    published = load(repo.tree()["model.safetensors"].data)
    assert all(torch.equal(published[name], tensor) for name, tensor in trainer.model.state_dict().items())
    assert repo.tree("checkpoint-2")["model.safetensors"].sha256 != repo.tree()["model.safetensors"].sha256
    assert "| steps | 4 |" in repo.tree()["README.md"].data.decode()
    assert not list((tmp_path / "out").rglob("encoder"))
    pickled = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in pickled)
    assert not any(TOKEN.encode() in path.read_bytes() for path in pickled)


def test_a_hub_that_fails_does_not_stop_the_training(
    hub: LoopbackHub, clip_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"push_to_hub": True, "hub_model_id": "me/run", "hub_token": TOKEN, "hub_strategy": "every_save"}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path / "out"), save_strategy="steps", save_steps=4, **options)
    hub.fail("POST .*/commit/", times=99, status=403)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.state.global_step == 4 and "the training goes on" in caplog.text and TOKEN not in caplog.text
    assert (tmp_path / "out" / "checkpoint-4" / "encoder" / "model.safetensors").is_file()  # what the command names


def test_no_right_is_told_before_the_first_step(hub: LoopbackHub, clip_folder: Path, tmp_path: Path) -> None:
    options = {"push_to_hub": True, "hub_model_id": "you/run", "hub_token": TOKEN}
    with pytest.raises(ValueError, match="no right to write to 'you/run'"):
        tiny_trainer(str(clip_folder), str(tmp_path / "out"), **options)
    hub.fail("GET /api/whoami-v2", times=99, status=503)
    with pytest.raises(OSError, match="asking who the token belongs to: .*503.* Nothing was sent.$"):
        tiny_trainer(str(clip_folder), str(tmp_path / "out"), **options)


def test_a_licence_that_cannot_be_handed_on_is_told_before_the_first_step(
    hub: LoopbackHub, clip_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(clip_folder, tmp_path / "base"))
    (base / "README.md").write_text("---\nlicense: mine\n---\n")
    options = {"push_to_hub": True, "hub_model_id": "me/run", "hub_token": TOKEN}
    with pytest.raises(ValueError, match="license 'mine' is unknown to the Hub"):
        tiny_trainer(str(base), str(tmp_path / "out"), **options)
    (base / "README.md").write_text("---\nlicense: mit\n---\n")
    assert tiny_trainer(str(base), str(tmp_path / "out"), **options).card["license"] == "mit"
    assert hub.count("POST") == 0
    with pytest.raises(ValueError, match="license 'yours' is unknown to the Hub"):
        FareScriptArguments("model", "dataset", license="yours")


def test_the_command_line_publishes_a_whole_clip(
    hub: LoopbackHub,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "images" / "0.png")
    words = (
        "--max_steps 1 --per_device_train_batch_size 1 --attack_steps 1 --warmup_steps 0 --use_cpu --disable_tqdm true"
    )
    words += f" --model {clip_folder} --dataset {tmp_path / 'images'} --output_dir {tmp_path / 'run'}"
    main([*words.split(), "--push_to_hub", "--hub_private_repo", "true", "--with_text_encoder", "--license", "odbl"])
    repo = hub.repos["me/run"]
    assert "license: odbl\n" in repo.tree()["README.md"].data.decode()
    assert repo.private and {"tokenizer.json", *FILES} <= set(repo.tree())
    assert repo.tree()["model.safetensors"].data == (tmp_path / "run" / "encoder" / "model.safetensors").read_bytes()
    said = capsys.readouterr()
    assert "/me/run (main, commit " in said.out and TOKEN not in said.out + said.err


def test_a_folder_is_never_looked_up_on_the_hub(
    hub: LoopbackHub, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--model clip`, a folder: no request for the licence of what has that name on the Hub, nor any other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copytree(clip_folder, tmp_path / "models" / "clip")
    (tmp_path / "images").mkdir()
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "images" / "0.png")
    words = "--max_steps 1 --per_device_train_batch_size 1 --attack_steps 1 --warmup_steps 0 --use_cpu true"
    words += " --disable_tqdm true --model models/clip --dataset images --with_text_encoder"
    main([*words.split(), "--output_dir", "run"])
    assert hub.requests == []
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "encoder of ./clip, fine-tuned" in card and "base_model" not in card and "No licence was found" in card
    main([*words.split(), "--output_dir", "second", "--push_to_hub"])
    assert not hub.count("clip")
    main([*words.split(), "--output_dir", "third", "--base_model", "openai/clip"])
    assert hub.count("GET /openai/clip/resolve/main/README.md") == 1
    assert "base_model: openai/clip" in (tmp_path / "third" / "encoder" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TWO, FSDP], ids=["ddp", "fsdp2"])
def test_of_two_processes_the_first_publishes(
    launcher: str, hub: LoopbackHub, clip_folder: Path, tmp_path: Path
) -> None:
    """`accelerate launch` with two processes: each checkpoint, and the end by `save_model`, once, by the main one."""
    options = {"model": str(clip_folder), "output_dir": str(tmp_path / "out"), "max_steps": 2, "save_steps": 1}
    options |= {"push_to_hub": True, "hub_model_id": "me/run", "hub_strategy": "all_checkpoints"}
    options |= {"save_strategy": "steps", "per_device_train_batch_size": 4, "shard_on_cpu": launcher == FSDP}
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    paths = [str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    script = TESTS / "helpers" / "distributed" / "tiny_run.py"
    command = [sys.executable, *launcher.split(), str(script), json.dumps(options)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["processes"] == 2 and facts["sharded"] == facts["fsdp"] == (launcher == FSDP)
    repo = hub.repos["me/run"]
    assert set(repo.branches) == {"main", "checkpoint-1", "checkpoint-2"} and len(repo.commits) == 4
    assert hub.count("GET /api/whoami-v2") == 4 and hub.count("POST /api/repos/create") == 1
    assert hub.count("PUT /lfs/") == 2  # the end has the weights of checkpoint-2
    published, saved = load(repo.tree()["model.safetensors"].data), load_file(tmp_path / "out" / "model.safetensors")
    assert published.keys() == saved.keys() and all(torch.equal(published[name], saved[name]) for name in saved)
