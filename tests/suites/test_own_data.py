"""Jobs of a suite on images of one's own: with classes, with captions, with nothing but a string to force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_llava import encoder
from helpers.vlm_folders import TEMPLATE, write_captions, write_llava
from PIL import Image

from fare_hf import evaluate, evaluate_vlm_on_data
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
