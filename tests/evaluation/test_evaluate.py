"""Any encoder on any labelled images: in Python, by the command, in two processes; what cannot be measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.tiny_clip import tiny_processor
from PIL import Image

from fare_hf import evaluate, evaluate_zero_shot, load_encoder
from fare_hf.attacks import ThreatModel
from fare_hf.cli import main as cli
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import text_class_embeddings
from fare_hf.evaluation.given import names_for_rows
from fare_hf.hub.card.regenerate import published_report

EFFORT: dict[str, Any] = {"steps": 2, "eps": ["1/255", "4/255"], "batch_size": 4}
CLASSES = ("cat", "dog", "fish")
SOME = datasets.Dataset.from_dict({"label": [0, 1]})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, three noise images each."""
    folder = tmp_path_factory.mktemp("photos") / "pets"
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def robust(legacy_vision_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision encoder that is not the original's, with a normalisation of its own."""
    folder = tmp_path_factory.mktemp("robust")
    encoder = load_encoder(str(legacy_vision_folder))
    with torch.no_grad():
        encoder.visual_projection.weight.add_(0.1)
    encoder.save_pretrained(folder)
    processor = tiny_processor()
    processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(folder)
    return folder


def test_each_encoder_reads_images_and_names_in_its_own_way(images: Path, robust: Path, clip_folder: Path) -> None:
    found = evaluate(robust, images, against=clip_folder, text_model=clip_folder, **EFFORT)
    assert [(row.model, row.dataset) for row in found.rows] == [(clip_folder.name, "pets")] * 3 + [
        (robust.name, "pets")
    ] * 3
    assert "Difference to" in found.report().to_markdown()
    # The same from pixels and labels of one's own, by the longer way.
    processor = tiny_processor()
    processor.do_normalize = False
    files = [images / name / f"{number}.png" for name in CLASSES for number in range(3)]
    pixels = torch.cat([processor(images=Image.open(file), return_tensors="pt")["pixel_values"] for file in files])
    text = text_class_embeddings(str(clip_folder), CLASSES, ["a photo of a {}."])
    rows = evaluate_zero_shot(
        load_encoder(str(robust)),
        text,
        pixels,
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        normalization=Normalization([0.1, 0.2, 0.3], tiny_processor().image_std),
        model=robust.name,
        dataset="pets",
        threat_models=[ThreatModel("linf", eps) for eps in EFFORT["eps"]],
        steps=2,
        batch_size=4,
    ).rows
    assert [replace(row, seconds=None) for row in found.rows[3:]] == [replace(row, seconds=None) for row in rows]


def test_data_sets_of_one_name_have_rows_of_their_own(images: Path, clip_folder: Path, tmp_path: Path) -> None:
    both = [images, Path(shutil.copytree(images, tmp_path / "pets"))]
    found = evaluate(clip_folder, both, eps=[])
    assert [row.dataset for row in found.rows] == [f"{folder.parent.name}/pets" for folder in both]
    published_report(found.report())  # names are left whole where the paths of this machine are cut off
    assert "accuracy" in found.report().to_markdown()
    with pytest.raises(ValueError, match="pets' is given twice as dataset: give it once"):
        evaluate(clip_folder, [images, f"{images}/"], eps=[])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a/fare4/encoder", "b/fare4/encoder"], ["a/fare4/encoder", "b/fare4/encoder"]),
        (["fare4/encoder", "tecoa4/encoder", "user/clip"], ["fare4/encoder", "tecoa4/encoder", "clip"]),
        (["encoder", "x/encoder"], ["encoder", "x/encoder"]),
        (["/encoder", "/x/encoder"], ["encoder", "x/encoder"]),
        (["same", "same"], ["same", "same"]),
        ([], []),
    ],
)
def test_names_are_as_long_as_it_takes(given: list[str], expected: list[str]) -> None:
    assert names_for_rows(given) == expected


def test_images_beside_the_folders_of_classes_are_named(images: Path, clip_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(images, tmp_path / "pets"))
    shutil.copy(folder / "cat" / "0.png", folder / "loose.png")
    with pytest.raises(ValueError, match=r"has 3 folders of images, and 1 beside them \(loose.png\): move these away"):
        evaluate(clip_folder, folder, eps=[])


@pytest.mark.parametrize("name", ["train-00000-of-00001", "validation"])
def test_shards_of_one_split_that_other_libraries_wrote(
    name: str, images: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """Bytes and a path, as pandas writes them, without what `datasets` says of its columns."""
    files = [images / kind / f"{number}.png" for kind in CLASSES for number in range(3)]
    columns = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    columns["kind"] = [file.parent.name for file in files]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / f"{name}.parquet")
    found = evaluate(clip_folder, tmp_path, label_column="kind", **EFFORT).rows
    assert [row.outcomes for row in found] == [row.outcomes for row in evaluate(clip_folder, images, **EFFORT).rows]


def test_the_labs_texts_are_for_its_encoders_on_either_side(tmp_path: Path) -> None:
    words = ["evaluate", "lab:clip", "--against", "lab:fare-4", "--dataset", "lab:digits", "--samples", "2"]
    cli.main([*words, "--eps", "4/255", "--steps", "1", "--output_dir", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["fare-4"] * 2 + ["clip"] * 2


@pytest.mark.parametrize("base", ["fare_hf.json", "README.md"])
def test_the_base_of_an_encoder_reads_the_names(
    base: str, images: Path, robust: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_encoder(str(robust)).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    content = {
        "fare_hf.json": json.dumps({"base_model": "user/clip"}),
        "README.md": "---\nbase_model: user/clip\n---\n",
    }
    (tmp_path / base).write_text(content[base])
    asked: list[str] = []

    def embeddings(name: str, *rest: Any) -> torch.Tensor:
        asked.append(name)
        return text_class_embeddings(str(clip_folder), *rest)

    monkeypatch.setattr("fare_hf.evaluation.zero_shot.evaluate.text_class_embeddings", embeddings)
    assert len(evaluate(tmp_path, images, eps=[]).rows) == 1 and asked == ["user/clip"]


@pytest.mark.parametrize("kind", ["words", "numbers"])
def test_labels_of_a_column(kind: str, images: Path, clip_folder: Path, tmp_path: Path) -> None:
    files = [str(images / name / f"{number}.png") for name in CLASSES for number in range(3)]
    labels = [name if kind == "words" else CLASSES.index(name) for name in CLASSES for _ in range(3)]
    rows = datasets.Dataset.from_dict({"photo": files, "kind": labels}).cast_column("photo", datasets.Image())
    rows.save_to_disk(tmp_path)
    options: dict[str, Any] = {"label_column": "kind", "class_names": None if kind == "words" else CLASSES}
    found = evaluate(clip_folder, tmp_path, **options, **EFFORT).rows
    plain = evaluate(clip_folder, images, **EFFORT).rows
    assert [(row.outcomes, row.ci) for row in found] == [(row.outcomes, row.ci) for row in plain]
    assert evaluate(clip_folder, tmp_path, samples=4, eps=[], **options).rows[0].n == 4


def test_one_of_several_configurations(images: Path, clip_folder: Path, tmp_path: Path) -> None:
    """Two, of which the second is only there to be chosen from; without a choice the command names the option."""
    both, labels = tmp_path / "both", datasets.ClassLabel(names=list(CLASSES))
    columns = datasets.Features({"image": datasets.Image(), "label": labels})
    files = [str(images / name / f"{number}.png") for name in CLASSES for number in range(3)]
    rows = datasets.Dataset.from_dict({"image": files, "label": [0, 0, 0, 1, 1, 1, 2, 2, 2]}, features=columns)
    lines = []
    for name, part in (("whole", rows), ("few", rows.select([0, 3]))):
        part.to_parquet(both / name / "rows.parquet")
        lines.append(f"- config_name: {name}\n  data_files:\n  - {{split: test, path: {name}/rows.parquet}}\n")
    (both / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    plain = evaluate(clip_folder, images, **EFFORT).rows
    found = evaluate(clip_folder, both, dataset_config="whole", **EFFORT).rows
    assert [(row.outcomes, row.ci) for row in found] == [(row.outcomes, row.ci) for row in plain]
    words = ["evaluate", str(clip_folder), "--dataset", str(both), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="has the configurations whole, few; give one with --dataset_config"):
        cli.main(words)
    cli.main([*words, "--dataset_config", "few", "--eps", "4/255", "--steps", "1"])
    assert {row["n"] for row in json.loads((tmp_path / "out" / "report.json").read_text())["rows"]} == {2}


def test_the_command_prints_json_alone(
    images: Path, robust: Path, clip_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(robust), "--dataset", str(images), "--against", str(clip_folder), "--json"]
    words += ["--text_model", str(clip_folder), "--template", "a {}", "--eps", "4/255", "--steps", "2"]
    cli.main([*words, "--output_dir", str(tmp_path / "report")])
    text = (tmp_path / "report" / "report.json").read_text()
    assert capfd.readouterr().out == text and len(json.loads(text)["rows"]) == 4
    assert "Difference to" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_two_processes_write_the_report_of_one(images: Path, clip_folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(clip_folder), "--dataset", str(images), "--steps", "2", "--batch_size", "2", "--json"]
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launcher += " --dynamo_backend no --main_process_port 0 -m fare_hf.cli"
    command = [sys.executable, *launcher.split(), *words, "--output_dir", str(tmp_path / "two")]
    found = subprocess.run(command, env=os.environ | {"ACCELERATE_USE_CPU": "true"}, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-3000:]
    cli.main([*words, "--output_dir", str(tmp_path / "one")])
    one, two = (json.loads((tmp_path / name / "report.json").read_text())["rows"] for name in ("one", "two"))
    assert json.loads(found.stdout)["rows"] == two
    assert [row | {"seconds": 0} for row in one] == [row | {"seconds": 0} for row in two]


def only_cats(images: Path) -> None:
    for name in CLASSES[1:]:
        (images / name / "0.png").unlink()
        (images / name / "1.png").unlink()
        (images / name / "2.png").unlink()


def flat(images: Path) -> None:
    for name in CLASSES:
        for file in list((images / name).iterdir()):
            file.rename(images / f"{name}{file.name}")


def labelled(values: list[Any]) -> Callable[[Path], None]:
    def save(images: Path) -> None:
        files = [str(images / name / "0.png") for name in CLASSES]
        rows = datasets.Dataset.from_dict({"image": files, "label": values}).cast_column("image", datasets.Image())
        rows.save_to_disk(images)

    return save


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (flat, {}, "has no classes .*class_names.*captions"),
        (only_cats, {}, "has one class, the folder .cat.: zero-shot accuracy needs at least 2"),
        (labelled([0, 1, 2]), {}, "has no classes .*its columns are image, label.*with label_column"),
        (labelled([0, 1, 2]), {"label_column": "label"}, "labels 'label' of .* have no names: give class_names"),
        (
            labelled([0, 1, 2]),
            {"label_column": "label", "class_names": ["a", "b"]},
            "label=2, and there are 2 classes",
        ),
        (labelled([0, 0, 0]), {"label_column": "label", "class_names": ["a"]}, "has one class, 'a'"),
        (labelled([0.5, 1.0, 2.0]), {"label_column": "label"}, "of type float"),
        (labelled(["a", None, "b"]), {"label_column": "label"}, "or some are missing"),
        (None, {"class_names": ["a", "b"]}, "class_names has 2 names, .*pets' 3 classes"),
        (None, {"class_names": ["dog", "hen", "fish"]}, "gives 'dog' to the class 'cat'"),
        (None, {"templates": ["a photo"]}, "the template 'a photo' has no {}"),
        (None, {"templates": "a {}."}, "templates is one string: give a list of sentences, such as .'a {}.'."),
        (None, {"class_names": "abc"}, "class_names 'abc' is one string: give a list"),
        (None, {"dataset": "cifar-10", "class_names": ["a"] * 10}, "class_names has 'a' twice"),
        (None, {"dataset": SOME}, "dataset is an object of type Dataset: give a folder .*save_to_disk"),
        (None, {"encoder": torch.nn.Linear(1, 1)}, "encoder is an object of type Linear: give a folder or the name"),
        (None, {"samples": "2"}, "samples '2' is no whole number of at least 1"),
        (None, {"split": "night"}, "night"),
        (None, {"eps": [4]}, "did you mean 4/255"),
        (None, {"eps": ["4/255"], "dataset": "cifar-10", "split": "train"}, "split is for images of your own"),
        (
            None,
            {"encoder": "ROBUST"},
            "on the Hub that it was fine-tuned from: give it as text_model .*--text_model lab:clip",
        ),
        (None, {"encoder": "ROBUST", "against": "ROBUST"}, "is compared with itself"),
        (
            None,
            {"encoder": "VLM"},
            "is a vision-language model .llava., and a vision encoder or CLIP is wanted",
        ),
        (None, {"encoder": "ROBUST", "text_model": "ROBUST"}, "without a CLIP text encoder"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence_before_any_attack(
    change: Callable[[Path], None] | None,
    options: dict[str, Any],
    sentence: str,
    images: Path,
    robust: Path,
    clip_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    from fare_hf.lab.names import MODELS

    monkeypatch.setattr("fare_hf.evaluation.zero_shot.evaluate.evaluate_zero_shot", pytest.fail)
    folder = tmp_path / "pets"
    shutil.copytree(images, folder)
    if change is not None:
        change(folder)
    names = {"ROBUST": str(robust), "VLM": str(MODELS / "llava")}
    told = {key: names.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=sentence):
        evaluate(**{"encoder": clip_folder, "dataset": folder} | told)
