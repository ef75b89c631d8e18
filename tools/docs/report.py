"""The page of `report.json`."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport, Row
from fare_hf.evaluation.report.rows import LARGEST, REQUIRED
from tools.docs.docstrings import listed, section, table

__all__ = ["report_page"]

HEAD = """# report.json

<!-- Written by `python -m tools.docs`: change the code instead. -->

Every evaluation writes `report.json` and `report.md`. The JSON has three fields: `schema_version` ("{version}"),
`rows`, one for each figure, and `environment`: versions, machine, command and seed. `RobustnessReport.load(folder)`
reads and checks it. A row:

{rows}

A metric is a fraction in [0, 1], but for {larger}. A value that is not finite, an interval
that does not hold its value, or a robust figure without its attack is refused, in writing as in reading.

Two rows, one clean and one attacked:

```json
{example}
```
"""


def report_page() -> str:
    """Fields of a row, and an example."""
    said = listed(section(Row, "Attributes:"))
    lines: list[list[object]] = [
        [f"`{field.name}`", "always" if field.name in REQUIRED else "where known", said[field.name]]
        for field in fields(Row)
    ]
    names: dict[str, Any] = {"model": "FARE-4", "task": "zero-shot", "dataset": "digits", "metric": "accuracy", "n": 4}
    names |= {"precision": "float32", "batch_size": 128}
    attack = {"name": "apgd-ce+apgd-t2", "steps": 50, "restarts": 1, "seed": 0}
    robust: dict[str, Any] = {"threat_model": ThreatModel("linf", "4/255"), "attack": attack}
    clean_row = Row(**names, value=0.75, ci=(0.3, 0.95), outcomes="1101")
    robust_row = Row(**names, value=0.5, ci=(0.15, 0.85), outcomes="1001", **robust)
    report = RobustnessReport([clean_row, robust_row], {"command": "fare-hf evaluate ...", "seed": 0})
    return HEAD.format(
        version=report.schema_version,
        rows=table(["field", "there", "what it is"], lines),
        larger=" and ".join(f"`{name}`" for name in LARGEST),
        example=json.dumps(json.loads(report.to_json()), indent=1),
    )
