"""Weights that transformers would open lie in their folder, or the encoder is not loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fare_hf.encoders import load_encoder
from fare_hf.pretrained.weight_files import INDEX, PICKLE_INDEX
from fare_hf.vlm.swap.encoder_files import read_encoder


@pytest.fixture
def sharded(legacy_vision_folder: Path, tmp_path: Path) -> Path:
    """An encoder whose weights lie in one file that an index names."""
    folder = Path(shutil.copytree(legacy_vision_folder, tmp_path / "encoder"))
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}))
    return folder


def index_of(folder: Path, name: Any) -> None:
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"]["visual_projection.weight"] = name
    (folder / INDEX).write_text(json.dumps(content))


def as_pickles(folder: Path) -> None:
    torch.save(load_file(folder / "one.safetensors"), folder.parent / "x.bin")
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../x.bin")
    (folder / PICKLE_INDEX).write_text(json.dumps(content))
    (folder / INDEX).unlink()


def as_link(folder: Path) -> None:
    (folder / "one.safetensors").rename(folder.parent / "elsewhere")
    (folder / "one.safetensors").symlink_to(folder.parent / "elsewhere")


def as_pipe(folder: Path) -> None:
    (folder / "one.safetensors").unlink()
    os.mkfifo(folder / "one.safetensors")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: index_of(folder, "../x.safetensors"), "leaves its folder"),
        (lambda folder: index_of(folder, "/x.safetensors"), "leaves its folder"),
        (lambda folder: index_of(folder, "none.safetensors"), "names the file 'none.safetensors', which is not there"),
        (lambda folder: index_of(folder, "config.json"), "which is no .safetensors file"),
        (as_pickles, "'../x.bin', which leaves its folder"),
        (as_link, "a link to .* outside"),
        (as_pipe, "not there|holds 0 bytes"),
    ],
)
def test_an_encoder_reads_nothing_outside_of_its_folder(
    change: Callable[[Path], Any], sentence: str, sharded: Path
) -> None:
    """Before, `../x.safetensors` was opened, and a pipe waited for ever."""
    config = load_encoder(str(sharded)).config
    shutil.copyfile(sharded / "one.safetensors", sharded.parent / "x.safetensors")
    change(sharded)
    for load in (lambda: load_encoder(str(sharded)), lambda: read_encoder(sharded, config)):
        with pytest.raises(ValueError, match=sentence) as found:
            load()
        assert "\n" not in str(found.value)
