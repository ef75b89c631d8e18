"""What objectives refuse, and the sentence that says so."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.refusals import Refusal, table
from torch import Tensor

from fare_hf.objectives import (
    AgftObjective,
    AnchoredFareObjective,
    BoundedFareObjective,
    FareObjective,
    SimClipObjective,
    TecoaObjective,
)

TEXTS, PIXELS = torch.randn(6, 5), torch.rand(2, 3, 2, 2)


def never(pixels: Tensor) -> Tensor:
    raise AssertionError("the original encoder was run")


def targets(labels: list[int] | None) -> Tensor:
    return TecoaObjective(TEXTS).targets(PIXELS, None if labels is None else torch.tensor(labels), never)


@table(
    Refusal(
        "FARE: tokens against one vector",
        lambda: FareObjective()(torch.zeros(2, 4), torch.zeros(2, 1, 4)),
        ValueError,
        "embeddings have shape (2, 4) and targets (2, 1, 4): embed both the same way, as (B, D) or (B, T, D).",
    ),
    Refusal(
        "Sim-CLIP: other widths",
        lambda: SimClipObjective()(torch.zeros(2, 4), torch.zeros(2, 5)),
        ValueError,
        "embeddings have shape (2, 4) and targets (2, 5): embed both the same way, as (B, D) or (B, T, D).",
    ),
    Refusal("TeCoA: no labels", lambda: targets(None), ValueError, "TeCoA needs labels and the batch has none"),
    Refusal("TeCoA: too few labels", lambda: targets([1]), ValueError, "labels have shape (1,) for 2 images"),
    Refusal("TeCoA: a label below 0", lambda: targets([0, -1]), ValueError, "6 class texts"),
    Refusal("TeCoA: a label above the classes", lambda: targets([0, 6]), ValueError, "6 class texts"),
    Refusal(
        "TeCoA: another embedding",
        lambda: TecoaObjective(TEXTS)(torch.zeros(2, 4), torch.tensor([0, 1])),
        ValueError,
        "embeddings have shape (2, 4), class texts (6, 5): use the embedding that is compared with texts",
    ),
    Refusal("TeCoA: one class", lambda: TecoaObjective(TEXTS[:1]), ValueError, "at least 2 classes"),
    Refusal("TeCoA: texts of NaN", lambda: TecoaObjective(TEXTS * math.nan), ValueError, "NaN"),
    Refusal(
        "TeCoA: no scale", lambda: TecoaObjective(TEXTS, logit_scale=0), ValueError, "logit_scale 0 is not positive"
    ),
    Refusal(
        "AGFT: a softening above 1",
        lambda: AgftObjective(TEXTS, softening=2),
        ValueError,
        "softening 2 is outside (0, 1]: pass 0.4, or 1 for the original's own.",
    ),
    Refusal(
        "anchors without a weight",
        lambda: AnchoredFareObjective(TEXTS, anchor_weight=0),
        ValueError,
        "anchor_weight 0 is not positive and finite: pass 1",
    ),
    Refusal("a bound of 0", lambda: BoundedFareObjective(bound=0), ValueError, "bound 0 is not positive and finite"),
    Refusal(
        "a multiplier of 0",
        lambda: BoundedFareObjective(multiplier=0),
        ValueError,
        "multiplier 0 is not positive and finite: pass a number such as 0.1 or 10.",
    ),
)
def test_bad_input_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
