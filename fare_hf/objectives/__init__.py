"""What robust fine-tuning minimises and its inner attack maximises: one file an objective."""

from __future__ import annotations

from fare_hf.objectives.facts import objective_facts
from fare_hf.objectives.fare import FareObjective
from fare_hf.objectives.objective import Objective
from fare_hf.objectives.tecoa import TecoaObjective

__all__ = ["FareObjective", "Objective", "TecoaObjective", "objective_facts"]
