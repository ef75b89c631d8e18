"""PGD against closed forms, brute force and a literal reference; and that it leaves no trace."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fare_hf.attacks import ThreatModel, apgd, cross_entropy, pgd

THREATS = [ThreatModel("linf", "8/255"), ThreatModel("l2", 0.3)]


def small_net(seed: int = 0, classes: int = 5) -> nn.Module:
    """A convolutional classifier of 8 px images, with dropout so that its mode matters."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 64, classes)]
    return nn.Sequential(*layers).eval()


def batch(samples: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 3, 8, 8, generator=generator), torch.arange(samples) % 5


def grid_optimum(loss_fn: Any, pixels: Tensor, threat_model: ThreatModel, points: int = 201) -> Tensor:
    """The largest loss of each two-pixel image over a dense grid of its threat model."""
    offsets = torch.linspace(-threat_model.eps, threat_model.eps, points)
    grid = torch.cartesian_prod(offsets, offsets).view(-1, 1, 1, 2)
    best = []
    for pixel in pixels:
        candidates = pixel[None] + grid
        inside = (candidates >= 0).all(-1) & (candidates <= 1).all(-1)
        if threat_model.norm == "l2":
            inside &= grid.norm(dim=-1) <= threat_model.eps
        best.append(loss_fn(candidates[inside.flatten()]).max())
    return torch.stack(best)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_linear_loss_reaches_its_closed_form(norm: str) -> None:
    pixels, _ = batch()
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    if norm == "linf":
        threat_model = ThreatModel(norm, "8/255")
        best = (pixels + threat_model.eps * weights.sign()).clamp(0, 1)
    else:
        pixels = pixels * 0.5 + 0.25  # the ball lies inside the box, or there is no closed form
        threat_model = ThreatModel(norm, 0.2)
        best = pixels + threat_model.eps * weights / weights.norm()
    found = pgd(lambda z: (weights * z).sum((1, 2, 3)), pixels, threat_model, steps=40, step_size=threat_model.eps / 4)
    assert torch.allclose(found, best, atol=2e-5)


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(3))
def test_two_pixel_network_reaches_the_grid_optimum(attack: str, norm: str, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0))
    # Under l2 the ball stays inside the box: scaling and then cutting is no exact projection onto both.
    pixels = torch.rand(8, 1, 1, 2) if norm == "linf" else 0.15 + 0.7 * torch.rand(8, 1, 1, 2)
    threat_model = ThreatModel(norm, 0.1)
    generator = torch.Generator().manual_seed(0)
    if attack == "pgd":  # the best of a few starts, because the loss has local maxima
        runs = [pgd(net, pixels, threat_model, steps=60, step_size=0.004, generator=generator) for _ in range(6)]
    else:
        runs = [apgd(net, pixels, threat_model, steps=40, restarts=6, generator=generator).pixels]
    with torch.no_grad():
        optimum, clean = grid_optimum(net, pixels, threat_model), net(pixels)
        reached = torch.stack([net(found) for found in runs]).amax(0)
    assert ((reached - clean) >= 0.98 * (optimum - clean)).all()


def literal_pgd(net: nn.Module, x: Tensor, y: Tensor, start: Tensor, threat_model: ThreatModel, step: float) -> Tensor:
    """Five steps, written out in fp64 the way textbooks do."""
    z = start.double()
    for _ in range(5):
        z = z.clone().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(net(z), y).sum(), z)[0]
        if threat_model.norm == "linf":
            z = torch.max(torch.min(z + step * gradient.sign(), x + threat_model.eps), x - threat_model.eps).clamp(
                0, 1
            )
        else:
            change = z + step * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) - x
            length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            z = (x + change * (threat_model.eps / length).clamp(max=1)).clamp(0, 1)
        z = z.detach()
    return z


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_equals_the_literal_algorithm(threat_model: ThreatModel) -> None:
    net, (pixels, labels) = small_net().double(), batch()
    start = threat_model.random_start(pixels, torch.Generator().manual_seed(3))
    step = threat_model.eps / 3
    expected = literal_pgd(net, pixels.double(), labels, start, threat_model, step)
    found = pgd(
        lambda z: cross_entropy(net(z.double()), labels), pixels, threat_model, steps=5, step_size=step, start=start
    )
    assert (found - expected).abs().max() < 1e-5
    drawn = pgd(
        lambda z: cross_entropy(net(z.double()), labels),
        pixels,
        threat_model,
        steps=5,
        step_size=step,
        generator=torch.Generator().manual_seed(3),
    )
    assert torch.equal(found, drawn)


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_result_is_inside_and_worse(threat_model: ThreatModel, dtype: torch.dtype) -> None:
    net, (pixels, labels) = small_net(), batch()
    pixels = pixels.to(dtype)
    found = pgd(lambda z: cross_entropy(net(z), labels), pixels, threat_model, steps=5, step_size=threat_model.eps / 3)
    assert found.dtype == torch.float32 and not found.requires_grad
    threat_model.check(found, pixels)
    with torch.no_grad():
        assert (cross_entropy(net(found), labels) > cross_entropy(net(pixels.float()), labels)).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("threat_model", THREATS, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_nothing_is_left_behind(attack: str, threat_model: ThreatModel, training: bool) -> None:
    net, (pixels, labels) = small_net().train(training), batch()
    net[2].p = 0.0  # type: ignore[union-attr,assignment]
    next(iter(net.parameters())).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in net.parameters()]
    weights = [parameter.clone() for parameter in net.parameters()]
    clean, state = pixels.clone(), torch.get_rng_state()

    def loss_fn(z: Tensor) -> Tensor:
        assert torch.is_grad_enabled() or attack == "apgd"  # APGD's last evaluation needs no gradient
        return cross_entropy(net(z), labels)

    with torch.no_grad():
        if attack == "pgd":
            found = pgd(loss_fn, pixels, threat_model, steps=3, step_size="1/255")
        else:
            found = apgd(loss_fn, pixels, threat_model, steps=3, restarts=2).pixels
        assert not torch.is_grad_enabled()
    assert not found.requires_grad and found.data_ptr() != pixels.data_ptr()
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(torch.equal(*pair) for pair in zip(weights, net.parameters(), strict=True))
    assert all(module.training is training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pixels, clean) and not pixels.requires_grad and pixels.grad is None


def test_pixels_that_require_grad_get_none() -> None:
    net, (pixels, labels) = small_net(), batch()
    pixels.requires_grad_()
    pgd(lambda z: cross_entropy(net(z), labels), pixels, THREATS[0], steps=2, step_size="1/255")
    assert pixels.grad is None and pixels.requires_grad


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_same_seed_gives_the_same_bits(threat_model: ThreatModel) -> None:
    net, (pixels, labels) = small_net(), batch()

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        step_size = threat_model.eps / 4
        loss_fn = lambda z: cross_entropy(net(z), labels)  # noqa: E731
        return pgd(loss_fn, pixels, threat_model, steps=4, step_size=step_size, generator=generator)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_samples_do_not_see_each_other(threat_model: ThreatModel) -> None:
    net, (pixels, labels) = small_net().double(), batch()
    start = threat_model.random_start(pixels)

    def run(chosen: slice) -> Tensor:
        loss_fn = lambda z: cross_entropy(net(z.double()), labels[chosen])  # noqa: E731
        return pgd(loss_fn, pixels[chosen], threat_model, steps=5, step_size=threat_model.eps / 4, start=start[chosen])

    together = run(slice(None))
    alone = torch.cat([run(slice(index, index + 1)) for index in range(len(pixels))])
    assert torch.allclose(together, alone, atol=1e-6)


def test_zero_start_and_given_start() -> None:
    net, (pixels, labels) = small_net(), batch()
    seen: list[Tensor] = []

    def loss_fn(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return cross_entropy(net(z), labels)

    threat_model = THREATS[0]
    pgd(loss_fn, pixels, threat_model, steps=1, step_size="1/255", random_start=False)
    pgd(loss_fn, pixels, threat_model, steps=1, step_size="1/255")
    pgd(loss_fn, pixels, threat_model, steps=1, step_size="1/255", start=torch.ones_like(pixels))
    assert torch.equal(seen[0], pixels)
    assert ((seen[1] - pixels).abs() > 0).float().mean() > 0.99
    assert torch.equal(seen[2], threat_model.project(torch.ones_like(pixels), pixels))


def test_every_forward_is_used() -> None:
    net, (pixels, labels) = small_net(), batch()
    calls = Counter[str]()

    def loss_fn(z: Tensor) -> Tensor:
        calls["forward"] += 1
        return cross_entropy(net(z), labels)

    pgd(loss_fn, pixels, THREATS[0], steps=7, step_size="1/255")
    assert calls["forward"] == 7
    apgd(loss_fn, pixels, THREATS[0], steps=7)
    assert calls["forward"] == 7 + 8


class Syncs(TorchDispatchMode):
    """Counts the operations that bring a value to the host."""

    names = ("aten._local_scalar_dense", "aten.equal", "aten.nonzero", "aten.is_nonzero", "aten.masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(self.names)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("threat_model", THREATS, ids=str)
@pytest.mark.parametrize("given", [False, True])
def test_steps_cost_no_host_sync(attack: str, threat_model: ThreatModel, given: bool) -> None:
    net, (pixels, labels) = small_net(), batch()
    options = {"start": pixels.flip(0)} if given else {}
    counts = []

    def loss_fn(z: Tensor) -> Tensor:
        return cross_entropy(net(z), labels)

    for steps in (2, 30):
        with Syncs() as syncs:
            torch.zeros(1).item()  # the counter counts
            if attack == "pgd":
                pgd(loss_fn, pixels, threat_model, steps=steps, step_size="1/255", **options)
            else:
                apgd(loss_fn, pixels, threat_model, steps=steps, **options)
        counts.append(syncs.count)
    assert counts[0] == counts[1] >= 1


@pytest.mark.parametrize("attack", ["pgd", "apgd"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_gradient_names_step_and_samples(attack: str, bad: float) -> None:
    net, (pixels, labels) = small_net(), batch()
    calls = Counter[str]()

    def loss_fn(z: Tensor) -> Tensor:
        factor = torch.ones(len(z))
        if calls["forward"] >= 2:
            factor[[1, 4]] = bad
        calls["forward"] += 1
        return cross_entropy(net(z), labels) * factor

    with pytest.raises(ValueError, match=r"gradient in attack step 2 for samples \[1, 4\]"):
        if attack == "pgd":
            pgd(loss_fn, pixels, THREATS[0], steps=5, step_size="1/255")
        else:
            apgd(loss_fn, pixels, THREATS[0], steps=5)


GOOD: dict[str, Any] = {"steps": 2, "step_size": "1/255"}


@pytest.mark.parametrize("attack", [pgd, apgd])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_refused(attack: Any, bad: float) -> None:
    """The loss never reads the bad pixel, so no loss and no gradient would show it."""
    pixels = torch.full((2, 3, 8, 8), 0.5)
    start = pixels.clone()
    start[1, 2, 7, 7] = bad
    options = GOOD if attack is pgd else {"steps": 2}
    for threat_model in THREATS:
        with pytest.raises(ValueError, match="start has values that are NaN or infinite"):
            attack(lambda z: z[:, 0].sum((1, 2)), pixels, threat_model, start=start, **options)


def test_attacks_import_only_torch_and_the_standard_library() -> None:
    import ast
    import sys
    from pathlib import Path

    import fare_hf.attacks

    allowed = {"torch", *sys.stdlib_module_names}
    for path in Path(fare_hf.attacks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] in allowed or name.startswith(("fare_hf.attacks", "fare_hf.numerals")), (
                    path.name,
                    name,
                )
