"""FSDP2 by the ready configuration, really sharded: over gloo on CPUs, see distributed/sharded_on_cpu.py."""

from __future__ import annotations

import json
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from helpers.distributed.groups import LEFT
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from helpers.launched_runs import CONFIGURATIONS, FSDP, OPTIONS, moved, relative_error, start, write_images
from helpers.tiny_parts import siglip_encoder
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, TrainingArguments
from transformers.training_args import ParallelMode

from fare_hf.cli import train
from fare_hf.training import FareConfig
from fare_hf.training.sharding import set_up_sharding

WORDS = (
    "--max_steps 2 --warmup_steps 0 --learning_rate 1e-3 --attack_steps 2 --attack_step_size 2/255 --use_cpu"
    " --optim sgd --logging_steps 1 --disable_tqdm true --dataloader_pin_memory false --save_strategy no"
)
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
BEST = {**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "loss", "learning_rate": 5e-2}


def launch(runs: list[dict[str, Any]], *further: str) -> None:
    """Two processes by the ready configuration, which must end well."""
    result = start(runs, *FSDP.split(), *further)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count(LEFT) == 2


def assert_sharded(folder: Path) -> dict[str, Any]:
    """The run that wrote there trained `DTensor`s alone, of which each of two processes held half; how else it ran."""
    facts = json.loads((folder / "facts.json").read_text())
    assert (facts["processes"], facts["fsdp"], facts["sharded"]) == (2, True, True)
    assert facts["share"] == pytest.approx(0.5, abs=0.02)
    return facts


def log_of(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "log.json").read_text())["log_history"]


def assert_equals_one_process(folder: Path, options: dict[str, Any]) -> None:
    """DDP of two processes of 4 images, against one of 8: same batches, same attack, same log."""
    one = tiny_trainer(output_dir=str(folder.with_name("alone")), **options)
    one.train()
    assert relative_error(folder, one.model.state_dict()) <= 1e-6 < 1e-4 < moved(one)
    facts = json.loads((folder / "facts.json").read_text())
    assert facts == {"processes": 2, "epochs": [0, 1], "blocks": 16, "fsdp": False, "sharded": False, "share": 0}
    for key in ("loss", "grad_norm", "attack_gain", "cosine_clean", "cosine_adversarial"):
        assert log_of(folder)[0][key] == pytest.approx(one.state.log_history[0][key], rel=1e-4), key


def assert_same_files(first: Path, second: Path) -> None:
    """Two folders of an encoder: the same files, and but for the weights the same bytes."""
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir()) and "README.md" in names
    assert not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    for name in set(names) - {"model.safetensors"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_two_processes_equal_one_sharded_and_not(
    clip_folder: Path, legacy_vision_folder: Path, tmp_path: Path
) -> None:
    """One launch: the command line under FSDP2, whose `encoder/` has its card; bf16 under both; fp32 under DDP.

    In bf16 accelerate alone would round every value: it casts parameters, inputs and outputs of each block, without
    autocast, and the first gradient norm is twice that of DDP.

    The last fails without the frozen unused parameters of `tokens` (DDP waits for their gradients), and without the
    epoch callback (accelerate tells the sharded sampler its epoch, and then not the data set).
    """
    images = write_images(tmp_path / "images")
    words = f"--model {clip_folder} --dataset {images} {WORDS}".split()
    sharded = {"shard_on_cpu": True, "words": [*words, "--per_device_train_batch_size", "4"]}
    half = {**OPTIONS, "model": str(legacy_vision_folder), "bf16": True, "max_steps": 2, "logging_steps": 1}
    half |= {"per_device_train_batch_size": 4}
    runs = [{**sharded, "output_dir": str(tmp_path / "two")}]
    runs += [{**half, "shard_on_cpu": on, "output_dir": str(tmp_path / str(on))} for on in (True, False)]
    plain = {**OPTIONS, "model": str(legacy_vision_folder), "embedding": "tokens"}
    runs += [{**plain, "per_device_train_batch_size": 4, "shard_on_cpu": False, "output_dir": str(tmp_path / "plain")}]
    launch(runs)
    assert_equals_one_process(tmp_path / "plain", plain)
    train.main([*words, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")])
    assert_sharded(tmp_path / "two")
    original = load_file(clip_folder / "model.safetensors")
    one = load_file(tmp_path / "one" / "encoder" / "model.safetensors")
    assert any(not torch.equal(value, original[name]) for name, value in one.items())
    assert relative_error(tmp_path / "two" / "encoder", one) <= 1e-6
    assert_same_files(tmp_path / "one" / "encoder", tmp_path / "two" / "encoder")

    assert_sharded(tmp_path / "True")
    assert not json.loads((tmp_path / "False" / "facts.json").read_text())["fsdp"]
    for ours, theirs in zip(log_of(tmp_path / "True")[:2], log_of(tmp_path / "False")[:2], strict=True):
        for key in ("loss", "grad_norm", "attack_gain", "cosine_clean", "cosine_adversarial"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", "fsdp_reshard_after_forward false", "fsdp_activation_checkpointing true"])
def test_ways_to_shard_equal_one_process(option: str, legacy_vision_folder: Path, tmp_path: Path) -> None:
    """As the file says, as ZeRO-2, with activation checkpointing: plain, accumulating, and to the best checkpoint."""
    common = {**OPTIONS, "model": str(legacy_vision_folder)}
    best = {**common, **BEST, "noise_to_evaluate": 7}
    runs = [
        {**common, "per_device_train_batch_size": 4},
        {**common, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
        {**best, "per_device_train_batch_size": 4},
    ]
    runs = [{**run, "shard_on_cpu": True, "output_dir": str(tmp_path / str(n))} for n, run in enumerate(runs)]
    launch(runs, *(f"--{option}".split() if option else []))
    one = tiny_trainer(output_dir=str(tmp_path / "one"), **common)
    one.train()
    once = 5 * (3 + 3 * ("checkpointing" in option)) + 1  # attack and update, again in the backward pass; measured
    for number in (0, 1):
        assert assert_sharded(tmp_path / str(number))["blocks"] == (number + 1) * once
        for folder in (tmp_path / str(number), tmp_path / str(number) / "encoder"):
            assert relative_error(folder, one.model.state_dict()) <= 1e-6 < 1e-4 < moved(one), folder

    del best["noise_to_evaluate"]
    one = tiny_trainer(output_dir=str(tmp_path / "best"), eval_dataset=RandomPixels(7), **best)
    one.train()
    assert_sharded(tmp_path / "2")
    assert one.state.best_global_step == 1  # the learning rate drives it away: the last step is another
    assert json.loads((tmp_path / "2" / "log.json").read_text())["best_global_step"] == 1
    for folder in (tmp_path / "2", tmp_path / "2" / "encoder"):
        assert relative_error(folder, one.model.state_dict()) <= 1e-6 < 1e-4 < moved(one), folder
    evaluated = [
        [line for line in log if "eval_loss" in line] for log in (log_of(tmp_path / "2"), one.state.log_history)
    ]
    assert len(evaluated[0]) == len(evaluated[1]) == 3
    for ours, theirs in zip(*evaluated, strict=True):
        for key in ("eval_loss", "eval_attack_gain", "eval_cosine_clean", "eval_cosine_adversarial"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("option", ["", "fsdp_reshard_after_forward false"])
def test_sharded_training_resumes_to_the_bit(option: str, legacy_vision_folder: Path, tmp_path: Path) -> None:
    """FSDP2 with two processes, killed after a checkpoint; and once more from the last one, with nothing to train."""
    options = {**OPTIONS, "model": str(legacy_vision_folder), "per_device_train_batch_size": 4, "shard_on_cpu": True}
    options |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 6, "optim": "adamw_torch"}
    options["save_total_limit"] = 0  # the first checkpoint is compared with the end
    resumed = {**options, "output_dir": str(tmp_path / "cut"), "resume": "latest"}
    further = f"--{option}".split() if option else []
    launch([{**options, "output_dir": str(tmp_path / "whole")}], *further)
    killed = start({**options, "output_dir": str(tmp_path / "cut"), "kill_at": 3}, *FSDP.split(), *further)
    assert killed.returncode != 0 and (tmp_path / "cut" / "checkpoint-2").is_dir()
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    launch([resumed], *further)
    assert_sharded(tmp_path / "cut")
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    first = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(value, first[name]) for name, value in whole.items())
    assert relative_error(tmp_path / "cut", whole) == relative_error(tmp_path / "cut" / "encoder", whole) == 0
    for path in (tmp_path / "cut" / "model.safetensors", *(tmp_path / "cut" / "encoder").iterdir()):
        path.unlink()  # as a kill between the last checkpoint and the end leaves it
    launch([resumed], *further)
    assert relative_error(tmp_path / "cut", whole) == relative_error(tmp_path / "cut" / "encoder", whole) == 0


def other_encoders(folder: Path, processor: Any) -> dict[str, str]:
    """A SigLIP and a DINOv2 on disk."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    for name, encoder in (("siglip", siglip_encoder()), ("dinov2", Dinov2Model(Dinov2Config(**sizes)))):
        encoder.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("siglip", "dinov2")}


@pytest.mark.slow
def test_every_kind_of_encoder_is_sharded_and_saved_without_a_pickle(
    clip_folder: Path, processor: Any, tmp_path: Path
) -> None:
    """CLIP without projection, SigLIP, DINOv2."""
    common = {**OPTIONS, "max_steps": 2, "learning_rate": 1e-4}
    models = {"clip": str(clip_folder), **other_encoders(tmp_path, processor)}
    runs: dict[str, dict[str, Any]] = {
        name: {**common, "model": model, "embedding": "pooled"} for name, model in models.items()
    }
    two = {"shard_on_cpu": True, "per_device_train_batch_size": 4}
    launch([{**run, **two, "output_dir": str(tmp_path / f"two-{name}")} for name, run in runs.items()])
    for name, run in runs.items():
        one = tiny_trainer(output_dir=str(tmp_path / f"one-{name}"), **run)
        one.train()
        encoder = tmp_path / f"two-{name}" / "encoder"
        assert_sharded(tmp_path / f"two-{name}")
        assert moved(one) > 1e-5
        saved = type(one.model).from_pretrained(encoder).state_dict()  # DINOv2 has other names on the disk
        for key, value in one.model.state_dict().items():
            torch.testing.assert_close(saved[key], value, rtol=0, atol=1e-6, msg=f"{name}, {key}")
        files = {path.name for path in encoder.iterdir()}
        assert {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"} <= files
        assert not any(file.endswith((".bin", ".pt", ".pth")) for file in files)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_the_blocks_of_each_encoder_are_what_is_gathered(
    name: str, flat_vision_folder: Path, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails with accelerate's own choice, classes of which the vision part alone holds none."""
    clip = str(shutil.copytree(flat_vision_folder, tmp_path / "clip"))
    processor.save_pretrained(clip)
    folder = {"clip": clip, **other_encoders(tmp_path, processor)}[name]
    encoder = tiny_trainer(folder, str(tmp_path / "output"), embedding="pooled").model
    block = {"clip": "CLIPEncoderLayer", "siglip": "SiglipEncoderLayer", "dinov2": "Dinov2Layer"}[name]
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    monkeypatch.setitem(accelerator.state.__dict__, "fsdp_plugin", plugin)
    set_up_sharding(accelerator, encoder)
    plugin.set_auto_wrap_policy(encoder)
    (found,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert found.__name__ == block and sum(isinstance(part, found) for part in encoder.modules()) in (2, 3)
    assert plugin.mixed_precision_policy.param_dtype is plugin.mixed_precision_policy.output_dtype is None
    plugin.transformer_cls_names_to_wrap = ["CLIPTextEmbeddings"]
    with pytest.raises(ValueError, match=f"holds no CLIPTextEmbeddings; leave it out, or give {block}."):
        set_up_sharding(accelerator, encoder)


def test_the_original_lies_where_the_run_computes(
    legacy_vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under FSDP accelerate places nothing: the original would stay on the CPU of a machine with GPUs."""
    monkeypatch.setattr(FareConfig, "device", property(lambda args: args._setup_devices and torch.device("meta")))
    monkeypatch.setattr(Accelerator, "prepare_model", partialmethod(Accelerator.prepare_model, device_placement=False))
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path))
    assert {parameter.device.type for parameter in trainer.original.parameters()} == {"meta"}


def test_fsdp_on_a_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the arguments and by the launcher; before there is a model."""
    message = (
        "fsdp asks for sharded weights, but accelerate runs NO on cpu, where nothing is sharded; start it on GPUs"
    )
    with pytest.raises(ValueError, match=message):
        FareConfig(str(tmp_path), use_cpu=True, fsdp=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=message):
        FareConfig(str(tmp_path), use_cpu=True)


@pytest.mark.slow
def test_fsdp_launched_on_a_cpu_does_not_train_as_ddp(legacy_vision_folder: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "model": str(legacy_vision_folder), "output_dir": str(tmp_path / "output")}
    result = start(options, *FSDP.split())
    assert result.returncode != 0 and not (tmp_path / "output").exists()
    assert "accelerate runs MULTI_CPU on cpu, where nothing is sharded; start it on GPUs" in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("version", 1, "fsdp_version=1 was never tried with gradients to the pixels; give fsdp_version: 2"),
        ("cpu_ram_efficient_loading", True, "loads no weights in the other processes, which need the original's"),
        ("state_dict_type", "SHARDED_STATE_DICT", "=SHARDED_STATE_DICT makes checkpoints without the encoder's"),
    ],
)
def test_settings_of_fsdp_that_lose_weights_are_refused(
    name: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As arguments and as a launcher hands them over; the ready configuration is not refused."""
    monkeypatch.setattr("fare_hf.training.checks.WHOLE", set())
    monkeypatch.setattr(TrainingArguments, "parallel_mode", ParallelMode.DISTRIBUTED)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # which accelerate writes
    with pytest.raises(ValueError, match=message):
        FareConfig(str(tmp_path), use_cpu=True, fsdp=True, fsdp_config={name: value})
    words = ["--config_file", str(CONFIGURATIONS / "fsdp.yaml"), "script.py"]
    launcher, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    for key, setting in prepare_multi_gpu_env(launcher).items():
        if key.startswith(("ACCELERATE_USE_FSDP", "FSDP_")):
            monkeypatch.setenv(key, setting)
    FareConfig(str(tmp_path), use_cpu=True)
    monkeypatch.setenv(f"FSDP_{name.upper()}", str(value).lower() if value is True else str(value))
    with pytest.raises(ValueError, match=message):
        FareConfig(str(tmp_path), use_cpu=True)
