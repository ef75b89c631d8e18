"""What every public attack returns lies in ball and box, whatever it was given; a saved state is of one run."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fare_hf.attacks import (
    ClassifierLoss,
    ThreatModel,
    apgd,
    apply_universal,
    autoattack,
    fab,
    pgd,
    square,
    universal_perturbation,
)

BALLS = [ThreatModel("linf", "8/255"), ThreatModel("l2", 0.5)]
CLEAN = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 1, 2])
WEIGHTS = torch.randn(192, 5, generator=torch.Generator().manual_seed(2))


def logits_of(pixels: Tensor) -> Tensor:
    """A linear classifier."""
    return pixels.flatten(1) @ WEIGHTS


LOSS = ClassifierLoss(logits_of, LABELS)
MARGIN = ClassifierLoss(logits_of, LABELS, "margin")
Attack = Callable[[ThreatModel, Tensor], Tensor]
ATTACKS: dict[str, Attack] = {
    "pgd": lambda ball, clean: pgd(LOSS, clean, ball, steps=3, step_size=min(ball.eps, 1.0)),
    "apgd": lambda ball, clean: apgd(LOSS, clean, ball, steps=5, restarts=2).pixels,
    "apgd, start": lambda ball, clean: apgd(LOSS, clean, ball, steps=5, start=1 - clean).pixels,
    "fab": lambda ball, clean: fab(MARGIN, clean, ball, steps=3, restarts=2).pixels,
    "square": lambda ball, clean: square(MARGIN, clean, ball, queries=5).pixels,
    "autoattack": lambda ball, clean: (
        autoattack(logits_of, clean, LABELS, ball, steps=3, queries=3, target_classes=2).pixels
    ),
    "universal": lambda ball, clean: apply_universal(
        clean,
        universal_perturbation(
            lambda rows: ClassifierLoss(logits_of, LABELS[rows]), clean, ball, epochs=2, step_size=min(ball.eps, 1.0)
        ),
        ball,
    ),
}


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_what_an_attack_returns_is_inside(name: str, ball: ThreatModel) -> None:
    points = ATTACKS[name](ball, CLEAN)
    assert points.dtype == torch.float32 and (ball.violation(points, CLEAN) == 0).all()
    assert not torch.equal(points, CLEAN)


@pytest.mark.parametrize("wrong", [1.5, float("nan")], ids=["outside", "NaN"])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_checks_what_it_returns(name: str, wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a projection that fails, nothing is returned: not 0.98, and not NaN."""
    ball = BALLS[0]

    def broken(self: ThreatModel, clean: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda points: points.add_(wrong)

    monkeypatch.setattr(ThreatModel, "projector", broken)
    module = importlib.import_module("fare_hf.attacks.fab")
    monkeypatch.setattr(module._Best, "inside", lambda self, rows=slice(None): self.distance[rows] > -1)
    monkeypatch.setattr(module, "_step", lambda points, *rest: points + wrong)
    with pytest.raises(ValueError, match="leaves the threat model linf 8/255|NaN"):
        ATTACKS[name](ball, CLEAN)


def test_a_loss_that_writes_on_its_pixels_is_noticed() -> None:
    def writes(pixels: Tensor) -> Tensor:
        loss = pixels.square().flatten(1).sum(1)
        pixels.data.fill_(0.98)
        return loss

    for ball in BALLS:
        with pytest.raises(ValueError, match="leaves the threat model"):
            apgd(writes, CLEAN, ball, steps=4)


def test_one_change_for_all_is_inside_the_ball_to_the_bit() -> None:
    """fp32(4/255) lies above 4/255."""
    for ball in (ThreatModel("linf", "4/255"), ThreatModel("l2", 0.5)):
        change = ball.shortened(torch.full((1, 3, 8, 8), 3.0))
        order = torch.inf if ball.norm == "linf" else 2
        assert 0.99 * ball.eps < torch.linalg.vector_norm(change.double(), ord=order) <= ball.eps
    with pytest.raises(ValueError, match="leaves the threat model"):
        apply_universal(CLEAN, torch.full((3, 8, 8), torch.nan), ball)


def state_of(ball: ThreatModel = BALLS[0], steps: int = 6, stop_fooled: bool = False) -> dict[str, Tensor]:
    """After four steps."""
    states: list[dict[str, Tensor]] = []
    loss = ClassifierLoss(logits_of, logits_of(CLEAN).argmax(1))
    apgd(loss, CLEAN, ball, steps=steps, save=states.append, save_every=4, stop_fooled=stop_fooled)
    return states[0]


@pytest.mark.parametrize("ball", BALLS, ids=str)
def test_a_state_goes_on_to_the_same_result(ball: ThreatModel) -> None:
    loss = ClassifierLoss(logits_of, logits_of(CLEAN).argmax(1))
    again = apgd(loss, CLEAN, ball, steps=6, resume=state_of(ball))
    assert torch.equal(again.pixels, apgd(loss, CLEAN, ball, steps=6).pixels)


@pytest.mark.parametrize("ball", BALLS, ids=str)
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pixels": 1 - CLEAN}, "is of other images, another threat model than"),
        ({"pixels": CLEAN[:2]}, "is of other images"),
        ({"threat_model": ThreatModel("linf", "1/255")}, "is of other images, another threat model than linf 1/255"),
        ({"threat_model": ThreatModel("l2", 0.25)}, "is of other images, another threat model than l2 0.25"),
        ({"stop_fooled": True}, "is of .*stop_fooled=True: resume the run that was saved"),
        ({"steps": 7}, "is of 6 steps, asked for are 7"),
    ],
)
def test_a_state_of_another_run_is_refused(changes: dict, sentence: str, ball: ThreatModel) -> None:
    """Went on before: 0.98 outside the ball of the new images."""
    options = {"pixels": CLEAN, "threat_model": ball, "steps": 6} | changes
    with pytest.raises(ValueError, match=f"the saved state {sentence}"):
        apgd(LOSS, options.pop("pixels"), options.pop("threat_model"), resume=state_of(ball), **options)


@pytest.mark.parametrize("value", [0.98, float("nan"), float("inf")])
@pytest.mark.parametrize("name", sorted(state_of()))
def test_an_edited_state_is_refused(name: str, value: float) -> None:
    state = state_of()
    edited = state[name].clone()
    edited.view(-1)[0] = (
        edited.view(-1)[0].logical_not()
        if edited.dtype == torch.bool
        else (value if edited.is_floating_point() else edited.view(-1)[0] + 1)
    )
    with pytest.raises(ValueError, match="was changed after it was saved|is of other images"):
        apgd(LOSS, CLEAN, BALLS[0], steps=6, resume=state | {name: edited})
    with pytest.raises(ValueError, match="was changed" if name == "best_success" else f"lacks .'{name}'"):
        apgd(LOSS, CLEAN, BALLS[0], steps=6, resume={key: t for key, t in state.items() if key != name})


def test_what_is_no_state_is_refused() -> None:
    for state in ({}, {"points": CLEAN}, state_of() | {"more": CLEAN}):
        with pytest.raises(ValueError, match="is no state of this version; delete it"):
            apgd(LOSS, CLEAN, BALLS[0], steps=6, resume=state)
