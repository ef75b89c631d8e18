"""A card again, from what stands beside it: configuration, `fare_hf.json`, `report.json` and its picture."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.report.plots import draw_summary
from fare_hf.files.documents import read_object, read_text
from fare_hf.files.folders import path_inside
from fare_hf.hub.card.render import PLOT, CardContent, own_rows, render_card
from fare_hf.hub.local_paths import without_local_paths
from fare_hf.hub.retry import Retries, bounded_waits
from fare_hf.pretrained.encoder_families import PUBLISHED_WHOLE
from fare_hf.pretrained.validation import RECORD

__all__ = [
    "KEPT",
    "card_files",
    "card_under_name",
    "content_of",
    "one_or_all",
    "published_report",
    "regenerate_card",
    "report_names",
    "rewrite_card",
]

KEPT = (
    "name",
    "base_model",
    "training",
    "report_model",
    "license",
    "license_name",
    "license_link",
    "vlm",
    "datasets",
    "architecture",
)


def regenerate_card(
    name_or_path: str | os.PathLike[str],
    *,
    name: str | None = None,
    report: RobustnessReport | None = None,
    revision: str | None = None,
    **changes: Any,
) -> str:
    """The model card of a saved or published encoder, rendered again, with more figures where they are given.

    Args:
        name_or_path: folder, or repository on the Hub (its JSON files and its picture are fetched).
        name: that the snippets load; None keeps it.
        report: figures that are added to those published, without a picture. `rewrite_card` draws them too.
        revision: of the repository.
        changes: other fields of `CardContent`.

    Raises:
        ValueError: it has no `fare_hf.json`, so it was not saved by this package; an unknown licence.
        OSError: it is no folder, and no repository that the Hub gives.
    """
    folder = Path(name_or_path)
    if not folder.is_dir():
        folder, name = _fetched(str(name_or_path), revision), name or str(name_or_path)
    changes |= {} if name is None else {"name": name}
    content = content_of(folder)
    if report is not None:
        changes |= {**_with_figures(content, report, changes.get("report_model")), "plot": None}
    return render_card(replace(content, **changes))


def rewrite_card(folder: str | os.PathLike[str], *, report: RobustnessReport | None = None, **changes: Any) -> Path:
    """Renders the card of a saved encoder again, in its folder, to be pushed.

    Args:
        folder: as `save_robust_encoder` wrote it.
        report: what was measured since, added to `report.json` and its picture; a figure that is there already (model,
            task, data set, metric and threat model) is replaced.
        changes: other fields of `CardContent`: `license`, `report_model`, `datasets`, `vlm`, ... With a report given,
            `report_model` is the encoder's name there, or are its names, alone and in VLMs.

    Returns:
        The card.

    Raises:
        ValueError: as `regenerate_card`, or somebody has written on the card by hand.
        OSError: the disk is full; everything is as it was.
    """
    folder = Path(folder)
    card, before = folder / "README.md", content_of(folder)
    if card.exists() and read_text(path_inside(folder, card.name)) != render_card(before):
        raise ValueError(f"'{card}' was edited by hand: move it away to have it rendered again.")
    files: dict[str, bytes] = {}
    if report is not None:
        changes |= _with_figures(before, report, changes.get("report_model"))
        fields, files = published_report(changes["report"])
        changes |= fields
    content = replace(before, **changes)
    files |= card_files(content)
    _replace(folder, files)
    if content.plot is None:
        (folder / PLOT).unlink(missing_ok=True)
    return card


def content_of(folder: Path) -> CardContent:
    """What the card of a folder was made of; raises ValueError as `regenerate_card`."""
    try:
        record = read_object(path_inside(folder, RECORD))
        architecture = (read_object(path_inside(folder, "config.json")).get("architectures") or [None])[0]
        threat_model = ThreatModel.from_dict(record["threat_model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"'{folder}' has no readable {RECORD} and config.json ({_reason(error)}): save it again."
        ) from None
    _check_record(folder, record)
    whole, report = PUBLISHED_WHOLE.get(str(architecture)), path_inside(folder, "report.json")
    return CardContent(
        class_name=whole.classes[-1].__name__ if whole else str(architecture),
        text_encoder=whole is not None,
        threat_model=threat_model,
        report=RobustnessReport.load(report) if report.exists() else None,
        plot=PLOT if (folder / PLOT).exists() else None,
        **{name: record[name] for name in KEPT if name in record},
    )


def published_report(report: RobustnessReport | None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What a card's content holds of a report, without the paths of this machine, and its files; nothing for None."""
    if report is None:
        return {"report": None, "plot": None}, {}
    shown = _shown(report)
    plot, files = draw_summary(shown.rows), {"report.json": shown.to_json().encode()}
    if plot is not None:
        files[PLOT] = plot
    return {"report": shown, "plot": None if plot is None else PLOT}, files


def _with_figures(before: CardContent, report: RobustnessReport, given: str | Sequence[str] | None) -> dict[str, Any]:
    """`report` and `report_model` of a card to whose figures others are added.

    Alone, and in each VLM, the encoder has one name in both, the later one, so that later figures take the place of
    earlier. A VLM's captions never become those of another VLM, nor of the encoder alone.
    """
    later, names = _shown(report), report_names(given)
    if names:  # a misspelt name must not become that of the figures before
        own_rows(replace(before, report=later, report_model=names))
    if before.report is None or not before.report.rows:
        return {"report": later, "report_model": one_or_all(names)}
    own = dict.fromkeys(row.model for row in own_rows(before))
    newest = {_seen_through(name): name for name in names}
    renamed = {name: newest.get(_seen_through(name), name) for name in own}
    rows = [replace(row, model=renamed.get(row.model, row.model)) for row in before.report.rows]
    report = replace(before.report, rows=rows).updated(later)
    return {"report": report, "report_model": one_or_all(list(dict.fromkeys([*renamed.values(), *names])))}


def _seen_through(name: str) -> str:
    """The VLM of a row that is called "VLM + encoder"; empty where the encoder is measured alone."""
    return name.rpartition(" + ")[0]


def one_or_all(names: list[str]) -> str | list[str] | None:
    """How `fare_hf.json` holds names: a text where there is one."""
    return names[0] if len(names) == 1 else names or None


def report_names(given: str | os.PathLike[str] | Sequence[str] | None) -> list[str]:
    """What a report calls an encoder, without the paths of this machine."""
    names = [] if given is None else [given] if isinstance(given, (str, os.PathLike)) else list(given)
    return [str(without_local_paths(str(name))) for name in names]


def _shown(report: RobustnessReport) -> RobustnessReport:
    """A report without the paths of this machine."""
    return RobustnessReport.from_dict(without_local_paths(json.loads(report.to_json())))


def card_files(content: CardContent) -> dict[str, bytes]:
    """The card, and the record that it can be rendered from again to the letter."""
    return {"README.md": render_card(content).encode(), RECORD: record_of(content).encode()}


def _check_record(folder: Path, record: dict[str, Any]) -> None:
    """Each field is of its kind; a stranger may have written it."""
    kinds: dict[str, Any] = dict.fromkeys(KEPT, str | None) | {"training": dict, "datasets": list}
    kinds |= dict.fromkeys(("name", "base_model", "vlm"), str) | {"architecture": dict | None}
    kinds["report_model"] = str | list | None
    for name in KEPT:
        value = record.get(name, kinds[name]() if kinds[name] in (str, dict, list) else None)
        strange = isinstance(value, list) and not all(isinstance(part, str) for part in value)
        if not isinstance(value, kinds[name]) or strange or (name in ("name", "base_model") and not value):
            told = repr(value)[:100]
            raise ValueError(f"'{folder / RECORD}' has {name} {told}, which no card can have: save the encoder again.")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__} {error}" if isinstance(error, (KeyError, TypeError)) else str(error).rstrip(".")


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
    return regenerate_card(folder, name=name) if rendered == read_text(folder / "README.md") else None


def _fetched(repo_id: str, revision: str | None) -> Path:
    """What a card is made of, from the Hub."""
    try:
        with bounded_waits(Retries()):
            return Path(snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", PLOT]))
    except HFValidationError:
        raise ValueError(f"{repo_id!r} is neither a folder here nor the name of a repository.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise OSError(
            f"the Hub does not give {repo_id!r} (HTTP {status}): check the name, the revision and your right to read."
        ) from None


def _replace(folder: Path, files: dict[str, bytes]) -> None:
    """All files in place of the old ones, or none."""
    parts = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        for name, content in files.items():
            parts[name].write_bytes(content)
        for name, part in parts.items():
            part.replace(folder / name)
    except OSError as error:
        raise OSError(f"the card in '{folder}' was not written ({error}): make room on the disk.") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
