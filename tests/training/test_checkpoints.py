"""Checkpoints: cut ones are passed over, those of other runs refused, and no run starts without room for its own."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from safetensors.torch import load_file, save_file

from fare_hf.training import FareConfig
from fare_hf.training.checkpointing.disk import checkpoint_bytes, checkpoints_at_once
from fare_hf.training.checkpointing.manifest import MANIFEST, fault_of, latest_checkpoint

# The epsilon keeps AdamW's update from being the sign of a gradient near 0, which rounding decides.
OPTIONS: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "adam_epsilon": 1e-2}


@pytest.fixture(scope="module")
def finished(legacy_vision_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run of four steps, with checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("finished")
    tiny_trainer(str(legacy_vision_folder), str(folder), **OPTIONS).train()
    return folder


@pytest.fixture
def output(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(finished, tmp_path / "output"))


def halve(path: Path) -> None:
    """What a kill leaves of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST],
)
@pytest.mark.parametrize("damage", [halve, Path.unlink])
def test_a_checkpoint_with_any_file_cut_or_missing_is_passed_over(
    name: str, damage: Any, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(output / "checkpoint-4" / name)
    assert latest_checkpoint(output) == str(output / "checkpoint-2")
    assert name in caplog.text and "checkpoint-4 is not complete and is passed over" in caplog.text


@pytest.mark.parametrize(("name", "content"), [("model.safetensors", b""), ("trainer_state.json", b"[]")])
def test_a_checkpoint_damaged_at_its_full_size_is_passed_over(name: str, content: bytes, output: Path) -> None:
    path = output / "checkpoint-4" / name
    path.write_bytes(content.ljust(path.stat().st_size, b" " if content else b"\0"))
    assert name in str(fault_of(output / "checkpoint-4"))
    assert latest_checkpoint(output) == str(output / "checkpoint-2")


def test_complete_checkpoints_have_no_fault_and_others_say_theirs(output: Path) -> None:
    assert fault_of(output / "checkpoint-2") is fault_of(output / "checkpoint-4") is None
    shutil.copy(output / "checkpoint-2" / "trainer_state.json", output / "checkpoint-4")
    assert fault_of(output / "checkpoint-4") == "it is of step 4 and its state of step 2"
    assert fault_of(output / "nowhere") == f"it has no {MANIFEST}"


def test_what_a_kill_left_of_a_checkpoint_is_no_part_of_the_next(legacy_vision_folder: Path, output: Path) -> None:
    (output / "checkpoint-4" / "pytorch_model_fsdp.bin").write_bytes(b"of another run")
    halve(output / "checkpoint-4" / "model.safetensors")
    whole = load_file(output / "checkpoint-2" / "model.safetensors")
    trainer = tiny_trainer(str(legacy_vision_folder), str(output), **OPTIONS)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and latest_checkpoint(output) == str(output / "checkpoint-4")
    assert not (output / "checkpoint-4" / "pytorch_model_fsdp.bin").exists()
    again = load_file(output / "checkpoint-4" / "model.safetensors")
    assert any(not torch.equal(value, again[name]) for name, value in whole.items())


def test_the_manifest_is_written_before_the_state_and_after_all_else(
    legacy_vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the state no longer comes last: a kill between the two would pass for a whole checkpoint."""
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **OPTIONS)
    seen: list[set[str]] = []
    inner = type(trainer.state).save_to_json

    def save_to_json(state: Any, path: str) -> None:
        seen.append({file.name for file in Path(path).parent.iterdir()})
        inner(state, path)

    monkeypatch.setattr(type(trainer.state), "save_to_json", save_to_json)
    trainer.train()
    complete = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", MANIFEST}
    assert len(seen) == 2 and all(complete <= files and "trainer_state.json" not in files for files in seen)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"eps": "2/255"}, "eps '4/255' there and '2/255' here"),
        ({"learning_rate": 2e-3, "seed": 1}, "learning_rate 0.001 there and 0.002 here, seed 42 there and 1 here"),
        ({"per_device_train_batch_size": 4}, "batch size 8 there and 4 here"),
        ({"train_dataset": RandomPixels(40)}, "images 32 there and 40 here"),
        ({"embedding": "pooled"}, "embedding 'projected' there and 'pooled' here"),
        ({"bf16": True}, "precision 'no' there and 'bf16' here"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last False there and True here"),
        (
            {"torch_compile_backend": "eager", "dataloader_drop_last": True},
            "compiled by 'nothing' there and 'eager' here",
        ),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused_with_the_differences(
    options: dict[str, Any], difference: str, legacy_vision_folder: Path, finished: Path, tmp_path: Path
) -> None:
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **{**OPTIONS, **options})
    with pytest.raises(ValueError, match="is of another run: .*") as caught:
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-2"))
    assert difference in str(caught.value)


def test_a_checkpoint_of_a_run_that_left_other_images_out_is_refused(
    legacy_vision_folder: Path, tmp_path: Path
) -> None:
    """Eight images an update all the same, of which an epoch of 28 has 28 in fours, 24 in eights."""
    options = {**OPTIONS, "train_dataset": RandomPixels(28), "dataloader_drop_last": True}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options).train()
    fours, eights = ({"per_device_train_batch_size": b, "gradient_accumulation_steps": 8 // b} for b in (2, 8))
    tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options | fours).train(resume_from_checkpoint="latest")
    other = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options | eights)
    with pytest.raises(ValueError, match="is of another run: images of an epoch 28 there and 24 here"):
        other.train(resume_from_checkpoint="latest")


def test_a_checkpoint_of_a_run_with_tf32_is_of_another_run(
    legacy_vision_folder: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fare_hf.training.checkpointing.identity.uses_tf32", lambda device: True)
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **OPTIONS)
    with pytest.raises(ValueError, match="is of another run: tf32 False there and True here;"):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-2"))


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 8), ("attack_warm_start", True)])
def test_a_checkpoint_of_a_removed_option_is_refused_where_it_was_used(
    name: str, value: Any, legacy_vision_folder: Path, finished: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2"))
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "same"), **OPTIONS)
    manifest = json.loads((older / MANIFEST).read_text())
    (older / MANIFEST).write_text(json.dumps(manifest | {"run": manifest["run"] | {name: value}}))
    with pytest.raises(ValueError, match=f"was trained with {name}={value!r}, an option that was removed"):
        trainer.train(resume_from_checkpoint=str(older))
    (older / MANIFEST).write_text(json.dumps(manifest | {"run": manifest["run"] | {name: None}}))
    assert trainer.train(resume_from_checkpoint=str(older)).global_step == 4


def test_a_checkpoint_from_before_an_option_is_of_a_run_without_it(
    legacy_vision_folder: Path, finished: Path, tmp_path: Path
) -> None:
    older = Path(shutil.copytree(finished / "checkpoint-2", tmp_path / "checkpoint-2"))
    manifest = json.loads((older / MANIFEST).read_text())
    del manifest["run"]["attack_fp8"]
    (older / MANIFEST).write_text(json.dumps(manifest))
    tiny_trainer(str(legacy_vision_folder), str(tmp_path / "same"), **OPTIONS).train(resume_from_checkpoint=str(older))
    other = tiny_trainer(str(legacy_vision_folder), str(tmp_path / "other"), attack_fp8=True, **OPTIONS)
    with pytest.raises(ValueError, match="is of another run: attack_fp8 False there and True here;"):
        other.train(resume_from_checkpoint=str(older))


def test_a_checkpoint_of_another_model_is_refused_though_its_shapes_are_the_same(
    legacy_vision_folder: Path, finished: Path, tmp_path: Path
) -> None:
    """Otherwise the weights of one model would be pulled to the embeddings of another."""
    other = Path(shutil.copytree(legacy_vision_folder, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 1.001 for k, v in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    trainer = tiny_trainer(str(other), str(tmp_path / "output"), **OPTIONS)
    with pytest.raises(ValueError, match="is of another run: original '[0-9a-f]+' there and '[0-9a-f]+' here;"):
        trainer.train(resume_from_checkpoint=str(finished / "checkpoint-2"))


def test_the_same_batch_in_other_parts_goes_on(legacy_vision_folder: Path, finished: Path, tmp_path: Path) -> None:
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **{**OPTIONS, **parts})
    trainer.train(resume_from_checkpoint=str(finished / "checkpoint-2"))
    whole = load_file(finished / "checkpoint-4" / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-5)


def test_a_run_that_the_disk_has_no_room_for_does_not_start(
    legacy_vision_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 0, 1_000_000))
    tiny_trainer(str(legacy_vision_folder), str(tmp_path / "a"), **OPTIONS, save_total_limit=1).train()
    with pytest.raises(ValueError, match="10 checkpoints of .* GiB .* do not fit into .*; give a smaller save_total"):
        many = {**OPTIONS, "max_steps": 20, "save_total_limit": 0}
        tiny_trainer(str(legacy_vision_folder), str(tmp_path / "b"), **many).train()


def test_the_estimate_of_a_checkpoint_is_what_it_takes(legacy_vision_folder: Path, finished: Path) -> None:
    trainer = tiny_trainer(str(legacy_vision_folder), str(finished.parent / "unused"), **OPTIONS)
    files = ("model.safetensors", "optimizer.pt")
    taken = sum((finished / "checkpoint-4" / name).stat().st_size for name in files)
    assert 0.8 * taken < checkpoint_bytes(trainer.args, trainer.model) < taken


@pytest.mark.parametrize(
    ("options", "step", "count"),
    [
        ({"save_strategy": "no"}, 0, 0),
        ({"save_steps": 500, "max_steps": 20_000}, 0, 3),
        ({"save_steps": 500, "max_steps": 20_000, "save_total_limit": 0}, 0, 40),
        ({"save_steps": 500, "max_steps": 20_000}, 19_000, 2),
        ({"save_steps": 500, "max_steps": 20_000, "save_total_limit": 3}, 0, 4),
        ({"save_steps": 0.1, "max_steps": 20_000, "save_total_limit": 0}, 0, 10),
        ({"save_strategy": "epoch", "max_steps": -1, "save_total_limit": 2}, 0, 1),
    ],
)
def test_checkpoints_at_once(options: dict[str, Any], step: int, count: int, tmp_path: Path) -> None:
    config = FareConfig(str(tmp_path), use_cpu=True, **options)
    assert checkpoints_at_once(config, step) == count


def test_the_manifest_lists_every_file(finished: Path) -> None:
    manifest = json.loads((finished / "checkpoint-2" / MANIFEST).read_text())
    there = {path.name for path in (finished / "checkpoint-2").iterdir()} - {MANIFEST, "trainer_state.json"}
    assert manifest["step"] == 2 and set(manifest["files"]) == there
