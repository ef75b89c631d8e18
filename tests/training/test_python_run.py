"""A short run as one writes it in Python: FARE's figures are logged, the encoder is saved, nothing else is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from huggingface_hub import ModelCard
from transformers import CLIPVisionModelWithProjection

CODE = """
from fare_hf import FareConfig, FareTrainer
from fare_hf.encoders import load_encoder
from fare_hf.lab import encoder_folder, load_training_set

train_set = load_training_set("drawings")
trainer = FareTrainer(
    model=load_encoder(str(encoder_folder("clip"))),
    args=FareConfig("my-fare", eps="4/255", max_steps=1, warmup_steps=0, per_device_train_batch_size=2),
    train_dataset=train_set,
    processing_class=train_set.processor,
)
trainer.train()
print(trainer.save_encoder())
"""
BARS = r"(Loading weights|Writing model shards)?:? *\d+%\|.*"


def test_it_logs_fares_figures_and_leaves_an_encoder(tmp_path: Path) -> None:
    """`logging_steps` is 50: the last step is logged all the same. The bars of other libraries are theirs."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, "-c", CODE]
    found = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "'attack_gain': " in found.stdout and "'cosine_adversarial': " in found.stdout
    assert "epoch" not in found.stdout
    *_, hint, folder = found.stdout.splitlines()
    assert hint == "trainer.save_encoder() writes the encoder with its card to my-fare/encoder"
    assert folder == "my-fare/encoder"
    said = [line for line in re.split(r"[\r\n]|\x1b\[A", found.stderr) if line.strip()]
    assert [line for line in said if not re.fullmatch(BARS, line)] == []
    CLIPVisionModelWithProjection.from_pretrained(tmp_path / "my-fare" / "encoder")
    assert "4/255" in ModelCard.load(tmp_path / "my-fare" / "encoder" / "README.md").text
    state = json.loads((tmp_path / "my-fare" / "checkpoint-1" / "trainer_state.json").read_text())
    assert {"attack_gain", "epoch"} <= state["log_history"][0].keys()
