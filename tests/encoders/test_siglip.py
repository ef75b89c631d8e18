"""SigLIP against transformers' SiglipModel: texts, scale, bias, loss, accuracy, and a training from the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.in_process import run_command
from helpers.tiny_clip import tiny_tokenizer
from helpers.tiny_encoders import COLOURS, write_images, write_siglip
from transformers import AutoTokenizer, Siglip2Config, Siglip2VisionConfig, SiglipModel, SiglipVisionModel

from fare_hf.data.pixel_datasets import load_pixels
from fare_hf.encoders import (
    compared_with_texts,
    embed,
    load_encoder,
    logit_bias_of,
    logit_scale_of,
    text_class_embeddings,
)
from fare_hf.evaluation import evaluate
from fare_hf.objectives import SigmoidTecoaObjective, TecoaObjective
from fare_hf.pretrained.configuration import load_image_processor

CLASSES = list(COLOURS)


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    write_siglip(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), train=4, test=2)


@torch.no_grad()
def own_logits(folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    """As the model's documentation has it: padded to 64 tokens, no mask."""
    model, tokenizer = SiglipModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sentences = [f"This is a photo of a {name}.".lower() for name in CLASSES]
    tokens = tokenizer(sentences, padding="max_length", max_length=64, return_tensors="pt")
    assert list(tokens) == ["input_ids"] and tokens["input_ids"].shape == (3, 64)
    return model(pixel_values=pixels, **tokens).logits_per_image


def test_texts_scale_and_bias_give_the_models_own_logits(siglip: Path) -> None:
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = load_encoder(str(siglip), "pooled")
    assert type(encoder) is SiglipVisionModel and compared_with_texts(str(siglip)) == "pooled"
    texts = text_class_embeddings(str(siglip), CLASSES)
    scale, bias = logit_scale_of(str(siglip)), logit_bias_of(str(siglip))
    assert scale == pytest.approx(121.51, rel=1e-4) and bias == -16
    ours = SigmoidTecoaObjective(texts, scale, bias).logits(embed(encoder, pixels, "pooled"))
    expected = own_logits(siglip, pixels)
    assert expected.std(dim=1).min() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-5)


def test_a_tokenizer_that_masks_its_padding_gives_the_same_texts(siglip: Path, tmp_path: Path) -> None:
    """That of SigLIP 2 makes a mask, and the models were trained without one."""
    write_siglip(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert "attention_mask" in AutoTokenizer.from_pretrained(tmp_path)("a cat")
    both = [text_class_embeddings(str(folder), ["RED", "cat"]) for folder in (siglip, tmp_path)]
    assert torch.equal(*both)
    assert torch.equal(both[0][0], text_class_embeddings(str(siglip), ["red", "cat"])[0])


def test_the_loss_is_siglips_own_where_each_image_has_a_text(siglip: Path) -> None:
    model, tokenizer = SiglipModel.from_pretrained(siglip), AutoTokenizer.from_pretrained(siglip)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    tokens = tokenizer(["cat", "dog", "bird"], padding="max_length", max_length=64, return_tensors="pt")
    output = model(pixel_values=pixels, return_loss=True, **tokens)
    loss = SigmoidTecoaObjective(output.text_embeds, logit_scale_of(str(siglip)), -16.0)
    ours = loss(model.get_image_features(pixels).pooler_output, torch.arange(3))
    assert ours.shape == (3,) and ours.mean().item() == pytest.approx(output.loss.item(), rel=1e-5)
    softmax = TecoaObjective(output.text_embeds, logit_scale_of(str(siglip)))
    assert not torch.allclose(ours, softmax(output.image_embeds, torch.arange(3)))


def test_the_sigmoid_loss_has_the_gradient_of_finite_differences() -> None:
    loss = SigmoidTecoaObjective(torch.randn(4, 6, dtype=torch.float64), 5.0, -2.0)
    leaf = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda images: loss(images, torch.tensor([0, 3, 1])), (leaf,))
    with pytest.raises(ValueError, match="logit_bias nan is not finite: pass the model's own"):
        SigmoidTecoaObjective(torch.eye(3), 5.0, float("nan"))


def test_the_clean_figure_is_the_share_of_likeliest_texts_of_the_model(siglip: Path, photos: Path) -> None:
    processor = load_image_processor(str(siglip))
    samples = load_pixels(str(photos), "test", processor, labels=True)
    pixels = torch.stack([sample["pixel_values"] for sample in samples])
    likeliest = own_logits(siglip, (pixels - 0.5) / 0.5).argmax(1)
    names = [CLASSES[label] for label in likeliest]
    labels = [samples.class_names[sample["labels"]] for sample in samples]
    found = evaluate(siglip, photos, templates=["This is a photo of a {}."], eps=["4/255"], steps=3)
    assert found.rows[0].value == sum(map(str.__eq__, names, labels)) / 6
    assert found.rows[1].value <= found.rows[0].value and found.rows[1].threat_model is not None


@pytest.mark.parametrize("objective", ["fare", "tecoa", "sigmoid-tecoa", "agft"])
def test_a_training_from_the_command(objective: str, siglip: Path, photos: Path, tmp_path: Path) -> None:
    words = f"fare-hf train --model {siglip} --dataset {photos} --embedding pooled --objective {objective}"
    words += " --max_steps 2 --per_device_train_batch_size 4 --attack_steps 2 --warmup_steps 0 --learning_rate 1e-3"
    run_command([*words.split(), "--output_dir", str(tmp_path), "--use_cpu", "--disable_tqdm", "true"])
    said = json.loads((tmp_path / "training.json").read_text())
    wanted = {"tecoa": {}, "sigmoid-tecoa": {"logit bias": -16.0}, "agft": {"softening": 0.4}}.get(objective)
    if wanted is not None:
        assert {"logit scale": pytest.approx(121.51, rel=1e-4), **wanted}.items() <= said.items()
    assert said["objective"] == objective
    trained = SiglipVisionModel.from_pretrained(tmp_path / "encoder")
    original = SiglipVisionModel.from_pretrained(siglip)
    moved = [name for name, p in trained.named_parameters() if not torch.equal(p, original.get_parameter(name))]
    assert len(moved) >= len(list(original.parameters())) - 4  # biases of keys have no gradient


def refused(*words: str) -> list[str]:
    return ["fare-hf", "train", "--dataset", "PHOTOS", "--output_dir", "OUT", "--use_cpu", *words]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "SIGLIP"], "'siglip' model without a projection; use embedding='pooled' or 'tokens'"),
        (["--model", "CLIP", "--objective", "sigmoid-tecoa"], "'clip' model, which has no logit bias; give a whole"),
        (["--model", "CLIP", "--objective", "tecoa", "--embedding", "pooled"], "of a 'clip' model is not compared"),
        (
            ["--model", "SIGLIP", "--objective", "tecoa", "--embedding", "pooled", "--text_model", "CLIP"],
            "whose embeddings have nothing in common",
        ),
        (["--model", "NAFLEX", "--embedding", "pooled"], "a 'siglip2' model, which reads images of any aspect ratio"),
        (["--model", "NAFLEX-TOWER", "--embedding", "tokens"], "'siglip2_vision_model' model, which reads images of"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    words: list[str],
    sentence: str,
    siglip: Path,
    photos: Path,
    clip_folder: Path,
    tmp_path: Path,
) -> None:
    Siglip2Config().save_pretrained(tmp_path / "naflex")
    Siglip2VisionConfig().save_pretrained(tmp_path / "naflex-tower")
    paths = {"SIGLIP": siglip, "CLIP": clip_folder, "PHOTOS": photos, "OUT": tmp_path / "out"}
    paths |= {"NAFLEX": tmp_path / "naflex", "NAFLEX-TOWER": tmp_path / "naflex-tower"}
    with pytest.raises(SystemExit) as ended:
        run_command([str(paths.get(word, word)) for word in refused(*words)])
    assert sentence in str(ended.value) and not (tmp_path / "out").exists()


def test_the_cost_is_told_from_the_configuration(siglip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fare-hf", "estimate", "--model", str(siglip), "--max_steps", "10"]
    run_command([*words, "--embedding", "pooled"])
    assert "1,280 images" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="without a projection; give --embedding pooled"):
        run_command(words)
