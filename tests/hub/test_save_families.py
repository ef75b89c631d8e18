"""Encoders besides CLIP are saved: plain classes load them, their cards' snippets run, models see through them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_encoders import DINOS, write_dino, write_siglip
from helpers.tiny_vlms import TINY, siglip_encoder
from PIL import Image
from safetensors import safe_open
from transformers import AutoModel, AutoTokenizer, SiglipModel, SiglipVisionModel

from fare_hf.attacks import ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.encoders.text import text_class_embeddings
from fare_hf.hub import regenerate_card, save_robust_encoder
from fare_hf.hub.push.folder import check_loads, read_folder, vision_shape
from fare_hf.hub.save import copy_with_text_encoder
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.vlm import swap_vision_tower, tower_of


def save(encoder: Any, source: Path, folder: Path, **options: Any) -> Path:
    options |= {"processor": load_image_processor(str(source)), "base_model": str(source)}
    return save_robust_encoder(encoder, folder, threat_model=ThreatModel("linf", "4/255"), **options)


def run_snippets(folder: Path, count: int) -> list[dict[str, Any]]:
    """The names that each block of code on the card leaves."""
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == count
    found: list[dict[str, Any]] = [{} for _ in blocks]
    for block, names in zip(blocks, found, strict=True):
        exec(block, names)
    return found


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A SigLIP where the snippets of a card look for it, and an image."""
    monkeypatch.chdir(tmp_path)
    write_siglip(tmp_path / "path" / "to" / "siglip")
    Image.radial_gradient("L").convert("RGB").save("image.png")
    return tmp_path / "path" / "to" / "siglip"


@pytest.mark.parametrize("kind", DINOS)
def test_a_dino_loads_with_its_own_class_to_the_bit(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_dino(tmp_path / "original", kind)
    encoder = load_encoder("original", "pooled")
    with torch.no_grad():
        encoder.get_parameter("embeddings.cls_token").add_(1.0)
    folder = save(encoder, tmp_path / "original", Path("robust"))
    names = [set(safe_open(path / "model.safetensors", "pt").keys()) for path in (folder, tmp_path / "original")]
    assert names[0] == names[1]  # those that the first release with this class reads
    for loaded in (type(encoder).from_pretrained(folder), AutoModel.from_pretrained(folder)):
        assert type(loaded) is type(encoder)
        assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert (
        len(read_folder(folder, "user/robust")) == 5 and regenerate_card(folder) == (folder / "README.md").read_text()
    )
    check_loads(folder)
    Image.new("RGB", (40, 40), "red").save("image.png")
    (plain,) = run_snippets(folder, 1)  # no vision-language model sees through it, and it has no texts
    assert plain["embedding"].shape == (1, 32)
    card = (folder / "README.md").read_text()
    assert "DINOv" in card and "- dinov" in card and "LLaVA" not in card.split("## Training")[0]
    assert vision_shape(json.loads((folder / "config.json").read_text()), "it")["patch_size"] == 8


def test_a_siglip_loads_in_all_its_classes(original: Path) -> None:
    encoder = load_encoder(str(original), "pooled")
    with torch.no_grad():
        encoder.get_parameter("head.probe").add_(1.0)
    folder = save(encoder, original, Path("robust"), vlm="vlm")
    TINY["PaliGemma"].model().save_pretrained("vlm")
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert all(name.startswith("vision_model.") for name in file.keys())  # as transformers 4 calls them
    loaded = SiglipVisionModel.from_pretrained(folder)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert type(load_encoder(str(folder), "tokens")) is SiglipVisionModel
    read_folder(folder, "user/robust")
    check_loads(folder)
    card = (folder / "README.md").read_text()
    assert "zhai2023sigmoid" in card and "radford2021" not in card and "- siglip" in card
    assert "In a vision-language model with the same" in card


def test_the_cards_snippets_run(original: Path) -> None:
    """Alone, and with the text encoder: zero-shot classification is that of the whole original."""
    TINY["PaliGemma"].model().save_pretrained("vlm")
    tower = SiglipVisionModel(TINY["PaliGemma"].model().config.vision_config).eval()
    seen = save(tower, original, Path("seen"), vlm="vlm")
    blocks = re.findall(r"```python\n(.*?)```", (seen / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(blocks[1], names)
    assert all(torch.equal(t, tower.state_dict()[name]) for name, t in tower_of(names["model"]).state_dict().items())
    encoder = load_encoder(str(original), "pooled")
    alone = save(encoder, original, Path("alone"))
    code = re.findall(r"```python\n(.*?)```", (alone / "README.md").read_text(), re.DOTALL)[2]
    exec(code, names)
    texts = text_class_embeddings(str(original), ["cat", "dog", "car"], ["this is a photo of {}."])
    torch.testing.assert_close(names["classes"], texts)
    assert names["likeliest"] == ["cat", "dog", "car"][int((names["embedding"] @ texts.T).argmax())]


def test_with_its_text_encoder_it_is_a_whole_siglip(original: Path) -> None:
    encoder = load_encoder(str(original), "pooled")
    with torch.no_grad():
        encoder.get_parameter("head.probe").add_(1.0)
    whole = save(encoder, original, Path("whole"), text_encoder=str(original))
    loaded, before = (SiglipModel.from_pretrained(folder) for folder in (whole, original))
    expected = before.state_dict() | {f"vision_model.{name}": t for name, t in encoder.state_dict().items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert list(AutoTokenizer.from_pretrained(whole)("a cat")) == ["input_ids"]
    code = re.findall(r"```python\n(.*?)```", (whole / "README.md").read_text(), re.DOTALL)[2]
    names: dict[str, Any] = {}
    exec(code, names)  # the pipeline of transformers
    assert {row["label"] for row in names["scores"]} == {"cat", "dog", "car"}
    read_folder(whole, "user/robust")
    check_loads(whole)
    again = copy_with_text_encoder(save(encoder, original, Path("alone")), Path("again"), str(original))
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("family", ["PaliGemma", "Gemma3", "LlavaOnevision"])
def test_a_saved_siglip_is_swapped_in(family: str, original: Path, tmp_path: Path) -> None:
    tiny = TINY[family]
    encoder = tiny.encoder() if tiny.encoder else siglip_encoder()
    folder = save(encoder, original, tmp_path / "robust")
    vlm = tiny.model()
    swap_vision_tower(vlm, str(folder))
    state = encoder.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in tower_of(vlm).state_dict().items() if name in state)
