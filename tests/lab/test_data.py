"""The lab's images: what is in them, where they come from, and that they never change."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fare_hf.lab import (
    TEST_SETS,
    TRAINING_SETS,
    UNSEEN,
    captions,
    drawings,
    load_test_set,
    load_training_set,
    procedural,
    scenes,
    sets,
    training_sets,
)
from fare_hf.lab.concepts import ZERO_SHOT_CONCEPTS
from fare_hf.lab.drawings import DATA, TEST_STYLES, TRAIN_STYLES, VALIDATION_STYLE, main_concepts

LAB = Path(drawings.__file__).parent


def test_the_lab_fits_into_thirty_megabytes() -> None:
    """As a wheel holds it: deflated, and without what only the lab's own trainings read (`pyproject.toml`)."""
    files = [path for path in LAB.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    shipped = [path for path in files if path.name not in ("train-fashion.parquet", "train-digits.parquet")]
    assert 25e6 < sum(len(zlib.compress(path.read_bytes())) for path in shipped) < 29.4e6


def test_every_file_names_its_source_and_licence() -> None:
    sources = (DATA / "SOURCES.md").read_text()
    files = sorted(path.name for path in DATA.glob("*.parquet"))
    assert len(files) == 13
    for name in files:
        line = next(line for line in sources.splitlines() if f"`{name}`" in line)
        assert any(licence in line for licence in ("Apache-2.0", "MIT", "CC BY 4.0", "CC BY-SA 4.0"))


def test_reading_shows_and_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    cache = Path(os.environ["HF_HOME"])
    before = sorted(cache.rglob("*"))
    assert len(drawings.read_parquet("test-twemoji")) > 100
    assert sorted(cache.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_styles_are_disjoint_and_every_style_draws_every_main_concept() -> None:
    styles = (*TRAIN_STYLES, VALIDATION_STYLE, *TEST_STYLES)
    assert len(set(styles)) == len(styles) == 9
    for style in styles:
        drawn = [drawing.concept for drawing in drawings.drawings(style) if drawing.main]
        assert set(main_concepts()) <= set(drawn), style
    assert len(ZERO_SHOT_CONCEPTS) >= 100 and set(ZERO_SHOT_CONCEPTS) <= set(main_concepts())


def test_no_drawing_of_a_test_style_is_in_a_training_style() -> None:
    seen = {drawing.image.tobytes() for style in TRAIN_STYLES for drawing in drawings.drawings(style)}
    for style in (VALIDATION_STYLE, *TEST_STYLES):
        assert not any(drawing.image.tobytes() in seen for drawing in drawings.drawings(style))


@pytest.mark.parametrize("name", TEST_SETS)
def test_test_sets_are_large_enough_labelled_and_always_the_same(name: str) -> None:
    first = load_test_set(name)
    if name in ("twemoji", "digits"):  # composed again, for one set of each kind
        sets.images_of.cache_clear()
    second = load_test_set(name)
    assert len(first) >= 500
    assert first.pixels.shape == (len(first), 3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
    assert first.pixels.dtype == torch.float32 and 0 <= first.pixels.min() and first.pixels.max() <= 1
    assert torch.equal(first.pixels, second.pixels) and torch.equal(first.labels, second.labels)
    assert set(first.labels.tolist()) == set(range(len(first.class_names)))
    assert len(first.prompts) == len(first.class_names) == len(set(first.prompts))
    part = first.first(50)
    assert len(part) == 50 and torch.equal(part.pixels[0], first.pixels[0])
    assert torch.equal(part.groups[-1], first.groups[-1])


def test_images_of_one_drawing_share_a_group() -> None:
    test = load_test_set("twemoji")
    assert torch.equal(test.groups, test.labels)
    assert len(set(test.groups.tolist())) == len(ZERO_SHOT_CONCEPTS)


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_training_images_depend_on_seed_epoch_and_index_alone(name: str) -> None:
    first, second = load_training_set(name), load_training_set(name)
    item = first[17]
    second.set_epoch(1)
    other_epoch = second[17]
    second.set_epoch(0)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert torch.equal(item["pixel_values"], second[17]["pixel_values"])
    assert item.get("labels") == second[17].get("labels")
    assert not torch.equal(item["pixel_values"], other_epoch["pixel_values"])
    assert not torch.equal(item["pixel_values"], load_training_set(name, seed=1)[17]["pixel_values"])
    assert item["index"] == 17 and item["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize("name", TRAINING_SETS)
def test_fine_tuning_opens_the_drawings_of_the_training_styles_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that clothes, digits and the other styles are unseen, as `UNSEEN` says."""
    opened: list[str] = []
    read = drawings.read_parquet
    monkeypatch.setattr(drawings, "read_parquet", lambda file: opened.append(file) or read(file))
    for cached in (drawings.drawings, drawings.grey_images, drawings.all_concepts):
        cached.cache_clear()
    training = load_training_set(name)
    assert all(torch.isfinite(training[index]["pixel_values"]).all() for index in range(40))
    assert set(opened) == {f"train-{style}" for style in drawings.TRAIN_STYLES}
    assert not {f"train-{name}" for name in UNSEEN} & set(opened)


def test_broad_images_are_of_every_kind_and_have_no_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()

    def counted(inner: Any) -> Any:
        def noted(*arguments: Any) -> Any:
            made[inner.__name__] += 1
            return inner(*arguments)

        return noted

    for module, names in ((scenes, ("single", "several", "part")), (procedural, ("silhouette", "enlarged"))):
        for name in names:
            monkeypatch.setattr(module, name, counted(getattr(module, name)))
    monkeypatch.setattr(training_sets, "PROCEDURAL", tuple(map(counted, training_sets.PROCEDURAL)))
    training = load_training_set("images")
    assert not hasattr(training, "class_names") and set(training[0]) == {"pixel_values", "index"}
    for index in range(1, 200):
        pixels = training[index]["pixel_values"]
        assert pixels.shape == (3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE) and 0 <= pixels.min() <= pixels.max() <= 1
    assert made.pop("enlarged") > 20 and sum(made.values()) == 200  # each image is of one kind
    kinds = {"single", "several", "part", "silhouette", "strokes", "shapes", "texture"}
    assert made["single"] in range(80, 121) and made.keys() == kinds and min(made.values()) >= 3


@pytest.mark.parametrize("make", [procedural.strokes, procedural.shapes, procedural.texture])
def test_procedural_images_differ_from_each_other_and_within(make: Any) -> None:
    first, second = (np.asarray(make(np.random.default_rng(seed))) for seed in (1, 2))
    assert first.shape == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3) and (first != second).any() and first.std() > 1
    assert (first == np.asarray(make(np.random.default_rng(1)))).all()


def test_a_silhouette_keeps_the_outline_and_not_the_drawing() -> None:
    drawing = drawings.Image.new("RGBA", (128, 128), (255, 0, 0, 0))
    drawing.paste((255, 0, 0, 255), (32, 32, 96, 96))
    image = np.asarray(procedural.silhouette(drawing, np.random.default_rng(4)))
    assert not (image == (255, 0, 0)).all(-1).any() and image.std() > 10


def test_training_labels_name_what_is_drawn() -> None:
    training = load_training_set("drawings")
    for number in (0, 700, 2000):
        concept = training.drawings[number].concept
        assert training.class_names[training.labels[number]] == captions.with_article(concept)


def test_scenes_hold_each_drawing_in_its_own_quarter() -> None:
    red, blue = (drawings.Image.new("RGBA", (128, 128), colour) for colour in ("red", "blue"))
    scene = np.asarray(scenes.several([red, blue], np.random.default_rng(3), scenes.Variation(colour=0)))
    assert scene.shape == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3)
    half = scenes.IMAGE_SIZE // 2
    for colour in ((255, 0, 0), (0, 0, 255)):
        rows, columns = np.nonzero((scene == colour).all(-1))
        assert len(rows) > 1000
        assert len(set(rows // half)) == 1 and len(set(columns // half)) == 1


def test_sentences() -> None:
    assert captions.with_article("ambulance") == "an ambulance"
    assert captions.with_article("scissors") == "scissors"
    assert captions.enumerate_words(["bus", "key", "jeans"]) == "a bus, a key and jeans"
    assert captions.zero_shot_prompts(("seven",), "digits") == ["a handwritten digit, seven"]
    assert captions.chat("Who?", "me") == "USER: <image>\nWho? ASSISTANT: me"
    assert captions.yes_no_prompt("owl") == "Is there an owl in the image?"
