"""Square, universal perturbations, the ensemble, stopping, resuming: promises kept, the reference not beaten."""

from __future__ import annotations

import pytest
import torch
from helpers import small_nets
from pyautoattack.square import SquareAttack
from torch import Tensor, nn

from fare_hf.attacks import (
    ApgdResult,
    ClassifierLoss,
    ThreatModel,
    apgd,
    apply_universal,
    autoattack,
    class_stages,
    cross_entropy,
    pgd,
    square,
    universal_perturbation,
)
from fare_hf.attacks.square import bump, window_share

THREATS = [ThreatModel("linf", "6/255"), ThreatModel("l2", 0.4)]
SIDE = 10


def problem(classes: int = 10, samples: int = 80) -> tuple[nn.Module, Tensor, Tensor]:
    return small_nets.problem(3, SIDE, classes, samples)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def robust(net: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    return (net(pixels).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_square_is_as_strong_as_the_reference(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    norm = {"linf": "Linf", "l2": "L2"}[threat_model.norm]
    reference = SquareAttack(net, norm=norm, n_queries=150, eps=threat_model.eps, seed=0, resc_schedule=False)
    reference.init_hyperparam(pixels)
    torch.manual_seed(0)
    expected = robust(net, reference.attack_single_run(pixels, labels)[1], labels)
    found = square(ClassifierLoss(net, labels, "margin"), pixels, threat_model, queries=150, generator=seeded())
    threat_model.check(found.pixels, pixels)
    assert 0.05 < expected < 0.95  # a problem on which attacks differ
    # Two random searches from different random numbers: a binomial standard error of 80 images is 0.055.
    assert robust(net, found.pixels, labels) <= expected + 0.11
    assert found.success is not None
    assert torch.equal(found.success, net(found.pixels).argmax(1) != labels)
    assert (found.queries[~found.success] == 151).all() and (found.queries >= 1).all()


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_square_does_not_depend_on_who_is_left(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    pixels, labels = pixels[:12], labels[:12]
    whole = ClassifierLoss(net, labels, "margin")
    found = square(whole, pixels, threat_model, queries=40, generator=seeded())
    kept = square(lambda z: whole(z), pixels, threat_model, queries=40, generator=seeded())  # no select
    assert found.success is not None and found.success.any() and not found.success.all()
    assert torch.equal(found.pixels, kept.pixels) and torch.equal(found.queries, kept.queries)
    sizes: list[int] = []

    class Counted(ClassifierLoss):
        def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(z))
            return super().__call__(z)

        def select(self, rows: Tensor) -> ClassifierLoss:
            return Counted(self.logits_of, self.labels[rows], self.kind)

    square(Counted(net, labels, "margin"), pixels, threat_model, queries=40, generator=seeded())
    assert sum(sizes) == int(found.queries.sum())  # finished samples cost nothing


def test_square_schedule_and_pattern_are_the_papers() -> None:
    shares = {0: 0.8, 10: 0.8, 11: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 9000: 0.8 / 512}
    assert all(window_share(query, 0.8) == pytest.approx(share) for query, share in shares.items())
    pattern = bump(3, 5)
    assert pattern.norm() == pytest.approx(1)
    assert pattern.argmax() == 1 * 5 + 2 and pattern[0, 0] == pattern.min()


def test_square_without_success() -> None:
    net, pixels, labels = problem()
    pixels, labels = pixels[:3], labels[:3]
    found = square(lambda z: cross_entropy(net(z), labels), pixels, THREATS[0], queries=5)
    assert found.success is None and found.queries.tolist() == [6, 6, 6]
    assert torch.equal(found.loss, cross_entropy(net(found.pixels), labels))


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_stopping_fooled_samples_fools_the_same_and_costs_less(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    cost = {"stop": 0, "go": 0}

    class Counted(ClassifierLoss):
        mode = "go"

        def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
            cost[self.mode] += len(z)
            return super().__call__(z)

        def select(self, rows: Tensor) -> ClassifierLoss:
            part = Counted(self.logits_of, self.labels[rows])
            part.mode = self.mode
            return part

    def run(stop: bool) -> ApgdResult:
        loss = Counted(net, labels)
        loss.mode = "stop" if stop else "go"
        return apgd(loss, pixels, threat_model, steps=20, restarts=2, generator=seeded(), stop_fooled=stop)

    stopped, full = run(True), run(False)
    assert stopped.success is not None and full.success is not None
    assert torch.equal(stopped.success, full.success)
    assert torch.equal(net(stopped.pixels).argmax(1) != labels, stopped.success)
    threat_model.check(stopped.pixels, pixels)
    left = ~stopped.success
    assert torch.allclose(stopped.loss[left], full.loss[left], atol=1e-4)
    assert cost["stop"] < 0.7 * cost["go"]


@pytest.mark.parametrize("stop", [False, True])
def test_a_resumed_run_ends_with_the_same_bits(stop: bool) -> None:
    net, pixels, labels = problem()
    pixels, labels = pixels[:20], labels[:20]
    loss, options = ClassifierLoss(net, labels), {"steps": 23, "stop_fooled": stop}
    states: list[dict[str, Tensor]] = []
    whole = apgd(loss, pixels, THREATS[0], save=states.append, save_every=8, **options)
    assert [state["step"].tolist() for state in states] == [[8, 23], [16, 23]]
    for state in states:
        again = apgd(loss, pixels, THREATS[0], resume=state, **options)
        assert torch.equal(again.pixels, whole.pixels) and torch.equal(again.loss, whole.loss)
    with pytest.raises(ValueError, match="saved state is of 23 steps"):
        apgd(loss, pixels, THREATS[0], steps=24, resume=states[0])
    with pytest.raises(ValueError, match="one at a time"):
        apgd(loss, pixels, THREATS[0], steps=23, restarts=2, resume=states[0])


def test_targeted_pgd_and_apgd_reach_the_target() -> None:
    net, pixels, labels = problem()
    targets = (labels + 1) % 10
    loss, threat = ClassifierLoss(net, labels, "towards", targets=targets), ThreatModel("linf", "96/255")
    points = pgd(loss, pixels, threat, steps=20, step_size="12/255")
    assert (net(points).argmax(1) == targets).float().mean() > 0.7
    found = apgd(loss, pixels, threat, steps=20)
    assert found.success is not None and torch.equal(net(found.pixels).argmax(1) == targets, found.success)


@pytest.mark.parametrize("threat_model", THREATS, ids=str)
def test_universal_change_beats_random_noise_on_images_it_never_saw(threat_model: ThreatModel) -> None:
    net, pixels, labels = problem()
    seen, unseen = slice(0, 60), slice(60, 80)

    def loss_of(batch: list[int]) -> ClassifierLoss:
        return ClassifierLoss(net, labels[seen][batch])

    options = {"epochs": 10, "step_size": threat_model.eps / 8, "batch_size": 20}
    change = universal_perturbation(loss_of, pixels[seen], threat_model, generator=seeded(), **options)
    again = universal_perturbation(loss_of, pixels[seen], threat_model, generator=seeded(), **options)
    assert torch.equal(change, again) and change.shape == (3, SIDE, SIDE)
    points = apply_universal(pixels, change, threat_model)
    threat_model.check(points, pixels)
    noise = threat_model.random_start(pixels, seeded())
    for part in (seen, unseen):
        losses = [cross_entropy(net(z[part]), labels[part]).mean() for z in (points, noise)]
        assert losses[0] > losses[1]


def test_ensemble_leaves_nobody_unattacked_and_names_itself() -> None:
    net, pixels, labels = problem()
    labels = labels.clone()
    labels[:4] = (labels[:4] + 1) % 10
    threat = ThreatModel("linf", "2/255")
    result = autoattack(net, pixels, labels, threat, steps=10, target_classes=2, queries=30, batch_size=32)
    assert result.name == "apgd-ce+apgd-t2+fab-t2+square"
    assert list(result.accuracy) == ["clean", "apgd-ce", "apgd-t1", "apgd-t2", "fab-t1", "fab-t2", "square"]
    values = list(result.accuracy.values())
    assert values == sorted(values, reverse=True) and values[0] == pytest.approx(0.95)
    threat.check(result.pixels, pixels)
    assert torch.equal(net(result.pixels).argmax(1) != labels, result.success)
    assert torch.equal(result.pixels[:4], pixels[:4])  # wrong already: not attacked
    paper = autoattack(net, pixels, labels, threat, version="paper", steps=10, target_classes=2, batch_size=32)
    assert paper.name == "apgd-ce+apgd-t2" and torch.equal(paper.success & result.success, paper.success)


@pytest.mark.parametrize(
    ("classes", "paper", "fabs", "notes"),
    [
        (2, ["apgd-ce"], 1, ["no DLR", "2 classes: 1 targets, not 9"]),
        (3, ["apgd-ce", "apgd-dlr"], 2, ["untargeted DLR", "3 classes: 2 targets, not 9"]),
        (4, ["apgd-ce", *(f"apgd-t{rank}" for rank in range(1, 4))], 3, ["4 classes: 3 targets"]),
        (10, ["apgd-ce", *(f"apgd-t{rank}" for rank in range(1, 10))], 9, []),
        (11, ["apgd-ce", *(f"apgd-t{rank}" for rank in range(1, 10))], 9, []),
    ],
)
def test_few_classes(classes: int, paper: list[str], fabs: int, notes: list[str]) -> None:
    white, _ = class_stages(classes)
    assert [stage.name for stage in white] == paper
    stages, said = class_stages(classes, version="standard")
    assert [stage.name for stage in stages] == [*paper, *(f"fab-t{r}" for r in range(1, fabs + 1)), "square"]
    assert len(said) == len(notes) and all(part in note for part, note in zip(notes, said, strict=True))
    if classes < 4:
        net, pixels, labels = problem(classes, 6)
        result = autoattack(net, pixels, labels, THREATS[0], steps=2, queries=2)
        assert result.notes == said and result.name == "+".join([*paper, f"fab-t{fabs}", "square"])
