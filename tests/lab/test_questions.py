"""The lab's yes-or-no questions: balanced, always the same, and true of the images they are asked about."""

from __future__ import annotations

import pytest
import torch

from fare_hf.lab import load_llava, measure, questions
from fare_hf.lab.drawings import TEST_STYLES, main_concepts
from fare_hf.lab.names import QUESTION_SETS
from fare_hf.lab.questions import SPLITS, load_question_set
from fare_hf.vlm import generate_text


def concept_of(prompt: str) -> str:
    """The thing that a question asks for."""
    name = prompt.removeprefix("USER: <image>\nIs there ").removesuffix(" in the image? ASSISTANT:")
    return name.removeprefix("an ").removeprefix("a ")


@pytest.mark.parametrize("style", TEST_STYLES)
@pytest.mark.parametrize("name", QUESTION_SETS)
def test_questions_are_balanced_and_always_the_same(name: str, style: str) -> None:
    first = load_question_set(name, style)
    load_question_set.cache_clear()
    second = load_question_set(name, style)
    assert first.prompts == second.prompts and torch.equal(first.pixels, second.pixels)
    assert first.answers.count("yes") == first.answers.count("no") == len(first) // 2
    assert {concept_of(prompt) for prompt in first.prompts} <= set(main_concepts())
    assert len(first.first(10)) == {"yes-no": 10, "pope": 60}[name]


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


def test_questions_of_another_style_are_measured_on_its_images() -> None:
    asked, llava = load_question_set("yes-no", "openmoji").first(24), load_llava()
    said = generate_text(*llava, asked.pixels, asked.prompts, max_new_tokens=5)
    budget = measure.Budget(questions={"yes-no": 24})
    (row,) = measure.measure_questions("x", llava, budget, [], style="openmoji")
    right = [answer == wanted for answer, wanted in zip(said, asked.answers, strict=True)]
    assert row.dataset == "yes-no, openmoji" and row.value == pytest.approx(sum(right) / 24)
