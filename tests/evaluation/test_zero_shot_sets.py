"""The data set table from local copies of the mirrors; native resolution; several processes equal one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT, TESTS
from helpers.tiny_clip import tiny_processor
from helpers.tiny_llava import encoder, images, processor
from PIL import Image
from torch.nn import functional as F

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization, resize
from fare_hf.evaluation import Row, evaluate_zero_shot
from fare_hf.evaluation.zero_shot.sets import ZERO_SHOT_SETS, ZeroShotSet, load_zero_shot_set, zero_shot_set

SMALL = ZeroShotSet("small", "mirror/wds_small", 3, native=True, samples=5)


def mirror(root: Path, count: int = 6, corrupt: int | None = None, size: int = 12) -> Path:
    """A folder as a mirror on the Hub: a shard, class names, templates."""
    folder = root / "wds_small"
    (folder / "test").mkdir(parents=True)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (size, size), (number * 40, 10, 200)).save(buffer, "WEBP", lossless=True)
            content = b"not an image" if number == corrupt else buffer.getvalue()
            for suffix, value in (("cls", str(number % 3).encode()), ("webp", content)):
                info = tarfile.TarInfo(f"s{number:07d}.{suffix}")
                info.size = len(value)
                tar.addfile(info, io.BytesIO(value))
    (folder / "classnames.txt").write_text("cat\ndog\nbird\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na {c}.\n")
    return root


def test_the_table_begins_with_the_papers() -> None:
    assert (
        len({row.repo for row in ZERO_SHOT_SETS}) == len({row.name for row in ZERO_SHOT_SETS}) == len(ZERO_SHOT_SETS)
    )
    assert [row.samples for row in ZERO_SHOT_SETS[:14]] == [1000] * 13 + [5000]
    assert {row.name for row in ZERO_SHOT_SETS[:14] if row.native} == {"CIFAR-10", "CIFAR-100", "STL-10"}
    # The names of the reference's datasets.txt, where "wds/vtab/pets" is the repository "wds_vtab-pets".
    assert {row.repo.removeprefix("clip-benchmark/wds_").replace("vtab-", "vtab/") for row in ZERO_SHOT_SETS[:13]} == {
        *("vtab/cifar10", "stl10", "vtab/cifar100", "cars", "vtab/caltech101", "vtab/pets", "vtab/flowers"),
        *("vtab/dtd", "vtab/eurosat", "fgvc_aircraft", "vtab/pcam", "imagenet-r", "imagenet_sketch"),
    }
    assert zero_shot_set("imagenet_r").repo == "clip-benchmark/wds_imagenet-r"


def test_a_mirror_becomes_pixels_and_prompts(tmp_path: Path) -> None:
    data = load_zero_shot_set(SMALL, tiny_processor(), root=mirror(tmp_path), seed=1)
    assert len(data.images) == 5 and data.native and data.class_names == ["cat", "dog", "bird"]
    assert data.templates == ["a photo of a {}.", "a {}."] and data.skipped == []
    item = data.images[0]
    number = round(float(item["pixel_values"][0, 0, 0]) * 255) // 40
    assert item["pixel_values"].shape == (3, 12, 12) and item["labels"] == number % 3
    resized = ZeroShotSet("small", "mirror/wds_small", 3)
    assert load_zero_shot_set(resized, tiny_processor(), root=tmp_path).images[0]["pixel_values"].shape == (3, 32, 32)


def test_faults_of_a_mirror(tmp_path: Path) -> None:
    mirror(tmp_path, corrupt=2)
    whole = ZeroShotSet("small", "mirror/wds_small", 3, native=True)
    data = load_zero_shot_set(whole, tiny_processor(), root=tmp_path, skip_corrupt=True)
    assert len(data.images) == 5 and len(data.skipped) == 1 and "not a readable image" in data.skipped[0]
    strict = load_zero_shot_set(whole, tiny_processor(), root=tmp_path)
    with pytest.raises(ValueError, match="not a readable image"):
        [strict.images[index] for index in range(6)]
    with pytest.raises(ValueError, match="names 3 classes, there are 4"):
        load_zero_shot_set(ZeroShotSet("small", "mirror/wds_small", 4), tiny_processor(), root=tmp_path)
    with pytest.raises(ValueError, match="0 wanted"):
        load_zero_shot_set(whole, tiny_processor(), root=tmp_path, samples=0)
    (tmp_path / "wds_small" / "zeroshot_classification_templates.txt").write_text("a photo\n")
    with pytest.raises(ValueError, match=r"needs lines with \{c\}"):
        load_zero_shot_set(whole, tiny_processor(), root=tmp_path)
    (tmp_path / "wds_small" / "classnames.txt").unlink()
    with pytest.raises(ValueError, match="has no classnames.txt"):
        load_zero_shot_set(whole, tiny_processor(), root=tmp_path)


def problem(size: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Class vectors, pixels, and the encoder's own predictions as labels."""
    text = F.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    pixels = resize(images(20), size)
    normalized = Normalization.from_processor(processor())(resize(pixels, 32))
    with torch.no_grad():
        labels = (encoder()(pixel_values=normalized).image_embeds @ text.T).argmax(1)
    return text, pixels, labels


def evaluate(size: int = 32, **options) -> list[Row]:
    text, pixels, labels = problem(size)
    names = {"model": "CLIP", "dataset": "noise", "normalization": Normalization.from_processor(processor())}
    threats = [ThreatModel("linf", "2/255"), ThreatModel("linf", "6/255")]
    settings = {"threat_models": threats, "steps": 4, "batch_size": 3} | options
    rows = evaluate_zero_shot(encoder(), text, pixels, labels, **names, **settings).rows
    return [replace(row, seconds=None) for row in rows]


def test_native_pixels_are_attacked_with_the_resize_inside() -> None:
    threats = [ThreatModel("linf", "16/255"), ThreatModel("linf", "48/255")]
    clean, small, large = evaluate(size=16, native=True, threat_models=threats, target_classes=1)
    assert clean.value == 1.0 and large.value <= small.value <= 1.0 and large.value < 1.0
    with pytest.raises(ValueError, match="doesn't match model|image size"):
        evaluate(size=16)


def test_autoattack_adds_fab_and_square() -> None:
    options = {"target_classes": 2, "steps": 2, "threat_models": [ThreatModel("linf", "6/255")]}
    rows = evaluate(attack="autoattack", queries=5, **options)
    assert rows[1].attack["name"] == "apgd-ce+apgd-t2+fab-t2+square"
    plain = evaluate(**options)
    assert all(a.value <= b.value for a, b in zip(rows, plain, strict=True))


def test_fooled_samples_may_leave_in_the_middle_of_a_run() -> None:
    options = {"target_classes": 1, "threat_models": [ThreatModel("linf", "3/255")]}
    assert [row.value for row in evaluate(stop_fooled=True, **options)] == [row.value for row in evaluate(**options)]


def test_two_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    code = (
        "import json, os, sys\n"
        "from test_zero_shot_sets import evaluate\n"
        "rows = evaluate(distributed=True, target_classes=1)\n"
        "from accelerate import PartialState; assert PartialState().num_processes == 2\n"
        "open(f'{sys.argv[1]}/{os.environ[\"RANK\"]}.json', 'w').write(json.dumps([row.to_dict() for row in rows]))\n"
    )
    (tmp_path / "run.py").write_text(code)
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launcher += " --dynamo_backend no --main_process_port 0"
    paths = os.pathsep.join([str(TESTS), str(TESTS / "evaluation"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, *launcher.split(), str(tmp_path / "run.py"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    alone = [row.to_dict() for row in evaluate(target_classes=1)]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
