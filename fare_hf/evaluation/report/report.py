"""One report for everything measured: rows with their threat model and attack, and the environment they come from.

Schema 1.0 of `report.json`: `schema_version`, `rows` (the fields of `Row`, in their order) and `environment`. Fields
that were added since are optional, so that reports without them are of the same schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fare_hf.evaluation.report.paired import difference_table
from fare_hf.evaluation.report.rows import NAMES, Row, read_rows
from fare_hf.evaluation.report.tables import html_tables, markdown
from fare_hf.files.documents import read_json
from fare_hf.files.markup import inline

__all__ = ["SCHEMA_VERSION", "RobustnessReport"]

SCHEMA_VERSION = "1.0"


@dataclass
class RobustnessReport:
    """Rows and the environment they were measured in.

    Attributes:
        rows: figures, each once; the order is kept.
        environment: versions, machine, command, of `fare_hf.evaluation.report.environment`.
        schema_version: "1.0".

    Raises:
        ValueError: the same figure twice, something that is no `Row`, or another schema version.

    Example:
        >>> from fare_hf.lab import encoder_folder
        >>> report = RobustnessReport.load(encoder_folder("fare-4"))
        >>> sorted({row.task for row in report.rows})[0]
        'captions'
    """

    rows: list[Row]
    environment: dict[str, Any] = field(default_factory=dict)
    schema_version: str = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version!r} is not {SCHEMA_VERSION!r}: update fare_hf.")
        self._check()

    def _check(self) -> None:
        """Each figure stands once."""
        seen: set[tuple[str, ...]] = set()
        for number, row in enumerate(self.rows):
            if not isinstance(row, Row):
                raise ValueError(f"row {number} of the report is {row!r}: give a Row, or read it by Row.from_dict.")
            key = _figure(row)
            if key in seen:
                raise ValueError(f"row {number} of the report repeats {' / '.join(key)}: report each figure once.")
            seen.add(key)

    def updated(self, later: RobustnessReport) -> RobustnessReport:
        """The figures of both reports; of one that stands in both, the later value.

        Args:
            later: measured since. Its environment is that of the new report; this one's stands in it as `earlier`,
                where some figure of it is left.

        Returns:
            A new report, this one's figures first.

        Example:
            >>> names = {"model": "FARE-4", "task": "zero-shot", "metric": "accuracy", "ci": (0, 1), "n": 10}
            >>> first = RobustnessReport([Row(dataset=name, value=0.5, **names) for name in ("digits", "pets")])
            >>> found = first.updated(RobustnessReport([Row(dataset="pets", value=0.7, **names)], {"seed": 1}))
            >>> [(row.dataset, row.value) for row in found.rows], found.environment
            ([('digits', 0.5), ('pets', 0.7)], {'seed': 1, 'earlier': {}})
        """
        before, after = ({_figure(row): row for row in report.rows} for report in (self, later))
        environment = later.environment
        if before.keys() - after.keys():
            environment = {**environment, "earlier": self.environment}
        return RobustnessReport(list((before | after).values()), environment)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, fields in the schema's order."""
        rows = [row.to_dict() for row in self.rows]
        return {"schema_version": self.schema_version, "rows": rows, "environment": self.environment}

    @classmethod
    def from_dict(cls, content: Any) -> RobustnessReport:
        """The inverse of `to_dict`.

        Raises:
            ValueError: other fields than a report's, or invalid rows.
        """
        if not isinstance(content, dict) or set(content) != {"schema_version", "rows", "environment"}:
            raise ValueError("this is not a robustness report: it needs schema_version, rows and environment.")
        empty = cls([], content["environment"], content["schema_version"])
        return replace(empty, rows=read_rows(content["rows"]))

    def to_json(self) -> str:
        """The report as JSON text; raises ValueError where rows or environment changed into something invalid."""
        self._check()
        return json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def to_markdown(self) -> str:
        """Tables for people (`tables.markdown`), below those of rates and means the models' paired differences, and
        below all what the environment's `legend` says of names in the tables."""
        legend = self.environment.get("legend") if isinstance(self.environment, dict) else None
        said = legend.items() if isinstance(legend, dict) else ()
        lines = [f"- {inline(name)}: {inline(what)}\n" for name, what in said]
        return "\n".join([markdown(self.rows, difference_table), *(["".join(lines)] if lines else [])])

    def _repr_html_(self) -> str:
        """The tables in a notebook."""
        return html_tables(self.rows)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json` and `report.md` into a folder (made if absent); returns the path of the JSON."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text, page = self.to_json(), self.to_markdown()
        (folder / "report.json").write_text(text, encoding="utf-8")
        (folder / "report.md").write_text(page, encoding="utf-8")
        return folder / "report.json"

    @classmethod
    def load(cls, path: str | Path) -> RobustnessReport:
        """Read a report back from its folder or its JSON file.

        Raises:
            ValueError: no JSON, other fields than a report's, or invalid rows; the message names the file.
        """
        path = Path(path)
        file = path / "report.json" if path.is_dir() else path
        content = read_json(file)
        try:
            return cls.from_dict(content)
        except ValueError as error:
            raise ValueError(f"'{file}': {error}") from None


def _figure(row: Row) -> tuple[str, ...]:
    """What a row measures; a report has one row of each."""
    return (*(getattr(row, name) for name in NAMES), str(row.threat_model or "clean"))
