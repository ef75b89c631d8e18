"""The lab's yes-or-no questions: balanced, always the same, and true of the images they are asked about."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from fare_hf import ThreatModel
from fare_hf.evaluation import NamesConcept, ThingsNamed, evaluate_vlm
from fare_hf.lab import load_llava, load_test_set, measure, questions
from fare_hf.lab.captions import caption_of
from fare_hf.lab.drawings import TEST_STYLES, all_concepts, main_concepts
from fare_hf.lab.names import QUESTION_SETS
from fare_hf.lab.questions import GREY, SPLITS, load_question_set, load_scenes
from fare_hf.vlm import generate_text


def concept_of(prompt: str) -> str:
    """The thing that a question asks for."""
    name = prompt.removeprefix("USER: <image>\nIs there ").removesuffix(" in the image? ASSISTANT:")
    return name.removeprefix("an ").removeprefix("a ")


SETS = [(name, style) for name in QUESTION_SETS for style in TEST_STYLES[: 1 if name in GREY else None]]


@pytest.mark.parametrize(("name", "style"), SETS)
def test_questions_are_balanced_and_always_the_same(name: str, style: str) -> None:
    first = load_question_set(name, style)
    load_question_set.cache_clear()
    second = load_question_set(name, style)
    assert first.prompts == second.prompts and torch.equal(first.pixels, second.pixels)
    assert first.answers.count("yes") == first.answers.count("no") == len(first) // 2
    known = load_test_set(GREY[name]).class_names if name in GREY else main_concepts()
    assert {concept_of(prompt) for prompt in first.prompts} <= set(known)
    assert len(first.first(10)) == (60 if name == "pope" else 10)


@pytest.mark.parametrize("name", GREY)
def test_questions_about_clothes_and_digits_are_true_of_their_images(name: str) -> None:
    asked, test = load_question_set(name), load_test_set(GREY[name])
    classes = {
        image.numpy().tobytes(): test.class_names[label]
        for image, label in zip(test.pixels, test.labels.tolist(), strict=True)
    }
    assert len(asked) == 200 and len({image.numpy().tobytes() for image in asked.pixels}) > 190
    for image, prompt, answer in zip(asked.pixels, asked.prompts, asked.answers, strict=True):
        assert (concept_of(prompt) == classes[image.numpy().tobytes()]) == (answer == "yes")
    assert len({concept_of(prompt) for prompt in asked.prompts}) == len(test.class_names)
    with pytest.raises(ValueError, match="openmoji"):
        load_question_set(name, "openmoji")


def test_the_scenes_that_are_captioned_are_those_of_pope() -> None:
    scenes, asked = load_scenes("fxemoji"), load_question_set("pope", "fxemoji")
    assert len(scenes) == 100 and torch.equal(scenes.pixels[asked.groups], asked.pixels)
    for image, prompt, answer in zip(asked.groups.tolist(), asked.prompts, asked.answers, strict=True):
        assert (concept_of(prompt) in scenes.things[image]) == (answer == "yes")
    assert scenes.captions[0] == caption_of(scenes.things[0]) and len(scenes.first(7)) == 7


def test_things_named_in_scenes_are_counted() -> None:
    llava, shown = load_llava(), load_scenes().first(6)
    said = generate_text(*llava, shown.pixels, measure.PROMPT, max_new_tokens=24)
    threat, answers = ThreatModel("linf", "8/255"), list[dict]()
    budget = measure.Budget(scenes=6, caption_steps=5)
    clean, attacked = measure.measure_scenes("x", llava, budget, [threat], answers=answers)
    assert [answer["clean"] for answer in answers] == said
    assert (clean.task, clean.dataset, clean.metric, clean.n) == ("captions", "scenes", "things named", 6)
    pattern = NamesConcept(all_concepts())
    by_hand = [
        sum(pattern(text, thing) for thing in things) / len(things)
        for text, things in zip(said, shown.things, strict=True)
    ]
    assert clean.scores == pytest.approx(by_hand) and attacked.value < clean.value


def test_nothing_that_is_shown_is_asked_for_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scenes are composed again with what they show written down."""
    shown: list[set[str]] = []
    by_image = {id(d.image): d.concept for d in questions.drawings("fxemoji")}
    several = questions.scenes.several

    def noted(pictures: list, *arguments: object) -> object:
        shown.append({by_image[id(picture)] for picture in pictures})
        return several(pictures, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(questions.scenes, "several", noted)
    asked = load_question_set.__wrapped__("pope", "fxemoji")
    for prompt, answer, image in zip(asked.prompts, asked.answers, asked.groups.tolist(), strict=True):
        assert (concept_of(prompt) in shown[image]) == (answer == "yes")
    assert asked.splits == [split for _ in shown for split in SPLITS for _ in range(2)]
    counts = {name: sum(name in scene for scene in shown) for name in main_concepts()}
    popular = [
        (concept_of(prompt), shown[image])
        for prompt, answer, split, image in zip(
            asked.prompts, asked.answers, asked.splits, asked.groups.tolist(), strict=True
        )
        if (split, answer) == ("popular", "no")
    ]
    for name, scene in popular:
        assert counts[name] == max(count for other, count in counts.items() if other not in scene)


@pytest.mark.parametrize("things", [["cat"], [[]], [["cat", " "]], [[3]], []])
def test_things_that_are_no_lists_of_names_are_refused(things: list) -> None:
    with pytest.raises(ValueError, match="give a list of the names of what it shows|give one caption of each"):
        ThingsNamed(things, ["a cat"])


def test_captions_of_scenes_go_on_with_the_same_things_alone(tmp_path: Path) -> None:
    llava, shown = load_llava(), load_scenes().first(2)
    names = {"prompt": measure.PROMPT, "model": "x", "task": "captions", "dataset": "d", "folder": tmp_path}
    ask = partial(evaluate_vlm, *llava, shown.pixels, names.pop("prompt"), **names)
    ask(ThingsNamed(shown.things, shown.captions))
    with pytest.raises(ValueError, match="holds a run with another references"):
        ask(ThingsNamed([["zebra"]] * 2, shown.captions))


def test_there_are_no_questions_about_clothes_of_another_style() -> None:
    budget = measure.Budget(questions={"yes-no-digits": 2})
    assert measure.measure_questions("x", load_llava(), budget, [], style="openmoji") == []
    (row,) = measure.measure_questions("x", load_llava(), budget, [])
    assert row.dataset == "yes-no-digits" and row.scores is not None and len(row.scores) == row.n == 2


def test_questions_of_another_style_are_measured_on_its_images() -> None:
    asked, llava = load_question_set("yes-no", "openmoji").first(24), load_llava()
    said = generate_text(*llava, asked.pixels, asked.prompts, max_new_tokens=5)
    budget = measure.Budget(questions={"yes-no": 24})
    (row,) = measure.measure_questions("x", llava, budget, [], style="openmoji")
    right = [answer == wanted for answer, wanted in zip(said, asked.answers, strict=True)]
    assert row.dataset == "yes-no, openmoji" and row.value == pytest.approx(sum(right) / 24)
