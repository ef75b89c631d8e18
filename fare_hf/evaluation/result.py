"""What every evaluation returns: rows, what each sample gave, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from fare_hf.evaluation.report.environment import environment
from fare_hf.evaluation.report.report import RobustnessReport
from fare_hf.evaluation.report.rows import Row

__all__ = ["Evaluation"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures, and the samples behind them.

    Attributes:
        rows: figures, ready for a report.
        outcomes: for each row what each of its samples gave, in their order: 1.0 or 0.0 where the figure is a rate
            (whether it counts), else the sample's own score, such as its CIDEr.
        seed: of the evaluation.

    Example:
        >>> Evaluation.of_rates([]).outcomes
        []
    """

    rows: list[Row]
    outcomes: list[list[float]]
    seed: int = 0

    @classmethod
    def of_rates(cls, rows: Sequence[Row], seed: int = 0, **particulars: Any) -> Self:
        """One whose rows are all made by `fraction_row`, which keeps the outcomes; `particulars` of the subclass."""
        outcomes = [[float(outcome) for outcome in row.outcomes or ""] for row in rows]
        return cls(rows=list(rows), outcomes=outcomes, seed=seed, **particulars)

    def report(self) -> RobustnessReport:
        """The rows with this machine, its versions and command, to save and to print."""
        return RobustnessReport(self.rows, environment(seed=self.seed))
