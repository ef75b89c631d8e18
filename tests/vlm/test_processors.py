"""Processors with ways of their own: AyaVision's tiles, PaliGemma's marked answers, Gemma 3's close-ups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_llava import SIZE
from helpers.tiny_vlms import TINY, gemma3_processor, images
from helpers.vlm_capabilities import inputs_of, own_loss

from fare_hf.data.pixels import quantize, to_pil
from fare_hf.vlm import VlmLoss, generate_text
from fare_hf.vlm.families.table import family_named

GEMMA = family_named(["Gemma3ForConditionalGeneration"])
OWN_WAYS = ("AyaVision", "PaliGemma", "Gemma3")
SLOW = pytest.mark.slow
BUT_ONE_SLOW = [pytest.param("AyaVision", marks=SLOW), "PaliGemma", pytest.param("Gemma3", marks=SLOW)]
CLOSE_UPS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 16,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def made(family: str) -> tuple[Any, Any, str]:
    """Model, processor and prompt."""
    tiny = TINY[family]
    return tiny.model(), tiny.processor(), tiny.prompt


def looking_closer() -> Any:
    """Gemma 3's processor with its "pan and scan" switched on, as a user does it."""
    processor = gemma3_processor()
    processor.images_kwargs = {**processor.images_kwargs, **CLOSE_UPS}
    return processor


@pytest.mark.parametrize("family", BUT_ONE_SLOW)
def test_answers_are_those_of_plain_transformers(family: str) -> None:
    """A batch of two, through pixels, against the processor and `generate`, one after the other."""
    model, processor, prompt = made(family)
    pixels = quantize(images(2, SIZE, SIZE, seed=4))
    expected = []
    for picture in to_pil(pixels):
        inputs = inputs_of(processor, picture, prompt)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        answer = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        expected.append(answer.strip())
    assert generate_text(model, processor, pixels, prompt, max_new_tokens=5) == expected
    assert any(expected)


@pytest.mark.parametrize("family", BUT_ONE_SLOW)
def test_prompts_of_different_length_and_padding_change_nothing(family: str) -> None:
    model, processor, prompt = made(family)
    pixels, texts = images(2, 40, 60), ["a red cat", "a photo of a green bird and a dog ."]
    prompts = [prompt, f"{TINY[family].image} :"]
    together = VlmLoss(model, processor, prompts, texts)(pixels)
    alone = [VlmLoss(model, processor, prompts[i], [texts[i]])(pixels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)
    chosen = VlmLoss(model, processor, prompts, texts).select([1])(pixels[1:])
    torch.testing.assert_close(chosen, together[1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", BUT_ONE_SLOW)
def test_each_loss_depends_on_its_own_image_only(family: str) -> None:
    model, processor, prompt = made(family)
    pixels = images(2, 40, 60).requires_grad_()
    gradient = torch.autograd.grad(VlmLoss(model, processor, prompt, ["a dog", "a cat"])(pixels)[1], pixels)[0]
    assert gradient[1].abs().sum() > 0 and gradient[0].abs().sum() == 0


def test_paligemma_does_not_read_its_answer_ahead() -> None:
    """The prompt is read in both directions: an answer that were read so would know itself."""
    model, processor, prompt = made("PaliGemma")
    pixels = images(2)[:1].expand(2, -1, -1, -1)
    logits, labels = VlmLoss(model, processor, prompt, ["a red cat", "a red dog"]).logits(pixels)
    assert labels[0].tolist() != labels[1].tolist()
    torch.testing.assert_close(logits[0, :3], logits[1, :3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(32, 100), (100, 32), (64, 90), (40, 40), (15, 60), (33, 131)])
def test_gemma3_close_ups_are_the_processors(height: int, width: int) -> None:
    processor = looking_closer()
    pixels = quantize(images(1, height, width, seed=2))
    theirs = np.asarray(processor.image_processor(to_pil(pixels)[0], return_tensors="pt", **CLOSE_UPS)["pixel_values"])
    ours = GEMMA.inputs(GEMMA.settings(processor), pixels)["pixel_values"]
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, torch.as_tensor(theirs), rtol=0, atol=2 * 1.5 / 255)


def test_gemma3_losses_with_close_ups_are_the_models_own() -> None:
    model, processor, prompt = TINY["Gemma3"].model(), looking_closer(), TINY["Gemma3"].prompt
    pixels, texts = quantize(images(2, 32, 96, seed=5)), ["a red cat", "a dog"]
    loss = VlmLoss(model, processor, prompt, texts)
    expected = [own_loss(model, processor, p, prompt, t) for p, t in zip(to_pil(pixels), texts, strict=True)]
    torch.testing.assert_close(loss(pixels).detach(), torch.tensor(expected), rtol=5e-2, atol=5e-2)
    pictures = GEMMA.inputs(GEMMA.settings(processor), pixels)["pixel_values"]
    assert len(pictures) == 2 * 4 and loss.logits(pixels)[1].shape[1] > 0  # three close-ups of each, with their tokens
