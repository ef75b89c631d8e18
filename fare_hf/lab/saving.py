"""A robust encoder of the lab as a folder: with its card, and of a report the rows that are its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import CLIPImageProcessor, PreTrainedModel

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport
from fare_hf.hub import save_robust_encoder
from fare_hf.lab.names import MODELS

__all__ = ["save_with_report"]

BASELINES = {"CLIP", "LLaVA + CLIP"}


def save_with_report(
    encoder: PreTrainedModel,
    recipe: dict[str, Any],
    folder: Path,
    *,
    eps: str,
    shown: str,
    repo_id: str,
    report: RobustnessReport | None,
) -> Path:
    """Writes encoder and card, replacing `folder`; of the report it keeps this encoder's rows and the original's."""
    own = (shown, f"LLaVA + {shown}")
    rows = [row for row in report.rows if row.model in {*own, *BASELINES}] if report else []
    measured = {row.model for row in rows}
    # The old folder goes only when the new one is whole: a failure must not cost what was trained.
    fresh = folder.with_name(f"{folder.name}.new")
    save_robust_encoder(
        encoder,
        fresh,
        processor=CLIPImageProcessor.from_pretrained(MODELS / "clip"),
        base_model="fare_hf-lab-clip",
        threat_model=ThreatModel("linf", eps),
        training=recipe,
        report=RobustnessReport(rows, report.environment) if report else None,
        report_model=[name for name in own if name in measured],
        license="apache-2.0",
        repo_id=repo_id,
    )
    shutil.rmtree(folder, ignore_errors=True)
    return fresh.rename(folder)
