"""LoRA through PEFT (`fare_hf[lora]`): trained, merged, saved as a plain encoder. Slow: PEFT is no dependency.

Where it is not installed, `test_in_an_environment_with_peft` runs the others where it is.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from helpers.environments import environment
from helpers.launched_runs import FSDP, OPTIONS, moved, relative_error, start
from helpers.paths import ROOT
from transformers import CLIPVisionModelWithProjection

from fare_hf.encoders import embed
from fare_hf.training.trainable import add_lora, has_lora, merge_lora

pytestmark = pytest.mark.slow


def test_only_the_updates_move_and_merging_keeps_the_embeddings(
    clip_folder: Path, pixels: torch.Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), lora_rank=2, max_steps=3)
    encoder = trainer.model
    plain = CLIPVisionModelWithProjection.from_pretrained(clip_folder).eval()
    before = {name: parameter.detach().clone() for name, parameter in encoder.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in encoder.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all("lora_" in name for name in moved)
    encoder.eval()
    with torch.no_grad():
        trained = embed(encoder, pixels)
        merge_lora(encoder)
        torch.testing.assert_close(embed(encoder, pixels), trained, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(trained, embed(plain, pixels), atol=1e-4)
    assert not has_lora(encoder)
    assert encoder.state_dict().keys() == plain.state_dict().keys()


def test_a_resumed_run_ends_with_the_same_updates(clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = {"lora_rank": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    whole.train()
    resumed = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_sharded_updates_are_merged_where_the_encoder_is_saved(clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    common = {**OPTIONS, "model": str(clip_folder), "lora_rank": 2}
    two = {"per_device_train_batch_size": 4, "shard_on_cpu": True, "output_dir": str(tmp_path / "two")}
    result = start({**common, **two}, *FSDP.split())
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "facts.json").read_text())["sharded"]
    one = tiny_trainer(output_dir=str(tmp_path / "one"), **common)
    one.train()
    merge_lora(one.model)
    assert relative_error(tmp_path / "two" / "encoder", one.model.state_dict()) <= 1e-6 < 1e-5 < moved(one)


@pytest.mark.skipif(importlib.util.find_spec("peft") is not None, reason="PEFT is here, and the others run")
def test_in_an_environment_with_peft() -> None:
    python = environment("peft", ["peft", "bitsandbytes", "psutil"], dependencies=False)
    words = [str(python), "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert "4 passed, 1 skipped" in done.stdout, done.stdout[-3000:]


def test_without_peft_it_is_said(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    encoder = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    with pytest.raises(ValueError, match=r"pip install 'fare_hf\[lora\]'"):
        add_lora(encoder, 2)
