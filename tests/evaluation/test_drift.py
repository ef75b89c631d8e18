"""Corruptions of a library, drift from the original, retrieval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers.noise_corruptions import with_corruptions
from helpers.tiny_llava import encoder, images, processor
from torch.nn import functional as F

from fare_hf.data.pixels import Normalization, quantize
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.zero_shot.classification import predict_zero_shot
from fare_hf.evaluation.zero_shot.corruptions import corrupt_pixels, corruption_names, evaluate_corruptions
from fare_hf.evaluation.zero_shot.drift import clean_drift, embed_images, retrieval_recall

NAMES = {"model": "CLIP", "dataset": "noise"}
EXTRA = "the corruptions are an extra of half a gigabyte: pip install imagecorruptions-imaug"


def normalization() -> Normalization:
    return Normalization.from_processor(processor())


def test_corruptions_are_the_librarys_and_leave_no_trace() -> None:
    corrupt = pytest.importorskip("imagecorruptions", reason=EXTRA, exc_type=ImportError).corrupt
    pixels = quantize(images(2))
    state = np.random.get_state()[1].copy()
    found = corrupt_pixels(pixels, "gaussian_noise", 3, seed=7)
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(found, quantize(found)) and found.shape == pixels.shape
    np.random.seed(8)
    expected = corrupt((pixels[1].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8), 3, "gaussian_noise")
    assert np.array_equal((found[1].permute(1, 2, 0).numpy() * 255).round(), expected)
    assert torch.equal(found, corrupt_pixels(pixels, "gaussian_noise", 3, seed=7))
    assert len(corruption_names()) == 15
    with pytest.raises(ValueError, match="corruption 'rain'"):
        corrupt_pixels(pixels, "rain", 1)
    with pytest.raises(ValueError, match="severity 6"):
        corrupt_pixels(pixels, "fog", 6)
    with pytest.raises(ValueError, match="32 x 32"):
        corrupt_pixels(pixels[..., :8], "fog", 1)


def test_accuracy_under_corruptions() -> None:
    pytest.importorskip("imagecorruptions", reason=EXTRA, exc_type=ImportError)
    text = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    pixels = quantize(images(12))
    labels = predict_zero_shot(encoder(), text, pixels, normalization(), batch_size=5)
    options = {"normalization": normalization(), "names": ["brightness", "contrast"], "severities": (1, 5), **NAMES}
    rows = evaluate_corruptions(encoder(), text, pixels, labels, **options).rows
    RobustnessReport(rows)
    assert [row.dataset for row in rows] == [
        "noise, brightness", "noise, contrast", "noise, mean of 2 corruptions"
    ]  # fmt: skip
    for name, row in zip(options["names"], rows, strict=False):
        right = [
            (predict_zero_shot(encoder(), text, corrupt_pixels(pixels, name, s), normalization()) == labels).float()
            for s in (1, 5)
        ]
        assert row.value == pytest.approx(torch.stack(right).mean().item())
    assert rows[2].value == pytest.approx((rows[0].value + rows[1].value) / 2)


@pytest.mark.parametrize("embedding", ["projected", "tokens"])
def test_drift_of_an_encoder_from_itself_and_from_another(embedding: str) -> None:
    one, other, pixels = encoder(), encoder(seed=1), images(6)
    options = {"normalization": normalization(), "embedding": embedding, "batch_size": 4, **NAMES}
    same = clean_drift(one, one, pixels, **options).rows
    RobustnessReport(same)
    assert same[0].value == pytest.approx(1.0, abs=1e-6) and same[1].value == 0.0
    with torch.no_grad():
        for mine, theirs in zip(other.parameters(), one.parameters(), strict=True):
            mine.copy_(theirs * 1.05)
    rows = clean_drift(other, one, pixels, **options).rows
    mine, theirs = (embed_images(model, pixels, normalization(), embedding) for model in (other, one))
    expected = ((mine - theirs).norm(dim=-1) / theirs.norm(dim=-1)).mean().item()
    assert rows[1].value == pytest.approx(expected, rel=1e-5) and rows[0].value < 1.0


def test_recall_is_counted_by_hand() -> None:
    images_, texts = torch.eye(3), torch.eye(3)[[0, 0, 2, 1]]
    texts[1, 2] = 0.5
    owner = [0, 1, 2, 1]  # the second caption of image 1 is wrong, the last is right
    rows = retrieval_recall(images_, texts, owner, at=(1, 2), **NAMES).rows
    RobustnessReport(rows)
    values = {row.metric: row.value for row in rows}
    assert values["image to text R@1"] == 1.0 and values["text to image R@1"] == 0.75
    assert rows[1].n == 4


def test_an_images_corruption_does_not_depend_on_its_batch() -> None:
    text = F.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    options: dict[str, Any] = {"normalization": normalization(), "names": ["gaussian_noise"], **NAMES}
    with with_corruptions():
        pixels = quantize(images(7))
        whole = corrupt_pixels(pixels, "gaussian_noise", 2, seed=5)
        assert not torch.equal(whole[0], whole[1]) and torch.equal(
            whole[3:], corrupt_pixels(pixels[3:], "gaussian_noise", 2, seed=8)
        )
        labels = predict_zero_shot(encoder(), text, whole, normalization())
        for batch in (3, 7):
            found = evaluate_corruptions(
                encoder(), text, pixels, labels, severities=(2,), seed=5, batch_size=batch, **options
            )
            assert found.rows[0].value == 1.0  # the very images that the labels were read from
