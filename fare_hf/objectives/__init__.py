"""What robust fine-tuning minimises and its inner attack maximises: one file an objective, and a line here."""

from __future__ import annotations

from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import ClassTexts, Objective
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = ["OBJECTIVES", "ClassTexts", "FareObjective", "Objective", "TecoaObjective"]

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (FareObjective, TecoaObjective)}
"""By the name that `--objective`, recipes and cards give them."""
