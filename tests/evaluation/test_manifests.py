"""Manifests of others name files of their own folder, or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import export_adversarial, load_exported
from fare_hf.training.checkpointing.manifest import (
    MANIFEST,
    STATE,
    check_run,
    fault_of,
    latest_checkpoint,
    write_manifest,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures and their manifest."""
    folder = tmp_path_factory.mktemp("exported") / "images"
    clean = torch.full((2, 3, 8, 8), 0.4)
    export_adversarial(folder, clean, clean, ThreatModel("linf", "8/255"), source="a", attack={"name": "none"})
    return folder


def changed(folder: Path, target: Path, change: Any) -> Path:
    """A copy whose manifest was edited."""
    shutil.copytree(folder, target)
    content = json.loads((target / "manifest.json").read_text())
    content = change(content) or content
    (target / "manifest.json").write_text(json.dumps(content))
    return target


def entry(**values: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        del content["images"][1]["clean_sha256"]  # as older manifests, where other checks speak
        content["images"][1].update(values)

    return change


EDITS = [
    (entry(clean="../../secret.png"), "leaves its folder"),
    (entry(clean="/etc/passwd"), "leaves its folder"),
    (entry(file="..\\x.png"), "leaves its folder"),
    (entry(clean=None), "names the file None, which is no file name"),
    (entry(clean="link.png"), "a link to .* outside"),
    (entry(clean="none.png"), "lists 'none.png', which is not there"),
    (entry(clean="manifest.json"), "cannot be read as a picture"),
    (entry(clean="bitmap.png"), "bitmap.png' cannot be read as a picture"),
    (entry(clean="clean/small.png"), "an image of another size than its clean one"),
    (entry(sha256=3), "is not the image that was exported"),
    (entry(clean_sha256="0" * 64), "is not the image that was exported"),
    (lambda content: content | {"threat_model": {"norm": "linf", "eps": "8"}}, "manifest.json': eps 8 is outside"),
    (lambda content: content | {"threat_model": 3}, "it needs .'attack', 'source', 'threat_model'"),
    (lambda content: {"images": content["images"]}, "it needs .'attack'"),
    (lambda _: {"images": []}, "lists no images"),
    (lambda _: {"images": [3]}, "lists no images"),
    (lambda _: {"source": "a"}, "lists no images"),
    (lambda _: [1], "holds no JSON object"),
]


@pytest.mark.parametrize(("change", "sentence"), EDITS)
def test_manifests_of_pictures_that_lie(change: Any, sentence: str, exported: Path, tmp_path: Path) -> None:
    folder = changed(exported, tmp_path / "a" / "images", change)
    shutil.copyfile(exported / "00000.png", tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    from PIL import Image

    Image.new("RGB", (4, 4)).save(folder / "clean" / "small.png")
    Image.new("RGB", (8, 8)).save(folder / "bitmap.png", format="BMP")
    with pytest.raises(ValueError, match=sentence) as found:
        load_exported(folder)
    assert "\n" not in str(found.value)
    assert len(load_exported(exported).pixels) == 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"step": 3, "files": {"../secret": 6}, "run": {}}, "leaves its folder"),
        ({"step": 3, "files": {"/etc/passwd": 6}, "run": {}}, "leaves its folder"),
        ({"step": 3, "files": ["a"], "run": {}}, "is not readable"),
        ({"step": 3, "files": {}}, "is not readable"),
        ({"files": {}, "run": {}}, "is not readable"),
        ({"step": 3, "files": {}, "run": 3}, "is not readable"),
        ([3], "is not readable"),
    ],
)
def test_manifests_of_checkpoints_that_lie(content: Any, sentence: str, tmp_path: Path) -> None:
    """Passed over where the newest is looked for, refused where it is named."""
    folder = tmp_path / "run" / "checkpoint-3"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "secret").write_text("secret")
    (folder / STATE).write_text('{"global_step": 3}')
    write_manifest(folder, 3, {})
    assert fault_of(folder) is None
    (folder / MANIFEST).write_text(json.dumps(content))
    assert sentence in str(fault_of(folder)) and latest_checkpoint(tmp_path / "run") is None
    with pytest.raises(ValueError, match=f"no complete checkpoint: .*{sentence}"):
        check_run(folder, {})
