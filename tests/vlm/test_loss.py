"""The loss of a LLaVA on given texts, and its greedy answers."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_llava import PROMPT, images, llava
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from fare_hf.data.pixels import to_pil
from fare_hf.encoders import frozen
from fare_hf.vlm import VlmLoss, generate_text

TEXTS = ["a red cat", "a photo of a green bird and a dog .", "blue"]


def own_loss(vlm: LlavaForConditionalGeneration, proc: LlavaProcessor, picture, prompt: str, text: str) -> float:
    """The model's own loss on the processor's output for one image, the prompt's labels ignored."""
    inputs = proc(images=picture, text=f"{prompt} {text}", return_tensors="pt")
    length = proc(images=picture, text=prompt, return_tensors="pt")["input_ids"].shape[1]
    labels = inputs["input_ids"].clone()
    labels[:, :length] = -100
    names = ("input_ids", "attention_mask", "pixel_values")
    with torch.no_grad():
        return float(vlm(**{name: inputs[name] for name in names}, labels=labels).loss)


def test_equals_the_models_own_loss_sample_by_sample(vlm, proc) -> None:
    pixels = images(3).mul(255).round().div(255)  # what survives the way through 8-bit pictures
    losses = VlmLoss(vlm, proc, PROMPT, TEXTS)(pixels)
    expected = [own_loss(vlm, proc, p, PROMPT, t) for p, t in zip(to_pil(pixels), TEXTS, strict=True)]
    torch.testing.assert_close(losses.detach(), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert len(set(expected)) == 3


def test_what_was_computed_in_half_precision_is_not_used_in_fp32(vlm, proc) -> None:
    """And the other way round: the beginning of the prompt is computed once for each precision."""
    pixels, halves = images(3), []
    one, other = (VlmLoss(vlm, proc, PROMPT, TEXTS) for _ in range(2))
    expected = one(pixels)
    for loss in (one, other):
        with torch.autocast("cpu", torch.bfloat16):
            halves.append(loss(pixels))
    assert torch.equal(*halves) and not torch.equal(halves[0], expected)
    assert torch.equal(other(pixels), expected)


def test_prompts_of_different_length_and_padding_change_nothing(vlm, proc) -> None:
    pixels = images(3)
    prompts = [PROMPT, "<image> :", "user : a <image> in short words assistant :"]
    together = VlmLoss(vlm, proc, prompts, TEXTS)(pixels)
    alone = [VlmLoss(vlm, proc, prompts[i], [TEXTS[i]])(pixels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_each_loss_depends_on_its_own_image_only(vlm, proc) -> None:
    loss, pixels = VlmLoss(vlm, proc, PROMPT, TEXTS), images(3).requires_grad_()
    gradient = torch.autograd.grad(loss(pixels)[1], pixels)[0]
    assert gradient[1].abs().sum() > 0
    assert gradient[0].abs().sum() == 0 and gradient[2].abs().sum() == 0


def test_gradient_equals_finite_differences(proc) -> None:
    vlm = llava()
    for layer in (*vlm.model.language_model.layers, vlm.model.language_model):
        for name in ("input_layernorm", "post_attention_layernorm", "norm"):
            if hasattr(layer, name):  # Llama's own norm rounds to fp32, which drowns the differences
                setattr(layer, name, torch.nn.RMSNorm(32, eps=1e-6))
    vlm.double()
    loss, pixels = VlmLoss(vlm, proc, PROMPT, TEXTS[:2]), images(2).double()
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3)).double()
    with frozen(vlm):
        point = pixels.clone().requires_grad_()
        slope = (torch.autograd.grad(loss(point).sum(), point)[0] * direction).flatten(1).sum(1)
        h = 1e-6
        difference = (loss(pixels + h * direction) - loss(pixels - h * direction)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-8)


def test_no_trace_on_the_model(vlm, proc) -> None:
    pixels = images(1).requires_grad_()
    with frozen(vlm):
        torch.autograd.grad(VlmLoss(vlm, proc, PROMPT, ["a dog"])(pixels).sum(), pixels)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vlm.parameters())


def test_select_gives_the_same_values(vlm, proc) -> None:
    pixels, loss = images(3), VlmLoss(vlm, proc, PROMPT, TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(loss.select([2, 0])(pixels[[2, 0]]), loss(pixels)[[2, 0]], rtol=1e-5, atol=1e-6)


def test_match_is_what_greedy_decoding_writes(vlm, proc) -> None:
    pixels = images(6, seed=5)
    said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=3)
    usable = [i for i, text in enumerate(said) if len(text.split()) == 3]
    assert usable
    texts = [said[i] for i in usable]
    with torch.no_grad():
        _, match = VlmLoss(vlm, proc, PROMPT, texts).with_match(pixels[usable])
        _, other = VlmLoss(vlm, proc, PROMPT, [f"{text} dog" for text in texts]).with_match(pixels[usable])
    assert match.all()
    longer = generate_text(vlm, proc, pixels[usable], PROMPT, max_new_tokens=4)
    assert [bool(flag) for flag in other] == [text.endswith(" dog") for text in longer]
    wrong = [" ".join([*text.split()[:-1], "cat" if text.endswith("bird") else "bird"]) for text in texts]
    assert not VlmLoss(vlm, proc, PROMPT, wrong).with_match(pixels[usable])[1].any()


def test_batched_greedy_text_equals_one_by_one(vlm, proc) -> None:
    pixels = images(5, seed=2)
    prompts = [PROMPT, "<image> :", "user : a <image> in short words assistant :", PROMPT, "<image> a"]
    together = generate_text(vlm, proc, pixels, prompts, max_new_tokens=8)
    alone = [generate_text(vlm, proc, pixels[i : i + 1], prompts[i], max_new_tokens=8)[0] for i in range(5)]
    assert together == alone
    assert len(set(together)) > 1


def test_text_equals_plain_transformers(vlm, proc) -> None:
    pixels = images(1, seed=4).mul(255).round().div(255)
    inputs = proc(images=to_pil(pixels), text=PROMPT, return_tensors="pt")
    names = ("input_ids", "attention_mask", "pixel_values")
    with torch.no_grad():
        tokens = vlm.generate(**{name: inputs[name] for name in names}, max_new_tokens=6, do_sample=False)
    expected = proc.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=6) == [expected.strip()]


def test_no_images_have_no_answers(vlm, proc) -> None:
    assert generate_text(vlm, proc, images(2)[:0], PROMPT) == []


def test_generation_restores_the_mode(proc) -> None:
    vlm = llava().train()
    generate_text(vlm, proc, images(1), PROMPT, max_new_tokens=2)
    assert all(module.training for module in vlm.modules())


def test_a_picture_for_pixels_is_one_sentence(vlm, proc) -> None:
    with pytest.raises(ValueError, match="pixels are of type Image: give a tensor .* or pictures to robust_pipeline"):
        generate_text(vlm, proc, to_pil(images(1))[0], PROMPT)
