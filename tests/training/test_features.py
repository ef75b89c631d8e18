"""Training on the features that a vision-language model reads: the command line, its encoder, several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import SIZE, images, llava, processor
from helpers.tiny_vlms import TINY
from helpers.train_command import refusal, run, unlabelled
from helpers.vlm_features import saved
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoImageProcessor, CLIPVisionModel, LlavaForConditionalGeneration

from fare_hf import FareConfig, FareTrainer
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.training.estimate import estimate
from fare_hf.vlm import swap_vision_tower, tower_of
from fare_hf.vlm.tower_files import load_vision_tower

FEATURES = ("--embedding", "features")


@pytest.fixture
def vlm(tmp_path: Path) -> Path:
    """A tiny LLaVA as a repository has it, in several files."""
    folder = tmp_path / "llava"
    llava().save_pretrained(folder, max_shard_size="30KB")
    processor().save_pretrained(folder)
    return folder


def test_the_tower_of_a_vlm_is_trained_saved_and_swapped_back(vlm: Path, tmp_path: Path) -> None:
    """Without the files of the language model; the loss falls; the encoder is the tower's own class, and fits."""
    model, index = llava(), json.loads((vlm / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(index.values()):
        if all("language_model" in name or "lm_head" in name for name in index if index[name] == file):
            (vlm / file).unlink()
    out = tmp_path / "out"
    run(vlm, unlabelled(tmp_path / "images"), out, *FEATURES, "--max_steps", "8", "--learning_rate", "1e-2")
    encoder = CLIPVisionModel.from_pretrained(out / "encoder")
    recipe = json.loads((out / "training.json").read_text())
    assert recipe["embedding"] == "features" and recipe["objective"] == "fare"
    card = (out / "encoder" / "README.md").read_text()
    assert "./llava" in card and "fine-tuned" in card and str(tmp_path) not in card
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = swap_vision_tower(model, encoder, processor())
    assert isinstance(model, LlavaForConditionalGeneration) and report.probe_difference == 0.0
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, old[name])}
    read = ("embeddings", "pre_layrnorm", "encoder.layers.0", "encoder.layers.1")
    assert moved == {
        name for name in old if name.startswith("model.vision_tower") and any(part in name for part in read)
    }


def losses_of(name: str, folder: Path, **options: Any) -> list[float]:
    """Of a training on features in two steps."""
    _, tower, features = saved(folder / "model", TINY[name])
    generator = torch.Generator().manual_seed(0)
    side = features.image_side
    samples = [{"pixel_values": torch.rand(3, side, side, generator=generator), "index": n} for n in range(4)]
    options |= {"attack_steps": 2, "attack_step_size": "4/255", "max_steps": 2, "warmup_steps": 0, "logging_steps": 1}
    options |= {"per_device_train_batch_size": 2, "save_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    config = FareConfig(str(folder / "out"), embedding="features", dataloader_drop_last=True, **options)
    trainer = FareTrainer(tower, config, samples, processing_class=features.processor, reading=features)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("name", ["Qwen2_5_VL", "Qwen3VL", "SmolVLM"])
def test_checkpointed_and_compiled_trainings_lose_as_others(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks run again in a backward pass as they ran before; and what is said to be compiled is."""
    for variable in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(variable, "no")
    expected = losses_of(name, tmp_path / "plain")
    assert losses_of(name, tmp_path / "again", activation_checkpointing=True) == pytest.approx(expected, rel=1e-4)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # More variants of a block than torch compiles by default: what is beyond its limit runs as it is.
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        compiled = losses_of(name, tmp_path / "compiled", torch_compile=True, torch_compile_backend="eager")
    assert compiled == pytest.approx(expected, rel=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3  # the original's, the attack's, the update's


@pytest.mark.parametrize("name", ["Qwen2_5_VL", "Qwen3VL", "SmolVLM", "InternVL", "Mistral3"])
def test_towers_of_their_own_are_trained_saved_and_swapped_back(name: str, tmp_path: Path) -> None:
    """`encoder/` is of the tower's own class, loads with that class alone, and goes back into its model."""
    tiny = TINY[name]
    model, folder, out = tiny.model(), tmp_path / "vlm", tmp_path / "out"
    model.save_pretrained(folder)
    tiny.processor().image_processor.save_pretrained(folder)
    pictures = unlabelled(tmp_path / "images")
    run(folder, pictures, out, *FEATURES, "--image_side", str(SIZE), "--max_steps", "2", "--learning_rate", "1e-3")
    tower = tower_of(model)
    encoder = type(tower).from_pretrained(out / "encoder")
    old = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    moved = [name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, old[name])]
    assert set(moved) >= {name for name in old if "attn" in name and name.endswith("weight")}
    if name == "Qwen3VL":  # also what the language model reads of earlier blocks
        assert any(name.startswith("deepstack_merger_list") for name in moved)
    report = swap_vision_tower(model, str(out / "encoder"), tiny.processor())
    assert report.probe_difference == 0.0 and report.cosine > 0.7 and report.image_tokens
    card = (out / "encoder" / "README.md").read_text()
    assert f"{type(tower).__name__}.from_pretrained" in card and "./vlm" in card and "AutoModelForImageText" in card
    assert "clip" not in card.split("---")[1] and str(tmp_path) not in card
    processor = AutoImageProcessor.from_pretrained(out / "encoder")
    assert type(processor) is type(tiny.processor().image_processor)


def test_a_training_on_larger_images_ends_with_an_encoder_of_the_towers_own_size(vlm: Path, tmp_path: Path) -> None:
    """A CLIP reads one size, to which the model's processor resizes what it is trained on."""
    out = tmp_path / "out"
    run(vlm, unlabelled(tmp_path / "images"), out, *FEATURES, "--image_side", str(2 * SIZE), "--max_steps", "1")
    assert AutoImageProcessor.from_pretrained(out / "encoder").crop_size["height"] == SIZE


def test_training_lowers_the_loss_of_features_under_attack(vlm: Path, tmp_path: Path) -> None:
    tower, features = load_vision_tower(str(vlm))
    rows = [{"image": picture} for picture in unlabelled_pictures(tmp_path)]
    config = FareConfig(
        str(tmp_path / "out"), embedding="features", max_steps=12, logging_steps=4, attack_steps=2, use_cpu=True,
        attack_step_size="2/255", learning_rate=1e-3, warmup_steps=0, save_strategy="no",
        per_device_train_batch_size=4, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = FareTrainer(
        tower, config, PixelDataset(rows, features.processor), processing_class=features.processor, reading=features
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]
    assert trainer.identity["features of"] == str(vlm) and trainer.identity["image side"] == SIZE
    assert all(parameter.grad is None for parameter in features.around.parameters())


def unlabelled_pictures(folder: Path) -> list[str]:
    """Eight image files."""
    return [str(path) for path in sorted(unlabelled(folder / "images").rglob("*.png"))]


def test_a_tower_is_read_through_the_wrapper_of_data_parallelism(vlm: Path, tmp_path: Path) -> None:
    """Whose forward is called, so that gradients are reduced: without it they would be of each process alone."""
    tower, features = load_vision_tower(str(vlm))
    expected = features.embed(tower, images(2))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        calls: list[int] = []
        wrapped = DistributedDataParallel(tower, find_unused_parameters=True)
        wrapped.register_forward_hook(lambda *_: calls.append(1))
        assert torch.equal(features.embed(wrapped, images(2)), expected) and calls == [1]
    finally:
        distributed.destroy_process_group()


def test_what_features_cannot_be_asked_of_is_refused(
    vlm: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = unlabelled(tmp_path / "images")
    assert "has to be a vision-language model" in refusal(clip_folder, pictures, tmp_path / "out", *FEATURES)
    assert "image_side=64 is not read: embedding is 'projected'" in refusal(
        clip_folder, pictures, tmp_path / "out", "--image_side", "64"
    )
    assert "image_side=0 is no size" in refusal(vlm, pictures, tmp_path / "out", *FEATURES, "--image_side", "0")
    config = FareConfig(str(tmp_path / "out"), embedding="features", use_cpu=True)
    tower, features = load_vision_tower(str(vlm))
    with pytest.raises(ValueError, match="embedding='features' needs reading="):
        FareTrainer(tower, config, processing_class=features.processor)
    config = FareConfig(str(tmp_path / "out"), embedding="tokens", use_cpu=True)
    with pytest.raises(ValueError, match="embedding='tokens', and reading= is of 'features'"):
        FareTrainer(tower, config, processing_class=features.processor, reading=features)


@pytest.mark.parametrize("name", ["Llava (1.5, BakLlava)", "Qwen2_5_VL", "SmolVLM", "InternVL", "Mistral3"])
def test_the_cost_is_known_without_weights(name: str, tmp_path: Path) -> None:
    """The operations are those of the training itself, whose tower is read from files."""
    tiny = TINY[name]
    tiny.model().save_pretrained(tmp_path)
    tiny.processor().image_processor.save_pretrained(tmp_path)
    tower, features = load_vision_tower(str(tmp_path), image_side=SIZE)
    options = {"global_batch_size": 1, "per_device_train_batch_size": 1, "max_steps": 1, "warmup_steps": 0}
    config = FareConfig(str(tmp_path / "out"), embedding="features", attack_steps=3, use_cpu=True, **options)
    expected = features.flops(tower).step(3)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    found = estimate(str(tmp_path), config, image_side=SIZE)
    assert found.flops == expected and found.memory.peak > 0
    assert found.parameters == sum(weight.numel() for weight in tower.parameters())
