"""Towers of a class of their own on a loopback Hub: published by a training, read back to the bit, swapped in."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import FILES, FOUR, online_hub, stop_time
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.tiny_llava import SIZE
from helpers.tiny_vlms import TINY
from helpers.tiny_vlms_own import OWN
from helpers.train_command import run, unlabelled
from transformers import AutoImageProcessor

from fare_hf.hub import push_robust_encoder, save_robust_encoder
from fare_hf.vlm import swap_vision_tower, tower_of

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings")  # random, of two seeds


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found


def saved(name: str, folder: Path) -> tuple[Any, Path]:
    """A tower, and its folder with a card."""
    tiny = TINY[name]
    options = {"processor": tiny.processor().image_processor, "base_model": "lab/vlm", "license": "mit"}
    tower = tiny.encoder()
    return tower, save_robust_encoder(tower, folder, threat_model=FOUR, vlm="lab/vlm", **options)


@pytest.mark.parametrize("name", [tiny.name for tiny in OWN])
def test_a_tower_is_read_from_the_hub_to_the_bit_and_swapped_by_its_name(
    name: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    tower, folder = saved(name, tmp_path / "tower")
    found = push_robust_encoder(folder, "me/tower", token=TOKEN)
    assert set(found.files) == FILES
    again = type(tower).from_pretrained("me/tower")
    state = again.state_dict()
    assert state.keys() == tower.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in tower.state_dict().items())
    assert type(AutoImageProcessor.from_pretrained("me/tower")) is type(TINY[name].processor().image_processor)
    model = TINY[name].model()
    report = swap_vision_tower(model, "me/tower", TINY[name].processor())
    assert report.probe_difference == 0.0
    assert all(torch.equal(tower_of(model).state_dict()[key], tensor) for key, tensor in state.items())
    card = hub.repos["me/tower"].tree()["README.md"].data.decode()
    assert f'{type(tower).__name__}.from_pretrained("me/tower")' in card and "lab/vlm" in card
    assert push_robust_encoder(folder, "me/tower", token=TOKEN).commit == found.commit


def test_a_training_on_features_publishes_the_tower(hub: LoopbackHub, tmp_path: Path) -> None:
    tiny, folder, out = TINY["SmolVLM"], tmp_path / "vlm", tmp_path / "out"
    tiny.model().save_pretrained(folder)
    tiny.processor().image_processor.save_pretrained(folder)
    options = ["--embedding", "features", "--image_side", str(SIZE), "--max_steps", "1"]
    options += ["--push_to_hub", "--hub_model_id", "me/robust", "--hub_token", TOKEN]
    run(folder, unlabelled(tmp_path / "images"), out, *options)
    tower = type(tower_of(tiny.model())).from_pretrained(out / "encoder")
    again = type(tower).from_pretrained("me/robust").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in tower.state_dict().items())
    card = hub.repos["me/robust"].tree()["README.md"].data.decode()
    assert "./vlm" in card and "| embedding | features |" in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_heads": 2}, "has num_attention_heads 2 in its config.json and was saved with 4"),
        ({"depth": 4}, "lacks the weights 'blocks.3."),
        ({"model_type": "qwen2_5_vl"}, "holds a model of type 'qwen2_5_vl', not a CLIP vision encoder"),
        ({"architectures": ["Qwen2_5_VLModel"]}, "has the architecture 'Qwen2_5_VLModel' in config.json, not one of"),
    ],
)
def test_a_folder_that_is_no_such_tower_is_not_sent(
    change: dict[str, Any], sentence: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    _, folder = saved("Qwen2_5_VL", tmp_path / "tower")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError) as caught:
        push_robust_encoder(folder, "me/tower", token=TOKEN)
    assert sentence in str(caught.value) and hub.count("POST") == 0


def test_a_tower_never_replaces_one_of_another_shape_or_answers_all_alike(hub: LoopbackHub, tmp_path: Path) -> None:
    push_robust_encoder(saved("Qwen2VL", tmp_path / "one")[1], "me/tower", token=TOKEN)
    wider, folder = TINY["Qwen2VL"].encoder(depth=2), tmp_path / "two"
    options: dict[str, Any] = {"processor": TINY["Qwen2VL"].processor().image_processor, "base_model": "lab/vlm"}
    options |= {"threat_model": FOUR, "license": "mit"}
    save_robust_encoder(wider, folder, **options)
    with pytest.raises(
        ValueError, match="holds an encoder with num_hidden_layers 3, this one has 2: publish it under another"
    ):
        push_robust_encoder(folder, "me/tower", token=TOKEN)
    for parameter in wider.parameters():
        parameter.data.zero_()
    with pytest.raises(ValueError, match="answers with features that are the same for different inputs"):
        save_robust_encoder(wider, tmp_path / "three", **options)
