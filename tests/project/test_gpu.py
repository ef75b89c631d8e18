"""What must hold on a GPU as on a CPU; `examples/benchmarks/gpu.py` runs this file.

The forms for a CPU are slow tests: they show that the others would run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from helpers.syncs import counted_syncs
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import frozen, load_encoder
from fare_hf.encoders.float8 import float8_linears
from fare_hf.encoders.memory import count_memory
from fare_hf.encoders.precision import attack_mode
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot
from fare_hf.lab import encoder_folder, load_clip, load_llava, measure
from fare_hf.vlm import VlmLoss

HAS_GPU = torch.cuda.is_available()
GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="torch sees no GPU")]
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=GPU)]
BALL = ThreatModel("linf", "4/255")
MOST_WAITS = 10
"""Of the host for the GPU in an update: pixels, random start, loss, gradient, ball and weights are looked at."""


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_is_the_same_twice(device: str, clip_folder: Path, tmp_path: Path) -> None:
    logs = []
    for number in range(2):
        folder = str(tmp_path / str(number))
        trainer = tiny_trainer(str(clip_folder), folder, use_cpu=device == "cpu", logging_steps=1)
        trainer.train()
        assert trainer.model.device.type == device
        logs.append([line["loss"] for line in trainer.state.log_history if "loss" in line])
    assert len(logs[0]) == 4
    assert logs[0] == (logs[1] if device == "cpu" else pytest.approx(logs[1], rel=1e-3))


def syncs_of_a_training(device: str, folder: str, output: str, **options: Any) -> int:
    """How often the host waits in a training that logs nothing."""
    trainer = tiny_trainer(folder, output, use_cpu=device == "cpu", logging_strategy="no", **options)
    with counted_syncs(device) as syncs:
        trainer.train()
    return syncs.count


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_of_the_attack_makes_no_host_wait(device: str, clip_folder: Path, tmp_path: Path) -> None:
    """As CUDA itself tells it, of whole updates: a few for the checks of each batch, however many steps it takes."""
    count, waits = partial(syncs_of_a_training, device, str(clip_folder), str(tmp_path)), []
    for steps in (1, 6):
        waits.append(count(attack_steps=steps, max_steps=5) - count(attack_steps=steps, max_steps=2))
    assert waits[0] == waits[1] and 0 < waits[0] <= 3 * MOST_WAITS


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_shot_accuracies_are_the_same(device: str, dtype: torch.dtype) -> None:
    """Of a robust encoder, whose attacked accuracy is neither 0 nor 1; one image may fall on the other side."""
    test = measure.part("twemoji", 32)
    found = []
    for where, precision in (("cpu", torch.float32), (device, dtype)):
        encoder = load_encoder(str(encoder_folder("fare-4"))).to(where, precision)
        rows = evaluate_zero_shot(
            encoder,
            measure.text_embeddings(load_clip(), test),
            test.pixels,
            test.labels,
            normalization=measure.lab_normalization(),
            model="fare-4",
            dataset="twemoji",
            threat_models=[BALL],
            attack="apgd-ce",
            steps=5,
        ).rows
        found.append([row.value for row in rows])
    assert 0 < found[0][1] < found[0][0]
    assert found[1] == pytest.approx(found[0], abs=1.5 / len(test))


@pytest.mark.parametrize("device", DEVICES)
def test_a_vlm_is_attacked_as_elsewhere(device: str) -> None:
    """Loss and pixels: the attack stays in its ball, and finds as large a loss."""
    test, losses = measure.part("twemoji", 4), []
    for where in ("cpu", device):
        vlm, processor = load_llava()
        vlm.to(where)
        loss = VlmLoss(vlm, processor, measure.PROMPT, ["a photo of a cat"] * 4)
        with frozen(vlm):
            found = apgd(loss, test.pixels.to(where), BALL, steps=5)
            losses.append(torch.stack([loss(test.pixels.to(where)), loss(found.pixels)]).cpu())
        assert (found.pixels.cpu() - test.pixels).abs().max() <= BALL.eps + 1e-6
    torch.testing.assert_close(losses[1][0], losses[0][0], rtol=1e-3, atol=1e-3)
    assert (losses[1][1] > losses[1][0]).all()
    assert losses[1][1].mean().item() == pytest.approx(losses[0][1].mean().item(), rel=0.05)


@pytest.mark.parametrize("device", DEVICES)
def test_eight_bits_give_the_gradient_of_fp32(device: str) -> None:
    """Forward and input gradient of a linear layer of every kind of scale."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32).requires_grad_(False).to(device)
    found = []
    for module in (layer, None):
        values = torch.randn(48, 64, generator=torch.Generator().manual_seed(1)).to(device).requires_grad_()
        if module is None:
            with float8_linears(layer):
                output = layer(values).float()
        else:
            output = layer(values)
        (gradient,) = torch.autograd.grad(output.square().sum(), values)
        found.append((output.detach(), gradient))
    for exact, eight in zip(*found, strict=True):
        assert torch.nn.functional.cosine_similarity(exact.flatten(), eight.flatten(), dim=0) > 0.99
        assert not torch.equal(exact, eight)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="torch sees no GPU")
def test_the_attack_takes_the_memory_that_is_foretold() -> None:
    shape = CLIPVisionConfig(num_hidden_layers=6, projection_dim=512)
    encoder, batch = CLIPVisionModelWithProjection(shape).cuda(), 64
    pixels = torch.rand(batch, 3, 224, 224, device="cuda", requires_grad=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with attack_mode(encoder, torch.bfloat16), torch.autocast("cuda", torch.bfloat16):
        output: Any = encoder(pixel_values=pixels)
        torch.autograd.grad(output.image_embeds.sum(), pixels)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak == pytest.approx(count_memory(shape, batch, half=True).attack, rel=0.3)
