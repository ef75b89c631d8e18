"""What robust fine-tuning minimises and its inner attack maximises: one file an objective, and a line here."""

from __future__ import annotations

from fare_hf.objectives.agft import AgftObjective
from fare_hf.objectives.anchored_fare import AnchoredFareObjective
from fare_hf.objectives.bounded_fare import BoundedFareObjective
from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import ClassTexts, Objective
from fare_hf.objectives.sigmoid_tecoa import SigmoidTecoaObjective
from fare_hf.objectives.sim_clip import SimClipObjective
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = [
    "OBJECTIVES",
    "AgftObjective",
    "AnchoredFareObjective",
    "BoundedFareObjective",
    "ClassTexts",
    "FareObjective",
    "Objective",
    "SigmoidTecoaObjective",
    "SimClipObjective",
    "TecoaObjective",
]

_KINDS = (
    FareObjective,
    TecoaObjective,
    SigmoidTecoaObjective,
    SimClipObjective,
    AgftObjective,
    BoundedFareObjective,
    AnchoredFareObjective,
)

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in _KINDS}
"""By the name that `--objective`, recipes and cards give them."""
