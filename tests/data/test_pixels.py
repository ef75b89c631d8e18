"""The pixel convention: agrees with transformers' processors, differentiable, and clear about bad input."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from PIL import Image
from transformers import CLIPImageProcessor

from fare_hf.data.pixels import Normalization, quantize, resize, to_pil, unnormalized


def picture(seed: int = 0) -> Image.Image:
    levels = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def test_normalising_pixels_equals_the_processor(processor: CLIPImageProcessor) -> None:
    expected = processor(picture(), return_tensors="pt")["pixel_values"]
    plain = unnormalized(processor)
    pixels = plain(picture(), return_tensors="pt")["pixel_values"]
    assert pixels.min() >= 0 and pixels.max() <= 1
    assert processor.do_normalize and not plain.do_normalize
    for source in (processor, SimpleNamespace(image_processor=processor)):
        assert torch.allclose(Normalization.from_processor(source)(pixels), expected, atol=1e-5)


def test_normalization_is_differentiable_even_if_first_used_in_inference_mode() -> None:
    normalization = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    with torch.inference_mode():
        normalization(torch.rand(1, 3, 2, 2))
    pixels = torch.rand(2, 3, 2, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(normalization(pixels).sum(), pixels)
    assert torch.allclose(gradient[:, :, 0, 0], torch.tensor([[5.0, 4.0, 2.0]] * 2))
    assert normalization(pixels.bfloat16()).dtype == torch.bfloat16


def test_resize_is_bicubic_in_the_box_and_differentiable() -> None:
    pixels = torch.rand(2, 3, 16, 16).round().requires_grad_()
    for size in (8, (24, 8)):
        resized = resize(pixels, size)
        assert resized.shape[-2:] == ((8, 8) if size == 8 else size)
        assert resized.min() >= 0 and resized.max() <= 1
        (gradient,) = torch.autograd.grad(resized.sum(), pixels)
        assert gradient.abs().sum() > 0
    assert resize(pixels, 16) is pixels


def test_pil_and_back() -> None:
    levels = torch.arange(256).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    pixels = levels / 255
    pictures = to_pil(pixels)
    assert len(pictures) == 2 and pictures[0].mode == "RGB"
    assert list(pictures[0].getdata(0)) == list(range(256))
    assert torch.equal(quantize(pixels), pixels)
    noisy = (pixels + 0.3 / 255).clamp(0, 1)
    assert torch.equal(quantize(noisy), pixels)
