"""Objectives against their formulas, and FARE's gradient against finite differences in fp64."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from fare_hf.encoders.reading import READINGS
from fare_hf.objectives import (
    OBJECTIVES,
    AgftObjective,
    AnchoredFareObjective,
    BoundedFareObjective,
    FareObjective,
    Objective,
    SimClipObjective,
    TecoaObjective,
)
from fare_hf.objectives.objective import update_images
from fare_hf.training import FareConfig


def never(pixels: Tensor) -> Tensor:
    raise AssertionError("the original encoder was run")


def test_fare_is_the_summed_squared_distance() -> None:
    embeddings, targets = torch.randn(3, 5), torch.randn(3, 5)
    expected = [
        sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in zip(embeddings, targets, strict=True)
    ]
    assert torch.allclose(FareObjective()(embeddings, targets), torch.stack(expected))


def test_fare_on_tokens_sums_dimensions_and_averages_tokens() -> None:
    embeddings, targets = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    expected = torch.stack([FareObjective()(embeddings[:, t], targets[:, t]) for t in range(7)]).mean(0)
    assert torch.allclose(FareObjective()(embeddings, targets), expected)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_fare_gradient_equals_finite_differences(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, math.prod(shape[1:]))).double()
    pixels = torch.rand(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(shape, dtype=torch.float64)

    def loss(values: Tensor) -> Tensor:
        return FareObjective()(net(values).view(shape), targets)

    assert torch.autograd.gradcheck(loss, (pixels,))
    (gradient,) = torch.autograd.grad(loss(pixels).sum(), pixels)
    for index in range(pixels.numel()):
        step = torch.zeros(pixels.numel(), dtype=torch.float64)
        step[index] = 1e-6
        moved = step.view_as(pixels)
        with torch.no_grad():
            slope = (loss(pixels + moved) - loss(pixels - moved)).sum() / 2e-6
        assert slope.item() == pytest.approx(gradient.flatten()[index].item(), rel=1e-6, abs=1e-8)


def test_fare_targets_are_the_originals_embeddings_without_a_graph() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    pixels = torch.rand(2, 3, 2, 2)
    targets = FareObjective().targets(pixels, None, net)
    assert torch.equal(targets, net(pixels)) and not targets.requires_grad


def test_fare_does_not_overflow_in_half_precision() -> None:
    loss = FareObjective()(torch.full((1, 768), 100.0).half(), torch.full((1, 768), -100.0).half())
    assert loss.dtype == torch.float32 and loss.item() == 768 * 200.0**2


def test_tecoa_is_the_cross_entropy_of_scaled_cosines() -> None:
    texts, images, labels = torch.randn(6, 5), torch.randn(3, 5), torch.tensor([0, 5, 2])
    objective = TecoaObjective(texts, logit_scale=20.0)
    targets = objective.targets(torch.rand(3, 3, 2, 2), labels, never)
    for image, label, loss in zip(images, labels, objective(images, targets), strict=True):
        cosines = [20 * torch.cosine_similarity(image, text, dim=0).item() for text in texts]
        expected = math.log(sum(math.exp(value) for value in cosines)) - cosines[label]
        assert loss.item() == pytest.approx(expected, abs=1e-4)
    assert torch.autograd.gradcheck(lambda e: objective(e, targets), (images.double().requires_grad_(),))


def test_sim_clip_is_one_minus_the_cosine_whatever_the_lengths() -> None:
    embeddings, targets = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    cosines = (embeddings * targets).sum(-1) / (embeddings.norm(dim=-1) * targets.norm(dim=-1))
    assert torch.allclose(SimClipObjective()(embeddings, targets), 1 - cosines.mean(1), atol=1e-6)
    assert torch.allclose(SimClipObjective()(3 * embeddings[:, 0], targets[:, 0]), 1 - cosines[:, 0], atol=1e-6)
    leaf = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e: SimClipObjective()(e, targets[:2, 0].double()), (leaf,))


def test_agft_is_the_cross_entropy_to_the_originals_softened_distribution() -> None:
    texts, clean, images = torch.randn(6, 5), torch.randn(3, 5), torch.randn(3, 5)
    objective = AgftObjective(texts, logit_scale=20.0, softening=0.5)
    targets = objective.targets(torch.rand(3, 3, 2, 2), None, lambda pixels: clean)
    units = texts / texts.norm(dim=1, keepdim=True)
    wanted = torch.softmax(0.5 * 20 * clean @ units.T / clean.norm(dim=1, keepdim=True), dim=1)
    predicted = torch.log_softmax(20 * images @ units.T / images.norm(dim=1, keepdim=True), dim=1)
    assert torch.allclose(targets, wanted, atol=1e-6)
    assert torch.allclose(objective(images, targets), -(wanted * predicted).sum(1), atol=1e-5)
    assert objective.settings() == {"logit scale": 20.0, "softening": 0.5}


def test_anchored_fare_is_fare_plus_the_divergence_from_the_originals_distribution_over_texts() -> None:
    texts, clean, images = (torch.randn(rows, 5, dtype=torch.float64) for rows in (6, 3, 3))
    objective = AnchoredFareObjective(texts, logit_scale=20.0, anchor_weight=0.3)
    targets = objective.targets(torch.rand(3, 3, 2, 2), None, lambda pixels: clean)
    units = texts / texts.norm(dim=1, keepdim=True)
    wanted, found = (torch.softmax(20 * e @ units.T / e.norm(dim=1, keepdim=True), 1) for e in (clean, images))
    moved = (wanted * (wanted / found).log()).sum(1)
    assert torch.allclose(objective(images, targets), (images - clean).square().sum(1) + 0.3 * moved)
    assert objective(clean, targets).abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda e: objective(e, targets), (images.requires_grad_(),))


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5)])
def test_bounded_fare_punishes_clean_embeddings_beyond_the_bound_alone(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    targets, attacked, moved = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    clean = targets + torch.tensor([0.0, 0.01, 1.0, 2.0]).view(4, *[1] * (len(shape) - 1)) * moved
    objective = BoundedFareObjective(bound=0.2, multiplier=3.0)
    for row in range(4):
        square = [(value[row] ** 2).sum(-1).mean() for value in (clean - targets, targets, attacked - targets)]
        expected = square[2] + 3 * max(square[0] - 0.2 * square[1], torch.tensor(0.0))
        one = slice(row, row + 1)
        assert objective.update(attacked[one], targets[one], clean[one]).item() == pytest.approx(expected.item())
    assert torch.equal(objective(attacked, targets), FareObjective()(attacked, targets))
    assert update_images(objective) == 2 and update_images(FareObjective()) == update_images(object()) == 1


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_says_what_others_ask_of_it(kind: type[Objective]) -> None:
    """Card, cost, recipe and command line read these; nothing else names an objective."""
    assert kind.name and kind.description.endswith(".") and kind.citation.startswith("@")
    assert set(kind.embeddings) <= set(READINGS) and kind.embeddings
    assert set(kind.options) <= {field.name for field in fields(FareConfig)}


class Texts:
    def embeddings(self) -> Tensor:
        return torch.eye(3)

    def logit_scale(self) -> float:
        return 7.0

    def logit_bias(self) -> float:
        return -3.0


@pytest.mark.parametrize("kind", OBJECTIVES.values(), ids=OBJECTIVES)
def test_what_an_objective_says_of_itself_is_what_it_does(kind: type[Objective]) -> None:
    objective, ran = kind.from_training(Texts(), dict.fromkeys(kind.options)), []

    def embed(pixels: Tensor) -> Tensor:
        ran.append(True)
        return torch.ones(2, 3)

    labels = torch.tensor([0, 2]) if kind.needs_labels else None
    targets = objective.targets(torch.rand(2, 3, 4, 4), labels, embed)
    assert bool(ran) is kind.runs_original
    losses = [objective(torch.rand(2, 3), targets)]
    losses += [objective.update(torch.rand(2, 3), targets, torch.rand(2, 3))] if kind.embeds_clean else []
    assert all(values.shape == (2,) and values.isfinite().all() for values in losses)
