"""Classifiers of frozen features, fitted on clean images and differentiable, so that they can be attacked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["NEIGHBOURS", "PROBES", "Classifier", "TEMPERATURE", "fit_knn", "fit_linear"]

NEIGHBOURS, TEMPERATURE = 20, 0.07
"""Of the k-NN protocol of DINO (Caron et al., ICCV 2021, arXiv 2104.14294)."""
MOST_STEPS, TOLERANCE = 1000, 1e-7
"""Of L-BFGS: steps, and the largest entry of a gradient that ends it."""

Classifier = Callable[[Tensor], Tensor]
"""Features (B, D) to logits (B, K)."""


def fit_knn(features: Tensor, labels: Tensor, classes: int) -> Classifier:
    """A vote of the nearest training images by cosine, each with the weight `exp(cosine / TEMPERATURE)`.

    Args:
        features: (N, D) of the training images, not normalised.
        labels: (N,) whole numbers in [0, classes), each of them there.
        classes: K.

    Returns:
        The logarithm of each class's share of the votes, up to a constant. A class without a vote has the logit of its
        nearest image alone, which is below those of all classes with one, so that the likeliest class is that of the
        vote and an attack has a gradient towards every class.
    """
    return partial(_vote, F.normalize(features, dim=-1), labels, classes)


def _vote(bank: Tensor, labels: Tensor, classes: int, features: Tensor) -> Tensor:
    cosines = F.normalize(features, dim=-1) @ bank.T
    own = labels.expand_as(cosines)
    best = cosines.new_full((len(features), classes), -torch.inf).scatter_reduce(1, own, cosines, "amax")
    nearest, at = cosines.topk(min(NEIGHBOURS, len(bank)), dim=1)
    votes = torch.zeros_like(best).scatter_add(1, labels[at], ((nearest - 1) / TEMPERATURE).exp())
    counted = votes.clamp_min(torch.finfo(votes.dtype).tiny).log()
    return torch.where(votes > 0, counted, (best - 1) / TEMPERATURE)


def fit_linear(features: Tensor, labels: Tensor, classes: int) -> Classifier:
    """Logistic regression on standardised features: `sum of cross entropies + |W|^2 / 2`, by L-BFGS in fp64.

    That is scikit-learn's `make_pipeline(StandardScaler(), LogisticRegression())` with its defaults (C=1).

    Args:
        features, labels, classes: as for `fit_knn`.

    Raises:
        ValueError: it does not converge.
    """
    values = features.double()
    mean, deviation = values.mean(0), values.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    weight = values.new_zeros(classes, values.shape[1], requires_grad=True)
    bias = values.new_zeros(classes, requires_grad=True)
    scaled = (values - mean) / deviation
    limits: dict[str, Any] = {"max_iter": MOST_STEPS, "tolerance_grad": TOLERANCE, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS([weight, bias], line_search_fn="strong_wolfe", **limits)

    def loss() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            total = F.cross_entropy(F.linear(scaled, weight, bias), labels, reduction="sum")
            mean_loss = (total + weight.square().sum() / 2) / len(labels)
            mean_loss.backward()
        return mean_loss

    optimizer.step(loss)
    if not all(values.isfinite().all() for values in (weight, bias)):
        raise ValueError("the linear probe does not converge on these features; use --probe knn.")
    slope = (weight / deviation).detach()
    offset = (bias - slope @ mean).detach()
    return partial(F.linear, weight=slope.to(features.dtype), bias=offset.to(features.dtype))


PROBES: dict[str, Callable[[Tensor, Tensor, int], Classifier]] = {"knn": fit_knn, "linear": fit_linear}
"""By the name that `--probe` gives them."""
