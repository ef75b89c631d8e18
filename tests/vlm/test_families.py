"""Every capability of every family, tried; and the table in the documents says the same."""

from __future__ import annotations

import ast
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from helpers.tiny_llava import SIZE, llava
from helpers.tiny_vlms import PROMPT, TINY, images
from helpers.tiny_vlms_own import OWN
from helpers.vlm_capabilities import CAPABILITIES, DOCUMENT, NotClaimed
from transformers import LlavaImageProcessor

from fare_hf.data.pixels import quantize, to_pil, unnormalized
from fare_hf.vlm import VlmLoss, family_of, generate_text
from fare_hf.vlm.families.table import FAMILIES, Family, family_named
from fare_hf.vlm.prefix import Prefix

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings")
LLAVA = family_named(["LlavaForConditionalGeneration"])
TWICE_ROUNDED = 2 / 255
"""A processor may resize twice, and rounds to 8 bits each time."""
SHAPES = [(SIZE, SIZE), (50, 70), (96, 31), (20, 25)]


QUICK = ("LlavaNext", "Idefics")
"""Families of which every capability is tried in the usual tests; the others are slow together."""
ALL = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in TINY]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("family", ALL)
def test_capability(family: str, capability: str) -> None:
    row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {family} |"))
    stated = [cell.strip() for cell in row.split("|")[2:-1]][list(CAPABILITIES).index(capability)]
    try:
        CAPABILITIES[capability](TINY[family])
    except NotClaimed as reason:
        assert stated == f"no ({reason})"
    else:
        assert stated == "yes"


@pytest.mark.parametrize("family", [tiny.name for tiny in OWN])
def test_towers_of_their_own_answer_as_their_models_do(family: str) -> None:
    CAPABILITIES["answers = own"](TINY[family])


def test_every_family_is_tried() -> None:
    assert {type(tiny.model()).__name__ for tiny in TINY.values()} == {family.vlm_class for family in FAMILIES}
    assert len({family.vlm_class for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("package", ["vlm", "hub/merge", "evaluation/vlm", "cli"])
def test_only_the_families_know_a_family_by_its_name(package: str) -> None:
    starts = re.compile("|".join(family.vlm_class.split("For")[0] for family in FAMILIES))
    files = [file for file in (ROOT / "fare_hf" / package).rglob("*.py") if "families" not in file.parts]
    assert files
    for file in files:
        tree = ast.parse(file.read_text())
        told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            words = [str(value) for _, value in ast.iter_fields(node) if isinstance(value, str)]
            found = [word for word in words if starts.search(word) and id(node) not in told]
            assert not found, f"{file} knows {found[0]}: ask its row in vlm/families"


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_geometry_is_the_processors(family: str, height: int, width: int) -> None:
    """Pixels before and after normalisation, tile by tile, against the processor itself."""
    pixels = quantize(images(1, height, width, seed=2))
    row = family_of(TINY[family].model())
    _compare(row, row.settings(TINY[family].processor()), pixels)


def _compare(row: Family, processor: Any, pixels: torch.Tensor) -> None:
    picture = to_pil(pixels)[0]
    plain = _values(unnormalized(processor), picture)
    ours = row.inputs(unnormalized(processor), pixels)["pixel_values"]
    assert ours.numel() == plain.numel() and ours.shape[-3:] == plain.shape[-3:]
    ours = ours.reshape(plain.shape)
    assert float((ours - plain).abs().max()) <= TWICE_ROUNDED
    whole = row.inputs(processor, pixels)
    theirs = _values(processor, picture)
    found = whole["pixel_values"].reshape(theirs.shape)
    torch.testing.assert_close(found, theirs, rtol=0, atol=TWICE_ROUNDED / min(processor.image_std))
    tiles = {"image_sizes", "pixel_attention_mask"} & set(whole)  # larger than the image, which is resized
    if pixels.shape[-2:] == (SIZE, SIZE) and not tiles:
        torch.testing.assert_close(found, theirs, rtol=1e-6, atol=1e-6)
    if "image_sizes" in whole:
        sizes = processor(picture, return_tensors="pt")["image_sizes"]
        assert whole["image_sizes"].tolist() == torch.as_tensor(sizes).tolist()


def _values(processor: Any, picture: Any) -> torch.Tensor:
    """Pixel values of one picture, all its tiles."""
    made = processor(picture, return_tensors="pt")
    if isinstance(made, torch.Tensor):  # Idefics
        return made
    found = made["pixel_values"] if "pixel_values" in made else made["pixel_values_images"]
    return torch.as_tensor(np.asarray(found))


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_padding_to_a_square(height: int, width: int) -> None:
    options = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    _compare(LLAVA, LlavaImageProcessor(do_pad=True, **options), quantize(images(1, height, width)))


def test_a_crop_larger_than_the_image() -> None:
    square = {"height": 45, "width": 45}
    _compare(LLAVA, LlavaImageProcessor(do_resize=False, crop_size=square), quantize(images(1, 30, 51)))


@pytest.mark.parametrize("family", ["Llava on SigLIP", "VideoLlava", "LlavaOnevision"])
def test_the_kept_prefix_changes_nothing(family: str) -> None:
    """Values with and without the language model's kept keys and values; a changed weight throws them away."""
    tiny = TINY[family]
    model, processor = tiny.model(), tiny.processor()
    loss, pixels = VlmLoss(model, processor, PROMPT, ["a red cat", "a dog"]), images(2)
    with torch.no_grad():
        first = loss(pixels)
        kept = loss(pixels)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Prefix, "length", lambda *_: 0)  # nothing before the image is kept
            torch.testing.assert_close(first, loss(pixels), rtol=1e-5, atol=1e-5)
        assert torch.equal(first, kept)
        for parameter in model.lm_head.parameters():
            parameter.mul_(0.5)
        changed = loss(pixels)
        torch.testing.assert_close(
            changed, VlmLoss(model, processor, PROMPT, ["a red cat", "a dog"])(pixels), rtol=1e-6, atol=1e-6
        )
    assert not torch.allclose(changed, first)


def test_the_prefix_is_computed_once() -> None:
    """Two calls, one forward over the text before the image."""
    model, processor = TINY["LlavaNext"].model(), TINY["LlavaNext"].processor()
    widths: list[int] = []
    model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[0]))
    calls: list[int] = []
    embedding = model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, args, out: calls.append(int(args[0].shape[1])))
    loss = VlmLoss(model, processor, PROMPT, ["a red cat"] * 3)
    with torch.no_grad():
        loss(images(3))
        loss(images(3))
    assert calls[0] == 3 and len(calls) == 3 and calls[1] == calls[2]  # <bos> user :


@pytest.mark.parametrize("family", ["LlavaNext", "Idefics"])
def test_answers_in_a_batch_are_those_one_by_one(family: str) -> None:
    tiny = TINY[family]
    model, processor = tiny.model(), tiny.processor()
    pixels, prompts = images(3, 40, 60), [PROMPT, "<image> :", "user : a <image> in short words assistant :"]
    together = generate_text(model, processor, pixels, prompts, max_new_tokens=4)
    alone = [generate_text(model, processor, pixels[i : i + 1], prompts[i], max_new_tokens=4)[0] for i in range(3)]
    assert together == alone


def test_the_random_image_of_the_probe_is_like_a_photograph() -> None:
    from fare_hf.vlm.swap.proof import probe_images

    small, large = probe_images(2, 32), probe_images(2, 224)
    assert 0 <= float(large.min()) and float(large.max()) <= 1 and small.shape == (2, 3, 32, 32)
    assert math.isclose(float(small.mean()), float(large.mean()), abs_tol=0.01)
    assert family_of(llava()).vlm_class == "LlavaForConditionalGeneration"
