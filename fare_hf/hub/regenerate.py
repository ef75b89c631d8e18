"""A card again, from what stands beside it: configuration, `fare_hf.json` and `report.json`."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport
from fare_hf.hub.card import CardContent, ReportLike, render_card

__all__ = ["RECORD", "card_under_name", "content_of", "record_of", "regenerate_card"]

RECORD = "fare_hf.json"
KEPT = ("name", "base_model", "training", "report_model", "license", "vlm", "datasets")


def regenerate_card(
    source: str | os.PathLike[str], *, name: str | None = None, report: ReportLike | None = None, **changes: Any
) -> str:
    """The model card of a saved or published encoder, rendered again, with new figures where they are given.

    Args:
        source: folder, or repository on the Hub (only its JSON files are fetched).
        name: that the snippets load; None keeps it.
        report: new figures; None takes those published.
        changes: other fields of `CardContent`.

    Raises:
        ValueError: the source has no `fare_hf.json`, so it was not saved by this package.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(source), allow_patterns=["*.json"]))
        name = name or str(source)
    content = content_of(folder)
    changes |= {} if name is None else {"name": name}
    changes |= {} if report is None else {"report": report}
    return render_card(replace(content, **changes))


def content_of(folder: Path) -> CardContent:
    """What the card of a folder was made of; raises ValueError as `regenerate_card`."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{folder}' has no readable {RECORD} and config.json ({error}): save it again.") from None
    whole = config["architectures"] == ["CLIPModel"]
    class_name = "CLIPVisionModelWithProjection" if whole else config["architectures"][0]
    return CardContent(
        class_name=class_name,
        projected=class_name == "CLIPVisionModelWithProjection",
        text_encoder=whole,
        threat_model=ThreatModel.from_dict(record["threat_model"]),
        report=RobustnessReport.load(folder) if (folder / "report.json").exists() else None,
        **{field: record[field] for field in KEPT},
    )


def record_of(content: CardContent) -> str:
    """`fare_hf.json`: what the card says and no other file of the folder does."""
    record = {field.name: getattr(content, field.name) for field in fields(content) if field.name in KEPT}
    record |= {"training": dict(content.training), "datasets": list(content.datasets)}
    record |= {"schema_version": "1.0", "threat_model": content.threat_model.to_dict()}
    return json.dumps(record, indent=2, default=str) + "\n"


def card_under_name(folder: Path, name: str) -> str | None:
    """The folder's card with snippets that load `name`; None where somebody has written on it, which is kept."""
    if not (folder / RECORD).exists():
        return None
    rendered = regenerate_card(folder)
    return regenerate_card(folder, name=name) if rendered == (folder / "README.md").read_text("utf-8") else None
