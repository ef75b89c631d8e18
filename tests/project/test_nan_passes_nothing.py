"""No verdict, interval or best value is passed by NaN; swaps and conversions have tests of their own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fare_hf.attacks import (
    ClassifierLoss,
    ThreatModel,
    apgd,
    autoattack,
    check_labels,
    fab,
    pgd,
    predicted_classes,
    square,
    targeted_margin,
)
from fare_hf.evaluation.report.intervals import bootstrap_interval, bootstrap_statistic, paired_interval
from fare_hf.evaluation.vlm.engine import VlmEngine
from fare_hf.evaluation.vlm.transfer import evaluate_transfer
from fare_hf.evaluation.zero_shot.drift import retrieval_recall
from fare_hf.evaluation.zero_shot.gradient_masking import check_gradient_masking
from fare_hf.hub.merge.write import WeightCosine

FOUR = ThreatModel("linf", "4/255")
NAN = math.nan
PIXELS = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
ZEROS = torch.zeros(3, dtype=torch.long)


def broken(value: float, once_moved: bool = False) -> Any:
    """Logits of 5 classes: all NaN, or one value, for every image, or only for those that are not the clean ones."""

    def logits_of(pixels: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, 5 * pixels[0].numel()).view(5, -1)
        logits = pixels.flatten(1) @ weights.T
        logits = logits - logits.detach() + torch.tensor([1.0, 0.5, 0.2, 0.1, 0.0])  # class 0
        moved = torch.tensor([not any(torch.equal(image, clean) for clean in PIXELS) for image in pixels])
        return torch.where((moved | (not once_moved))[:, None], logits * value, logits)

    return logits_of


@pytest.mark.parametrize("value", [NAN, math.inf])
@pytest.mark.parametrize("place", range(3))
def test_logits_that_are_not_finite_are_no_prediction(value: float, place: int) -> None:
    logits = torch.zeros(2, 3)
    logits[1, place] = value
    with pytest.raises(ValueError, match=r"the logits of samples \[1\] of a batch hold NaN or infinity"):
        predicted_classes(logits)
    logits[1, place] = -math.inf  # a class that is ruled out
    assert predicted_classes(logits).tolist() == [0, 1 if place == 0 else 0]


def test_a_model_of_nan_is_not_robust_on_class_0() -> None:
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        autoattack(broken(NAN), PIXELS, ZEROS, FOUR, version="paper", steps=2)
    with pytest.raises(ValueError, match="NaN"):
        autoattack(broken(NAN, once_moved=True), PIXELS, ZEROS, FOUR, version="paper", steps=2)


def test_a_masking_check_of_nan_does_not_pass() -> None:
    with pytest.raises(ValueError, match="NaN"):
        check_gradient_masking(broken(NAN), PIXELS, ZEROS, FOUR, steps=2, queries=2)


def test_a_victim_of_nan_is_not_right() -> None:
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        evaluate_transfer(
            {"a": broken(1.0)}, {"b": broken(NAN)}, PIXELS, ZEROS, FOUR, dataset="d", steps=2, batch_size=2
        )


KINDS = ("ce", "margin", "dlr", "targeted-dlr", "targeted-margin")
RUNS = [*((attack, kind) for attack in ("pgd", "apgd", "square") for kind in KINDS), ("fab", "targeted-margin")]


@pytest.mark.parametrize(("attack", "kind"), RUNS)
def test_an_attack_that_met_nan_says_so(attack: str, kind: Any) -> None:
    targets = torch.ones(3, dtype=torch.long) if kind.startswith("targeted") else None
    loss = ClassifierLoss(broken(NAN, once_moved=True), ZEROS, kind, targets=targets)
    run: Any = {
        "pgd": lambda: pgd(loss, PIXELS, FOUR, steps=2, step_size="1/255"),
        "apgd": lambda: apgd(loss, PIXELS, FOUR, steps=2),
        "square": lambda: square(loss, PIXELS, FOUR, queries=2),
        "fab": lambda: fab(loss, PIXELS, FOUR, steps=2),
    }[attack]
    with pytest.raises(ValueError, match="NaN"):
        run()


def test_a_class_that_no_loss_looks_at_counts() -> None:
    logits = torch.tensor([[1.0, 0.0, NAN], [1.0, 0.0, 2.0]])
    found = targeted_margin(logits, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert math.isnan(found[0]) and found[1] == -1


def test_a_state_is_not_saved_without_the_nan_that_its_run_met() -> None:
    saved: list[Any] = []
    with pytest.raises(ValueError, match="NaN"):
        apgd(broken_loss, PIXELS, FOUR, steps=3, save=saved.append, save_every=1)
    assert not saved


def broken_loss(pixels: Tensor) -> Tensor:
    return pixels.flatten(1).sum(1) * NAN


@pytest.mark.parametrize("labels", [torch.tensor([0.0, NAN, 1.0]), torch.tensor([NAN, 0.0, 1.0])])
def test_a_label_of_nan_is_no_class(labels: Tensor) -> None:
    with pytest.raises(ValueError, match="outside the 5 classes"):
        check_labels(labels, 3, 5)


def test_pixels_and_perturbations_of_nan_are_outside() -> None:
    bad = PIXELS.clone()
    bad[1, 0, 0, 0] = NAN
    for perturbed, clean in ((bad, PIXELS), (PIXELS, bad), (bad, bad)):
        with pytest.raises(ValueError, match=r"samples \[1\] leaves the threat model"):
            FOUR.check(perturbed, clean)


@pytest.mark.parametrize("values", [[NAN, 1.0], [1.0, NAN], [1.0, math.inf]])
def test_intervals_of_nan_are_none(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval(values)
    with pytest.raises(ValueError, match="finite"):
        paired_interval(values, [0.0, 0.0])
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_statistic(lambda drawn: sum(values[index] for index in drawn) - math.inf, 2)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_statistic(lambda drawn: sum(values[index] for index in drawn), 2)


@pytest.mark.parametrize("side", ["images", "texts"])
def test_an_embedding_of_nan_is_not_retrieved(side: str) -> None:
    images, texts = torch.eye(6), torch.eye(6)
    (images if side == "images" else texts)[2] = NAN
    with pytest.raises(ValueError, match=f"the embeddings of the {side} hold NaN"):
        retrieval_recall(images, texts, range(6), model="m", dataset="d")


def test_a_score_of_nan_is_neither_robust_nor_fooled() -> None:
    engine: Any = VlmEngine(None, None, [], [], lambda answer, index: NAN, 0.0, 0, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the metric gives nan for the answer 'yes' to sample 3"):
        engine.finite_score("yes", 3)


@pytest.mark.parametrize("order", [("good", "bad"), ("bad", "good")])
def test_a_merge_warns_of_weights_whose_cosine_is_nan(order: tuple[str, str]) -> None:
    tensors = {"good": torch.eye(2), "bad": torch.full((2, 2), NAN)}
    sums = WeightCosine()
    for name in order:
        sums.add(name, tensors[name], torch.eye(2) * 2)
    assert math.isnan(sums.lowest[0]) and sums.lowest[1] == "bad" and math.isnan(sums.value())
