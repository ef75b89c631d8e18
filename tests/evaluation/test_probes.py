"""Probes against scikit-learn, and measured from the command on encoders without texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.in_process import run_command
from helpers.tiny_encoders import DINOS, write_dino, write_images
from torch import Tensor

from fare_hf.data.pixel_datasets import load_pixels
from fare_hf.evaluation import evaluate_probe
from fare_hf.evaluation.probes.classifiers import fit_knn, fit_linear
from fare_hf.pretrained.configuration import load_image_processor

# scikit-learn 1.9.1 on `features(60, 0.0)` with labels 0, 1, 2, 0, ..., asked for `features(5, 0.4)`:
# KNeighborsClassifier(n_neighbors=20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)).predict_proba
KNN = [
    [0.999152, 0.0006401, 0.0002079],
    [0.0036889, 0.9960643, 0.0002468],
    [0.037553, 0.0, 0.962447],
    [0.9957465, 7.95e-05, 0.004174],
    [3.79e-05, 0.9844714, 0.0154907],
]
# make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10000)).predict_proba
LINEAR = [
    [0.9796329, 0.0122715, 0.0080955],
    [0.0080903, 0.9879592, 0.0039505],
    [0.0083739, 0.0005243, 0.9911019],
    [0.9742443, 0.0087783, 0.0169773],
    [0.003245, 0.9284864, 0.0682686],
]


def features(count: int, shift: float) -> Tensor:
    """Three clusters in 8 dimensions, without a random number."""
    rows, columns = torch.arange(count, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)[None]
    spread = (1.7 * rows + 3.1 * columns + shift + (rows * columns).sin()).sin()
    return spread + 0.8 * (2.1 * (rows % 3) + columns).cos() + 0.3


def test_votes_are_scikit_learns() -> None:
    logits = fit_knn(features(60, 0.0), torch.arange(60) % 3, 3)(features(5, 0.4))
    expected = torch.tensor(KNN, dtype=torch.float64)
    voted = expected > 0
    shares = logits.masked_fill(~voted, -torch.inf).softmax(1)
    torch.testing.assert_close(shares, expected, atol=1e-6, rtol=0)
    assert not voted.all() and logits.isfinite().all()
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    least = logits.masked_fill(~voted, torch.inf).amin(1, keepdim=True)
    assert bool((logits < least)[~voted].all())  # a class without a vote is below all with one


def test_votes_have_the_gradient_of_finite_differences_towards_every_class() -> None:
    classifier = fit_knn(features(60, 0.0), torch.arange(60) % 3, 3)
    points = features(5, 0.4).requires_grad_()
    assert torch.autograd.gradcheck(classifier, (points,))
    (slope,) = torch.autograd.grad(classifier(points)[2, 1], points)
    assert slope[2].abs().max() > 1e-3


def test_the_linear_probe_is_scikit_learns() -> None:
    training = torch.cat([features(60, 0.0), torch.ones(60, 1)], dim=1)  # a feature that never changes, too
    classifier = fit_linear(training, torch.arange(60) % 3, 3)
    shares = classifier(torch.cat([features(5, 0.4), torch.ones(5, 1)], dim=1)).softmax(1)
    torch.testing.assert_close(shares, torch.tensor(LINEAR, dtype=torch.float64), atol=1e-5, rtol=0)
    assert fit_linear(training.float(), torch.arange(60) % 3, 3)(training.float()).dtype == torch.float32


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("photos"), train=8, test=4)


@pytest.mark.parametrize("kind", DINOS)
def test_a_dino_is_measured_from_the_command(kind: str, photos: Path, tmp_path: Path) -> None:
    encoder = write_dino(tmp_path / "dino", kind)
    words = f"fare-hf evaluate {tmp_path / 'dino'} --dataset {photos} --probe knn --eps 2/255 16/255 --steps 5"
    run_command([*words.split(), "--output_dir", str(tmp_path / "report")])
    rows = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    assert {row["task"] for row in rows} == {"k-NN (k=20, temperature 0.07, 24 training images)"}
    assert [row["n"] for row in rows] == [12, 12, 12] and rows[2]["attack"]["name"].startswith("apgd-ce")

    processor = load_image_processor(str(tmp_path / "dino"))
    parts = {}
    for split in ("train", "test"):
        samples = load_pixels(str(photos), split, processor, labels=True)
        pixels = torch.stack([_normalised(sample["pixel_values"], processor) for sample in samples])
        with torch.no_grad():
            parts[split] = (encoder(pixels).pooler_output, torch.tensor([sample["labels"] for sample in samples]))
    (bank, labels), (asked, truth) = parts["train"], parts["test"]
    right = 0
    for image, label in zip(asked, truth, strict=True):  # the vote, image by image
        cosines = torch.cosine_similarity(image[None], bank)
        votes = [0.0] * 3
        for index in cosines.argsort(descending=True)[:20].tolist():
            votes[int(labels[index])] += float((cosines[index] / 0.07).exp())
        right += votes.index(max(votes)) == int(label)
    assert rows[0]["value"] == right / 12 > 1 / 3
    assert rows[2]["value"] < rows[0]["value"] and rows[2]["value"] <= rows[1]["value"]


def _normalised(pixels: Tensor, processor: Any) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels - mean) / std


def test_a_linear_probe_of_two_encoders_is_compared_in_pairs(photos: Path, tmp_path: Path, clip_folder: Path) -> None:
    """Of any family: the robust DINOv2 and a CLIP, each with a probe of its own."""
    write_dino(tmp_path / "dino")
    found = evaluate_probe(tmp_path / "dino", photos, probe="linear", against=clip_folder, eps=["8/255"], steps=3)
    assert [row.model for row in found.rows] == [clip_folder.name] * 2 + ["dino"] * 2
    assert {row.task for row in found.rows} == {"linear probe (C=1, 24 training images)"}
    assert all(found.rows[i].value >= found.rows[i + 1].value for i in (0, 2))
    assert "linear probe" in found.report().to_markdown()


def refusal(photos: Path, words: str, tmp_path: Path) -> str:
    dino = tmp_path / "dino"
    if not dino.exists():
        write_dino(dino)
    with pytest.raises(SystemExit) as ended:
        run_command([*f"fare-hf evaluate {dino} --output_dir {tmp_path / 'out'}".split(), *words.split()])
    assert not (tmp_path / "out").exists()
    return str(ended.value)


def test_what_cannot_be_probed_is_one_sentence(photos: Path, tmp_path: Path) -> None:
    flat, other, strange, saved = (tmp_path / name for name in ("flat", "other", "strange", "saved"))
    shutil.copytree(photos / "train", flat)
    shutil.copytree(photos, other)
    (other / "train" / "red").rename(other / "train" / "purple")
    splits = {}
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        columns = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        images = [{"path": str(photos / split / "red" / f"{number}.png"), "bytes": None} for number in (0, 1)]
        splits[split] = datasets.Dataset.from_dict({"image": images, "label": [0, 1]}, features=columns)
    datasets.DatasetDict(splits).save_to_disk(strange)
    splits["train"].save_to_disk(saved)
    told = {
        f"--dataset {photos}": "which has no texts to compare its images with",
        f"--dataset {photos} --train_split train": "is for --probe",
        f"--dataset {photos} --probe knn --text_model {photos}": "is for comparing with texts",
        f"--dataset {photos} {flat} --probe knn": "--probe is fitted on one data set",
        "--dataset cifar10 --probe knn": "'cifar10' has none here: give a folder with train/ and test/",
        "--dataset lab:digits --probe linear": "'lab:digits' has none here",
        f"--dataset {flat} --probe knn": "measured on the images that it is fitted on",
        f"--dataset {photos} --split train --probe knn": "measured on the images that it is fitted on",
        f"--dataset {other} --probe knn": "has no training image of 'red' (1 such classes)",
        f"--dataset {strange} --probe knn": "have other classes: 2 and 2 names, or in another order",
        f"--dataset {strange} --probe knn --class_names x y": "have other classes: 2 and 2 names, or in another order",
        f"--dataset {saved} --probe knn": "measured on the images that it is fitted on",
        f"--dataset {saved} --probe knn --split test": "is one saved data set and has no split 'test'; give 'train'",
    }
    for words, sentence in told.items():
        assert sentence in refusal(photos, words, tmp_path), words


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"encoder": torch.nn.Linear(1, 1)}, "encoder is an object of type Linear: give a folder"),
        ({"dataset": datasets.Dataset.from_dict({"a": [0]})}, "dataset is an object of type Dataset: give a folder"),
        ({"against": torch.nn.Linear(1, 1)}, "against is an object of type Linear"),
        ({"samples": "2"}, "samples '2' is no whole number of at least 1"),
    ],
)
def test_objects_for_names_are_told_at_the_call(given: dict[str, Any], sentence: str, photos: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate_probe(**{"encoder": "nowhere/dino", "dataset": photos} | given)
