"""Trainings on the tower of the lab's LLaVA, which is stored in the folder of the lab's CLIP: command line, Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.train_command import TINY
from transformers import CLIPVisionModel

from fare_hf.cli.train import main
from fare_hf.encoders import load_encoder
from fare_hf.lab import encoder_folder, load_llava, load_test_set
from fare_hf.lab.names import trained_path
from fare_hf.training.config import FareConfig
from fare_hf.training.estimate import estimate
from fare_hf.vlm import swap_vision_tower
from fare_hf.vlm.tower_files import load_vision_tower


def trained(embedding: str, out: Path) -> CLIPVisionModel:
    words = ["--model", "lab:llava", "--dataset", "lab:drawings", "--embedding", embedding, "--output_dir", str(out)]
    main([*words, *TINY, "--max_steps", "1"])
    return CLIPVisionModel.from_pretrained(out / "encoder")


@pytest.mark.parametrize("embedding", ["features", "tokens"])
def test_the_command_trains_the_llavas_tower_and_it_goes_back(embedding: str, tmp_path: Path) -> None:
    encoder = trained(embedding, tmp_path)
    original = load_encoder(str(encoder_folder("clip")), "tokens").state_dict()
    moved = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, original[name])}
    assert moved and not any("layers.5" in name for name in moved)  # of six; -2 is read
    model, processor = load_llava()
    report = swap_vision_tower(model, str(tmp_path / "encoder"), processor)
    assert report.probe_difference == 0.0 and report.cosine > 0.9
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert f"| embedding | {embedding} |" in card and ("./llava" if embedding == "features" else "./clip") in card


def test_in_python_the_features_are_what_the_language_model_reads() -> None:
    model, processor = load_llava()
    tower, features = load_vision_tower(model, processor=processor)
    pixels = load_test_set("twemoji").pixels[:2]
    inputs = features.family.inputs(features.settings, pixels)
    read = torch.stack(list(model.model.get_image_features(**inputs).pooler_output))
    torch.testing.assert_close(features.embed(tower, pixels), read)
    next(tower.parameters()).data.zero_()
    assert next(model.model.vision_tower.parameters()).abs().max() > 0  # copies
    with pytest.raises(ValueError, match="is a model in memory: give its processor too, as processor="):
        load_vision_tower(model)


def test_its_cost_is_known() -> None:
    args = FareConfig("none", embedding="features", max_steps=2, use_cpu=True)
    tokens = FareConfig("none", embedding="tokens", max_steps=2, use_cpu=True)
    folder = trained_path("lab:llava")
    assert 1 < estimate(folder, args).flops / estimate(folder, tokens).flops < 1.5  # with the projector
