"""FAB: the projection it stands on, distances and robust accuracy beside the reference, and its promises."""

from __future__ import annotations

import pytest
import torch
from helpers import small_nets
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.fab_pt import FABAttack_PT
from torch import Tensor, nn

from fare_hf.attacks import ClassifierLoss, ThreatModel, fab
from fare_hf.attacks.fab import nearest_on_hyperplane
from fare_hf.attacks.threat_model import Norm

THREATS = [ThreatModel("linf", "5/255"), ThreatModel("l2", 0.3)]
ORDER = {"linf": torch.inf, "l2": 2}
SIDE = 8


def problem(classes: int = 10, samples: int = 120) -> tuple[nn.Module, Tensor, Tensor]:
    return small_nets.problem(4, SIDE, classes, samples)


def targeted(rank: int, samples: slice = slice(None)) -> ClassifierLoss:
    net, pixels, labels = problem()
    targets = net(pixels).argsort(dim=1, descending=True)[:, rank]
    return ClassifierLoss(net, labels[samples], "targeted-margin", targets=targets[samples])


def length(change: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(change.flatten(1), ord=ORDER[norm], dim=1)


def by_bisection(points: Tensor, normal: Tensor, gap: float, norm: Norm) -> Tensor:
    """The change of one point: how long coordinates move is found by halving an interval, in fp64."""
    direction = normal.sign() if norm == "linf" else normal
    low, high = torch.zeros((), dtype=torch.float64), torch.tensor(1e9, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        change = ((points + middle * direction).clamp(0, 1) - points) * (normal != 0)
        low, high = (middle, high) if (normal * change).sum() < gap else (low, middle)
    return ((points + high * direction).clamp(0, 1) - points) * (normal != 0)


@given(st.integers(0, 10_000), st.sampled_from(["linf", "l2"]), st.floats(-3, 3), st.sampled_from([1e-12, 1.0, 1e6]))
@settings(max_examples=80, deadline=None)
def test_the_nearest_point_of_a_hyperplane_in_the_box(seed: int, norm: Norm, gap: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(1, 12, generator=generator, dtype=torch.float64)
    points[0, :2] = torch.tensor([0.0, 1.0])  # on the edge of the box
    normal = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    normal[0, 2] = 0
    found = nearest_on_hyperplane(points, scale * normal, torch.tensor([scale * gap]).double(), norm)
    sign = -1.0 if gap < 0 else 1.0
    expected = by_bisection(points[0], sign * normal[0], abs(gap), norm)
    torch.testing.assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
    assert ((points + found) >= 0).all() and ((points + found) <= 1 + 1e-12).all() and found[0, 2] == 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_hyperplane_out_of_reach_is_approached_and_no_slope_stays(norm: Norm) -> None:
    points, normal = torch.tensor([[0.2, 0.7, 0.5]] * 2), torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    found = nearest_on_hyperplane(points, normal, torch.tensor([100.0, 1.0]), norm)
    torch.testing.assert_close(points + found, torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.7, 0.5]]))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_distances_are_at_most_the_references(threat_model: ThreatModel, rank: int) -> None:
    net, pixels, labels = problem()
    norm = {"linf": "Linf", "l2": "L2"}[threat_model.norm]
    reference = FABAttack_PT(net, norm=norm, n_iter=25, eps=threat_model.eps, targeted=True, device="cpu")
    reference.target_class = rank + 1
    points = reference.attack_single_run(pixels, labels, is_targeted=True)
    fooled, expected = net(points).argmax(1) != labels, length(points - pixels, threat_model.norm)
    found = fab(targeted(rank), pixels, threat_model, steps=25)
    assert fooled.all() and found.distance.isfinite().all()
    # Nearly always the same walk; the point after a step back counts here when it fools still.
    assert (found.distance <= 1.001 * expected).float().mean() > 0.98
    assert found.distance.mean() <= 1.0005 * expected.mean()
    robust = (expected > threat_model.eps).float().mean()
    assert 0.05 < robust < 0.98 and (~found.success).float().mean() <= robust + 1e-6
    torch.testing.assert_close(length(found.nearest - pixels, threat_model.norm), found.distance)
    assert torch.equal(net(found.nearest).argmax(1) != labels, torch.ones(len(pixels), dtype=torch.bool))


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_what_it_returns_keeps_to_the_threat_model(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    found = fab(targeted(2), pixels, threat_model, steps=20)
    threat_model.check(found.pixels, pixels)
    assert found.nearest.min() >= 0 and found.nearest.max() <= 1
    assert torch.equal(net(found.pixels).argmax(1) != labels, found.success)
    assert torch.equal(found.pixels[~found.success], pixels[~found.success])
    assert found.success.any() and not found.success.all()


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_finished_samples_cost_nothing(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    sizes: list[int] = []

    class Counted(ClassifierLoss):
        def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(z))
            return super().__call__(z)

        def select(self, rows: Tensor) -> ClassifierLoss:
            assert self.targets is not None
            return Counted(self.logits_of, self.labels[rows], self.kind, targets=self.targets[rows])

    plain = targeted(1)
    counted = Counted(net, labels, plain.kind, targets=plain.targets)
    options = {"steps": 12, "restarts": 2}
    stopped = fab(counted, pixels, threat_model, stop_fooled=True, **options)
    first = fab(plain, pixels, threat_model, steps=12)
    assert first.success.any() and not first.success.all()
    assert (stopped.success | ~first.success).all()  # nobody is lost by stopping early
    left = int((~stopped.success).sum())
    pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
    assert all(a == b for a, b in pairs) and len(pairs) == 24  # a gradient and a value a step
    assert sizes == sorted(sizes[:24], reverse=True) + sorted(sizes[24:], reverse=True)
    assert sizes[0] == len(pixels) and sizes[24] < len(pixels) and sizes[-1] == left


def test_restarts_only_help_and_leave_no_trace() -> None:
    net, pixels, _ = problem()
    state = torch.random.get_rng_state()
    with torch.no_grad():
        one = fab(targeted(1), pixels, THREATS[1], steps=6)
        three, again = (fab(targeted(1), pixels, THREATS[1], steps=6, restarts=3) for _ in range(2))
    assert (three.distance <= one.distance).all() and (three.distance < one.distance).any()
    assert torch.equal(three.pixels, again.pixels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_two_classes_and_who_is_wrong_already() -> None:
    net, pixels, labels = problem(2, 20)
    labels = labels.clone()
    labels[:3] = 1 - labels[:3]
    found = fab(ClassifierLoss(net, labels, "margin"), pixels, ThreatModel("linf", "2/255"), steps=10)
    assert (found.distance[:3] == 0).all() and torch.equal(found.pixels[:3], pixels[:3]) and found.success[:3].all()
    assert found.distance.isfinite().all() and (found.distance[3:] > 0).all()


def test_a_constant_classifier_is_never_fooled_and_bad_input_is_refused() -> None:
    net, pixels, labels = problem()

    def deaf(z: Tensor) -> tuple[Tensor, Tensor]:
        return (0 * z).sum((1, 2, 3)) - 1, torch.zeros(len(z), dtype=torch.bool)

    found = fab(deaf, pixels[:4], THREATS[0], steps=2, restarts=2)
    assert not found.success.any() and found.distance.isinf().all() and torch.equal(found.nearest, pixels[:4])
    plain = targeted(1, slice(0, 4))
    for call, message in (
        (lambda: fab(plain, pixels[:4], THREATS[0], steps=0), "steps 0 is not positive"),
        (lambda: fab(plain, pixels[:4], THREATS[0], restarts=0), "restarts 0 is not positive"),
        (lambda: fab(lambda z: plain(z)[0], pixels[:4], THREATS[0], steps=1), "gives no success"),
        (lambda: fab(lambda z: (plain(z)[0] * torch.nan, plain(z)[1]), pixels[:4], THREATS[0], steps=1), "NaN"),
        (lambda: fab(plain, pixels[:4] * 2, THREATS[0], steps=1), r"outside \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
