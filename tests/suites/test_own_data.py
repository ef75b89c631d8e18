"""Jobs of a suite on images of one's own: with classes, with captions, with nothing but a string to force."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from helpers.tiny_clip import tiny_clip_config, tiny_processor, tiny_tokenizer
from helpers.tiny_llava import encoder
from helpers.vlm_folders import TEMPLATE, write_captions, write_llava
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel

from fare_hf import evaluate, evaluate_vlm_on_data
from fare_hf.encoders import EMBEDDINGS, load_encoder
from fare_hf.evaluation import Row, evaluate_probe
from fare_hf.evaluation.vlm.engine import VlmEngine
from fare_hf.suites import load_suite, run_suite
from fare_hf.suites.suite import read_suite

SUITE = """
name: own
models: {{A: "{place}/encoder", CLIP: "{clip}"}}
defaults: {{eps: [4/255], steps: 2, batch_size: 2}}
jobs:
  - {{kind: zero-shot, set: "{place}/pets", models: [CLIP], target_classes: 1, class_names: [kitten, puppy], templates: ["a {{}}"]}}
  - {{kind: vlm, set: "{place}/photos", vlm: "{place}/llava", template: "{template}", models: [A], task: captions,
     caption_column: captions, samples: 4}}
  - {{kind: targeted, set: "{place}/photos", vlm: "{place}/llava", template: "{template}", models: [A], target: red dog}}
"""  # noqa: E501


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, a folder of captions, a LLaVA and an encoder for it."""
    place, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (place / "pets" / name).mkdir(parents=True)
        for number in range(2):
            noise = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / "pets" / name / f"{number}.png")
    write_captions(place / "photos", 4)
    write_llava(place / "llava")
    encoder(seed=5).save_pretrained(place / "encoder")
    return place


def test_own_images_are_measured_as_by_the_commands_and_go_on(
    place: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.format(place=place, clip=clip_folder, template=TEMPLATE))
    suite = load_suite(tmp_path / "suite.yaml")

    def interrupted(*words: object, **options: object) -> object:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VlmEngine, "attack", interrupted)
        run_suite(suite, tmp_path / "out", progress=False)
    assert len(list((tmp_path / "out" / "rows").glob("*.json"))) == 1
    assert len(list((tmp_path / "out" / "states").glob("*/clean.json"))) == 1
    rows = run_suite(suite, tmp_path / "out", progress=False).rows
    names = {"class_names": ["kitten", "puppy"], "templates": ["a {}"]}
    pets = evaluate(clip_folder, place / "pets", eps=["4/255"], steps=2, batch_size=2, target_classes=1, **names)
    options = {"template": TEMPLATE, "eps": ["4/255"], "steps": 2, "batch_size": 2, "encoder": place / "encoder"}
    said = evaluate_vlm_on_data(place / "llava", place / "photos", "captions", samples=4, **options)
    forced = evaluate_vlm_on_data(place / "llava", place / "photos", "targeted", targets=["red dog"], **options)
    expected = [*pets.rows, *said.rows[2:], *forced.rows[2:]]
    figures = [
        [(row.task, row.metric, row.dataset, row.value, row.ci, row.n) for row in part] for part in (rows, expected)
    ]
    assert figures[0] == figures[1] and {row.dataset for row in rows} == {"pets", "photos"}


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        ("kind: zero-shot, set: /no/photos", "set '/no/photos', and there is no such folder"),
        ("kind: zero-shot, set: PLACE/pets, root: .", "has 'root', which says nothing to it"),
        ("kind: zero-shot, set: PLACE/pets, caption_column: a", "has 'caption_column', which says nothing"),
        ("kind: zero-shot, set: PLACE/pets, templates: [a photo]", "'a photo' has no {}"),
        ("kind: zero-shot, set: CIFAR-10, split: train", "has 'split', which says nothing to it"),
        ("kind: vlm, set: PLACE/photos, vlm: llava-hf/x", "no task: say captions, vqa or pope"),
        ("kind: vlm, set: PLACE/photos, vlm: llava-hf/x, task: caption", "task 'caption': use one of captions, vqa"),
        ("kind: vlm, set: PLACE/photos, vlm: llava-hf/x, task: vqa, prompt: what?", "has no {} for the question"),
        (
            r"kind: vlm, set: COCO, vlm: llava-hf/x, template: <image>\n{}",
            "it holds a backslash and an n: write it in",
        ),
        ("kind: vlm, set: COCO, vlm: llava-hf/x, task: captions", "has 'task', which says nothing to it"),
        ("kind: targeted, set: PLACE/photos, vlm: 'lab:llava', eps: [4/255]", "a target string for sets that are not"),
    ],
)
def test_what_says_nothing_to_own_images_is_refused(job: str, sentence: str, place: Path) -> None:
    settings = dict(part.split(": ", 1) for part in job.replace("PLACE", str(place)).split(", "))
    told = {name: value.strip("'") for name, value in settings.items()}
    lists = {name: [value.strip("[]")] for name, value in told.items() if value.startswith("[")}
    with pytest.raises(ValueError, match=sentence):
        read_suite({"name": "s", "models": {"A": "lab:clip"}, "jobs": [told | lists]})


def larger_clip(folder: Path) -> Path:
    """A whole CLIP for images of 48 pixels, where `clip_folder` takes 32."""
    config = tiny_clip_config()
    config.vision_config.image_size = 48
    torch.manual_seed(48)
    CLIPModel(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


def found(place: Path, job: dict[str, Any], tmp_path: Path, **models: Path) -> list[Row]:
    """Rows of a suite of one job on the folder `pets` or `photos`."""
    named = {name: str(path) for name, path in models.items()}
    told = {"set": str(place / "pets"), "steps": 2, "eps": ["4/255"]} | job
    return run_suite(read_suite({"name": "s", "models": named, "jobs": [told]}), tmp_path / "out", progress=False).rows


def test_encoders_of_two_resolutions_are_shown_each_others_images(
    place: Path, clip_folder: Path, tmp_path: Path
) -> None:
    larger = larger_clip(tmp_path / "larger")
    both = found(place, {"kind": "transfer", "victims": ["A", "B"]}, tmp_path / "both", A=clip_folder, B=larger)
    pairs = {(row.model, row.dataset) for row in both}
    assert pairs == {(victim, f"pets made on {source}") for victim in "AB" for source in "AB"}
    alone = found(place, {"kind": "transfer", "victims": ["A"]}, tmp_path / "alone", A=clip_folder)
    assert (alone[0].value, alone[0].n) == (both[0].value, both[0].n) == (both[0].value, 4)


def test_a_vlm_takes_an_encoder_of_another_resolution_as_in_the_command(place: Path, tmp_path: Path) -> None:
    encoder(seed=3, image_size=48).save_pretrained(tmp_path / "larger")
    larger_clip(tmp_path / "clip")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (tmp_path / "clip" / name).exists():
            shutil.copy(tmp_path / "clip" / name, tmp_path / "larger")
    job = {"kind": "vlm", "set": str(place / "photos"), "vlm": str(place / "llava"), "task": "captions"}
    rows = found(place, job | {"template": TEMPLATE}, tmp_path, E=tmp_path / "larger")
    options = {"template": TEMPLATE, "eps": ["4/255"], "steps": 2, "encoder": tmp_path / "larger"}
    expected = evaluate_vlm_on_data(place / "llava", place / "photos", "captions", **options).rows[2:]
    assert [(row.value, row.ci) for row in rows] == [(row.value, row.ci) for row in expected]


@pytest.mark.parametrize("embedding", EMBEDDINGS)
def test_drift_of_every_embedding(embedding: str, place: Path, clip_folder: Path, tmp_path: Path) -> None:
    other = load_encoder(str(clip_folder))
    with torch.no_grad():
        other.visual_projection.weight.mul_(torch.linspace(0.5, 2, 16)[:, None])
    other.save_pretrained(tmp_path / "other")
    tiny_processor().save_pretrained(tmp_path / "other")
    job = {"kind": "drift", "set": str(place / "pets"), "original": "A", "models": ["B"], "embedding": embedding}
    content = {"name": "s", "models": {"A": str(clip_folder), "B": str(tmp_path / "other")}, "jobs": [job]}
    rows = run_suite(read_suite(content), tmp_path / "out", progress=False).rows
    moved = embedding.startswith("projected")  # which alone reads what was changed
    assert rows and all((abs(row.value - ("cos" in row.metric)) > 1e-3) is moved for row in rows)


def test_an_encoder_whose_texts_are_unknown_is_one_sentence(
    place: Path, legacy_vision_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has no text encoder and names no CLIP .*: give the job a text, such as"):
        found(place, {"kind": "zero-shot"}, tmp_path, A=legacy_vision_folder)


def test_one_of_several_configurations_of_captions_and_for_a_probe(
    place: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """By the call and by a job; the other configuration has one image less."""
    rows = datasets.load_dataset("imagefolder", data_dir=str(place / "photos"), split="train")
    lines = []
    for name, part in (("whole", rows), ("few", rows.select(range(3)))):
        part.to_parquet(tmp_path / "both" / name / "rows.parquet")
        lines.append(f"- config_name: {name}\n  data_files:\n  - {{split: test, path: {name}/rows.parquet}}\n")
    (tmp_path / "both" / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    vlm, both = str(place / "llava"), str(tmp_path / "both")
    for name, count in (("whole", 4), ("few", 3)):
        options = {"template": TEMPLATE, "eps": [], "dataset_config": name}
        assert {row.n for row in evaluate_vlm_on_data(vlm, both, "captions", **options).rows} == {count}
        job = {
            "kind": "vlm",
            "set": both,
            "vlm": vlm,
            "task": "captions",
            "template": TEMPLATE,
            "dataset_config": name,
        }
        assert {row.n for row in found(place, job, tmp_path / name, E=place / "encoder")} == {count}
    labelled = datasets.load_dataset("imagefolder", data_dir=str(place / "pets"), split="train")
    for split in ("train", "test"):
        labelled.to_parquet(tmp_path / "pets" / "a" / f"{split}.parquet")
    files = "".join(f"  - {{split: {split}, path: a/{split}.parquet}}\n" for split in ("train", "test"))
    text = (
        f"---\nconfigs:\n- config_name: a\n  data_files:\n{files}- config_name: b\n  data_files: a/test.parquet\n---\n"
    )
    (tmp_path / "pets" / "README.md").write_text(text)
    assert evaluate_probe(clip_folder, tmp_path / "pets", dataset_config="a", eps=[]).rows[0].value == 1.0
