"""Two models in little more than the memory of one; any LLaVA and encoder, of another resolution too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.tiny_llava import encoder, llava, processor
from PIL import Image

from fare_hf.app.attack import Settings, attack_models
from fare_hf.app.models import Model, load_models
from fare_hf.app.pictures import Picture
from fare_hf.attacks import ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.lab import encoder_folder
from fare_hf.vlm import tower_of


def test_the_two_models_share_all_but_the_tower(models: list[Model]) -> None:
    original, robust = (model.vlm for model in models)
    assert original.get_input_embeddings().weight is robust.get_input_embeddings().weight
    for vlm, folder in ((original, "clip"), (robust, "fare-4")):
        held, expected = tower_of(vlm).state_dict(), load_encoder(str(encoder_folder(folder)), "tokens").state_dict()
        assert all(torch.equal(held[name], tensor) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A tiny LLaVA of 32 pixels, and an encoder of 48."""
    folder: Path = tmp_path_factory.mktemp("models")
    llava().save_pretrained(folder / "llava")
    processor().save_pretrained(folder / "llava")
    encoder(seed=5, image_size=48).save_pretrained(folder / "encoder")
    return str(folder / "llava"), str(folder / "encoder")


@pytest.mark.filterwarnings("ignore:clean images have embeddings")
def test_any_llava_and_an_encoder_of_another_resolution(folders: tuple[str, str]) -> None:
    models, report = load_models(*folders, "user : <image> {} assistant :")
    assert [model.size for model in models] == [32, 48] and report.resolution == (32, 48)
    picture = Picture(Image.new("RGB", (32, 32), "red"))
    *_, found = attack_models(models, picture, Settings(ThreatModel("linf", "8/255"), steps=2, target="red dog"))
    assert [len(line) for line in found.losses.values()] == [3, 3] and len(found.answers) == 4
    assert all(not torch.equal(pixels, found.pixels) for pixels in found.attacked.values())


def test_what_does_not_fit_together_is_refused(folders: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="template is for other models than lab:llava"):
        load_models("lab:llava", "lab:fare-4", "{} <image>")
    with pytest.raises(ValueError, match="has no chat template: give template"):
        load_models(*folders)
    with pytest.raises(ValueError, match="is a vision-language model .llava., and an encoder is wanted"):
        load_models("lab:llava", folders[0])
    with pytest.raises(ValueError, match="is a 'clip_vision_model' model, not a vision-language model"):
        load_models(folders[1], "lab:fare-4")


def test_an_encoder_that_does_not_fit_is_told_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fare_hf.app.models.load_vlm_and_processor", pytest.fail)
    with pytest.raises(ValueError, match="the vision tower of .*needs a CLIPVisionModel"):
        load_models("lab:llava", "lab:smolvlm-4")
