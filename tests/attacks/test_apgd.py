"""APGD against the reference implementation and its own promises."""

from __future__ import annotations

import copy
import math
from collections import Counter
from functools import cache

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from fare_hf.attacks import LossFn, ThreatModel, apgd, cross_entropy, dlr, targeted_dlr
from fare_hf.attacks.apgd import checkpoints

THREATS = [ThreatModel("linf", "4/255"), ThreatModel("l2", 0.3)]
REFERENCE_NORM = {"linf": "Linf", "l2": "L2"}
SAMPLES, STEPS = 500, 30


@cache
def problem(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A random convolutional net with 10 classes, images, and its own predictions as labels."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    net = nn.Sequential(*layers).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.mul_(1.5)
    pixels = torch.rand(SAMPLES, 3, 8, 8)
    return net, pixels, net(pixels).argmax(1)


def attacked(net: nn.Module, labels: Tensor, kind: str, targets: Tensor | None = None) -> LossFn:
    def loss_fn(z: Tensor) -> tuple[Tensor, Tensor]:
        logits = net(z)
        losses = {"ce": cross_entropy, "dlr": dlr}
        loss = losses[kind](logits, labels) if targets is None else targeted_dlr(logits, labels, targets)
        return loss, logits.argmax(1) != labels

    return loss_fn


def accuracy(net: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    return (net(pixels).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
@pytest.mark.parametrize("kind", ["ce", "dlr"])
def test_no_weaker_than_the_reference(threat_model: ThreatModel, kind: str) -> None:
    net, pixels, labels = problem(1)
    norm = REFERENCE_NORM[threat_model.norm]
    reference = APGDAttack(net, n_iter=STEPS, norm=norm, eps=threat_model.eps, seed=0, loss=kind, device="cpu")
    expected = accuracy(net, reference.perturb(pixels, labels), labels)
    generator = torch.Generator().manual_seed(0)
    result = apgd(attacked(net, labels, kind), pixels, threat_model, steps=STEPS, generator=generator)
    assert accuracy(net, result.pixels, labels) <= expected + 0.002 + 1e-9
    assert 0.05 < expected < 0.95  # a problem on which attacks differ
    threat_model.check(result.pixels, pixels)


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_targeted_dlr_no_weaker_than_the_reference(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem(1)
    reference = APGDAttack_targeted(
        net,
        n_iter=STEPS,
        norm=REFERENCE_NORM[threat_model.norm],
        eps=threat_model.eps,
        seed=0,
        device="cpu",
        n_target_classes=2,
    )
    expected = accuracy(net, reference.perturb(pixels, labels), labels)
    generator = torch.Generator().manual_seed(0)
    robust = torch.ones(SAMPLES, dtype=torch.bool)
    ranked = net(pixels).argsort(dim=1, descending=True)
    for rank in (1, 2):
        loss_fn = attacked(net, labels, "targeted", ranked[:, rank])
        result = apgd(loss_fn, pixels, threat_model, steps=STEPS, generator=generator)
        assert result.success is not None
        robust &= ~result.success
    assert robust.float().mean().item() <= expected + 0.002 + 1e-9


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_same_start_reaches_the_same_losses_as_the_reference(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem(2)
    pixels, labels = pixels[:100], labels[:100]
    start = threat_model.random_start(pixels)
    norm = REFERENCE_NORM[threat_model.norm]
    # With 100 steps the paper's checkpoints and those of its code are the same.
    reference = APGDAttack(net, n_iter=100, norm=norm, eps=threat_model.eps, loss="ce", device="cpu")
    reference.init_hyperparam(pixels)
    _, _, expected, _ = reference.attack_single_run(pixels, labels, x_init=start.clone())
    result = apgd(lambda z: cross_entropy(net(z), labels), pixels, threat_model, steps=100, start=start)
    assert result.success is None
    assert (result.loss - expected).abs().mean() < 2e-4
    assert torch.equal(result.loss, cross_entropy(net(result.pixels), labels))


def test_checkpoints_are_the_papers() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (1, 2, 5, 10, 33, 50, 1000):
        p = [0.0, 0.22]
        while p[-1] + max(p[-1] - p[-2] - 0.03, 0.06) <= 1 + 1e-9:
            p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        assert checkpoints(steps) == sorted({math.ceil(round(value * steps, 9)) for value in p[1:]})


def test_keeps_the_best_point_ever_evaluated() -> None:
    net, pixels, labels = problem(0)
    pixels, labels = pixels[:50], labels[:50]
    seen: list[Tensor] = []

    def loss_fn(z: Tensor) -> Tensor:
        loss = cross_entropy(net(z), labels)
        seen.append(loss.detach())
        return loss

    result = apgd(loss_fn, pixels, THREATS[0], steps=20, restarts=2)
    assert len(seen) == 2 * 21
    assert torch.equal(result.loss, torch.stack(seen).amax(0))


def test_prefers_a_fooling_point_to_a_higher_loss() -> None:
    pixels = torch.full((2, 3, 2, 2), 0.5)

    def loss_fn(z: Tensor) -> tuple[Tensor, Tensor]:
        mean = z.mean((1, 2, 3))
        return mean, torch.tensor([True, False]) & (mean < 0.55)  # fooled only where the loss is low

    start = torch.full_like(pixels, 0.42)
    result = apgd(loss_fn, pixels, ThreatModel("linf", 0.1), steps=10, start=start)
    assert result.success is not None and result.success.tolist() == [True, False]
    assert result.loss[0] < 0.55
    assert result.loss[1] == pytest.approx(0.6, abs=1e-6)
    assert torch.equal(loss_fn(result.pixels)[1], result.success)


def test_restarts_help_and_stop_when_all_are_fooled() -> None:
    net, pixels, labels = problem(1)
    counts = Counter[str]()

    def fooled_at_once(z: Tensor) -> tuple[Tensor, Tensor]:
        counts["calls"] += 1
        return cross_entropy(net(z), labels), torch.ones(len(z), dtype=torch.bool)

    apgd(fooled_at_once, pixels, THREATS[0], steps=2, restarts=5)
    assert counts["calls"] == 3
    once = apgd(attacked(net, labels, "ce"), pixels, THREATS[0], steps=5, generator=torch.Generator().manual_seed(0))
    thrice = apgd(
        attacked(net, labels, "ce"),
        pixels,
        THREATS[0],
        steps=5,
        restarts=3,
        generator=torch.Generator().manual_seed(0),
    )
    assert once.success is not None and thrice.success is not None
    assert (thrice.success | ~once.success).all() and thrice.success.sum() > once.success.sum()
    assert torch.equal(thrice.pixels[once.success], once.pixels[once.success])
    unfooled = ~thrice.success
    assert (thrice.loss[unfooled] >= once.loss[unfooled]).all()


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_samples_do_not_see_each_other(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem(0)
    pixels, labels, start = pixels[:5], labels[:5], threat_model.random_start(pixels[:5])

    def run(chosen: slice) -> Tensor:
        loss_fn = lambda z: cross_entropy(net(z), labels[chosen])  # noqa: E731
        return apgd(loss_fn, pixels[chosen], threat_model, steps=15, start=start[chosen]).loss

    alone = torch.cat([run(slice(index, index + 1)) for index in range(5)])
    assert torch.allclose(run(slice(None)), alone, atol=1e-5)


def test_same_seed_gives_the_same_bits() -> None:
    net, pixels, labels = problem(0)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        loss_fn = attacked(net, labels, "ce")
        return apgd(loss_fn, pixels, THREATS[0], steps=5, restarts=2, generator=generator).pixels

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_half_precision_pixels_and_models_stay_inside(threat_model: ThreatModel, dtype: torch.dtype) -> None:
    net, pixels, labels = problem(0)
    pixels, labels = pixels[:8].to(dtype), labels[:8]
    half = copy.deepcopy(net).to(torch.bfloat16)
    loss_fn = lambda z: cross_entropy(half(z.to(torch.bfloat16)), labels)  # noqa: E731
    result = apgd(loss_fn, pixels, threat_model, steps=5, restarts=2)
    assert result.pixels.dtype == result.loss.dtype == torch.float32
    threat_model.check(result.pixels, pixels)
