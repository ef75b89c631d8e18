"""Trackio and wandb themselves, offline: a training's pictures and curves, read back from what they stored."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from PIL import Image

PICTURE = "train/attacked_images"
CURVES = ("train/loss", "train/attack_gain", "train/cosine_adversarial", "eval/loss", "eval/cosine_clean")
OPTIONS: dict[str, Any] = {"max_steps": 4, "logging_steps": 2, "picture_steps": 2, "disable_tqdm": True}
pytestmark = pytest.mark.slow


def trained(clip: Path, folder: Path, dashboard: str, **options: Any) -> dict[int, dict[str, float]]:
    """A training that reports to a dashboard; step -> what the Trainer logged."""
    evaluation = {"eval_dataset": RandomPixels(4), "eval_strategy": "steps", "eval_steps": 2}
    trainer = tiny_trainer(str(clip), str(folder), report_to=[dashboard], **OPTIONS, **evaluation, **options)
    trainer.train()
    logged: dict[int, dict[str, float]] = {}
    for line in trainer.state.log_history:
        part = {f"eval/{k[5:]}" if k.startswith("eval_") else f"train/{k}": v for k, v in line.items()}
        logged.setdefault(line["step"], {}).update(part)
    return logged


def check(rows: list[dict[str, Any]], pictures: dict[int, Path], logged: dict[int, dict[str, float]]) -> None:
    """Curves are the Trainer's figures, step by step; pictures are those of an attack: three rows of four images."""
    for name in CURVES:
        found = {row["train/global_step"]: row[name] for row in rows if name in row}
        assert found == pytest.approx({step: logged[step][name] for step in (2, 4)}), name
    assert list(pictures) == [2, 4]
    for path in pictures.values():
        clean, attacked, _ = np.split(np.asarray(Image.open(path).convert("RGB")).astype(int), 3)
        assert clean.shape == (32, 128, 3) and 0 < np.abs(attacked - clean).max() <= 5  # 4/255, and rounding


def test_trackio_stores_pictures_and_curves(clip_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="pip install -e '.[dashboards]' installs it")
    from trackio.utils import TRACKIO_DIR  # in the HF_HOME of the tests

    logged = trained(clip_folder, tmp_path / "run", "trackio", project=f"fare-{os.getpid()}")
    with sqlite3.connect(TRACKIO_DIR / f"fare-{os.getpid()}.db") as store:
        rows = [json.loads(text) for (text,) in store.execute("select metrics from metrics order by id")]
    media = TRACKIO_DIR / "media"
    pictures = {row["train/global_step"]: media / row[PICTURE]["file_path"] for row in rows if PICTURE in row}
    check(rows, pictures, logged)


def test_wandb_stores_pictures_and_curves(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[dashboards]' installs it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = trained(clip_folder, tmp_path / "run", "wandb")
    wandb.finish()
    (file,) = tmp_path.rglob("*.wandb")
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records(file)
        if record.WhichOneof("record_type") == "history"
    ]
    paths = {row["train/global_step"]: row.get(f"{PICTURE}/path") for row in rows if f"{PICTURE}/path" in row}
    check(rows, {step: file.parent / "files" / path for step, path in paths.items()}, logged)


def records(file: Path) -> Iterator[Any]:
    """What wandb's own file holds: blocks of 32 KiB with pieces, each with checksum, length and kind before it."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield Record.FromString(whole)
            whole = b""
