"""Measures encoders and vision-language models on the lab's sets: the quickstart on parts, the full table on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedModel,
    ProcessorMixin,
)

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import text_classifier
from fare_hf.evaluation import (
    NamesConcept,
    Row,
    TextEvaluation,
    ThingsNamed,
    VqaAccuracy,
    YesNo,
    evaluate_captions,
    evaluate_targeted,
    evaluate_vlm,
)
from fare_hf.evaluation.vlm.answers import answers_of
from fare_hf.evaluation.vlm.ensemble import QUESTION_TARGETS
from fare_hf.evaluation.vlm.evaluate import with_samples
from fare_hf.evaluation.vlm.metrics import TextMetric
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot
from fare_hf.lab.captions import CAPTION_PROMPT, chat
from fare_hf.lab.drawings import TEST_STYLES, all_concepts
from fare_hf.lab.names import MODELS, QUESTION_SETS, captioned_set
from fare_hf.lab.questions import GREY, load_question_set, load_scenes
from fare_hf.lab.sets import TestSet, load_test_set

TARGET = "a photo of a cat"
"""What the targeted attack forces: the caption of something that is in no test image. Chosen from "a cat",
"a rainbow" and "a crocodile" as the easiest to force on the original tower of an earlier LLaVA, on fxemoji and on
training digits; with the LLaVA that is shipped other captions do no better (`model_cards/lab-llava.md`)."""
TARGETED_SETS = ("twemoji", "digits")
THREAT_MODELS = (ThreatModel("linf", "2/255"), ThreatModel("linf", "4/255"))
PROMPT = chat(CAPTION_PROMPT)
Clip = tuple[CLIPModel, CLIPTokenizer]
Vlm = tuple[PreTrainedModel, ProcessorMixin]
NAMES = {"llava": "LLaVA", "smolvlm": "SmolVLM"}


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        samples: for each zero-shot set, how many images (None is all).
        steps: APGD steps of each zero-shot run.
        target_classes: wrong classes that the targeted DLR loss is run for.
        captions: images captioned and attacked.
        caption_steps: APGD steps of the attack on a caption.
        scenes: scenes of several drawings captioned and attacked (None is all).
        targeted: images of each of `targeted_sets` on which a sentence is forced.
        targeted_steps: APGD steps of that.
        targeted_sets: which sets.
        questions: for each of `QUESTION_SETS`, about how many images is asked (None is all).
        question_steps: APGD steps of each stage of the attack on an answer.
    """

    samples: Mapping[str, int | None] = field(default_factory=dict)
    steps: int = 50
    target_classes: int = 2
    captions: int | None = None
    caption_steps: int = 50
    scenes: int | None = None
    targeted: int = 100
    targeted_steps: int = 100
    targeted_sets: Sequence[str] = TARGETED_SETS
    questions: Mapping[str, int | None] = field(default_factory=dict)
    question_steps: int = 50


FULL = Budget({"twemoji": None, "fashion": None, "digits": None}, questions={name: None for name in QUESTION_SETS})
QUICK = Budget(
    {"twemoji": 100, "fashion": 40, "digits": 40},
    steps=20,
    captions=60,
    caption_steps=40,
    scenes=16,
    targeted=10,
    targeted_steps=40,
    questions={"yes-no": 48, "yes-no-fashion": 24, "yes-no-digits": 24, "pope": 16},
    question_steps=20,
)
SEEDS = Budget(
    {"twemoji": 200, "fashion": 150, "digits": 150},
    steps=20,
    captions=100,
    caption_steps=40,
    scenes=50,
    targeted=32,
    targeted_steps=60,
    questions={"yes-no": 100, "yes-no-fashion": 100, "yes-no-digits": 100, "pope": 40},
    question_steps=20,
)
"""For several seeds of one training (`examples/lab_seeds.py`)."""


def part(name: str, count: int | None) -> TestSet:
    """A test set, or `count` of its images spread evenly."""
    whole = load_test_set(name)
    return whole if count is None else whole.first(count)


def text_embeddings(clip: Clip, test: TestSet) -> Tensor:
    """Class embeddings (K, D) of a test set's prompts."""
    return text_classifier(*clip, test.prompts, ["{}"])


def lab_normalization() -> Normalization:
    """The normalisation of every lab model."""
    return Normalization.from_processor(
        AutoImageProcessor.from_pretrained(MODELS / "clip", backend="pil", trust_remote_code=False)
    )


def measure_zero_shot(
    name: str,
    encoder: PreTrainedModel,
    clip: Clip,
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
) -> list[Row]:
    """Zero-shot rows of one encoder (`CLIPVisionModelWithProjection`) on every set of the budget."""
    rows = []
    for dataset, count in budget.samples.items():
        test = part(dataset, count)
        options = _options(name, dataset, test.groups, threat_models, seed, False)
        options |= {
            "steps": budget.steps,
            "target_classes": budget.target_classes,
            "normalization": lab_normalization(),
        }
        rows += evaluate_zero_shot(encoder, text_embeddings(clip, test), test.pixels, test.labels, **options).rows
    return rows


def measure_captions(
    name: str,
    vlm: Vlm,
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    keep: Sequence[int] = (),
    folder: Path | None = None,
    distributed: bool = False,
    dataset: str = "twemoji",
    answers: list[dict[str, Any]] | None = None,
) -> TextEvaluation:
    """Captions of one of `TEST_SETS`, clean and attacked; a caption is right if it names the concept.

    Here and below, `folder` keeps what is finished, as for `evaluate_captions`; to `answers` is added what was said.
    """
    test = part(dataset, budget.captions)
    wanted = [test.class_names[label] for label in test.labels.tolist()]
    targets = [test.prompts[label] for label in test.labels.tolist()]
    options = _options(_shown(vlm, name), dataset, test.groups, threat_models, seed, distributed)
    options |= {"prompt": PROMPT, "steps": budget.caption_steps, "max_new_tokens": 14, "keep": keep, "folder": folder}
    rule = NamesConcept((*all_concepts(), *test.class_names))
    found = evaluate_captions(*vlm, test.pixels, targets, wanted, correct=rule, **options)
    if answers is not None:
        answers += answers_of(found, [PROMPT] * len(wanted), [[word] for word in wanted])
    return found


def measure_scenes(
    name: str,
    vlm: Vlm,
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    folder: Path | None = None,
    distributed: bool = False,
    answers: list[dict[str, Any]] | None = None,
) -> list[Row]:
    """Captions of scenes of two or three drawings: the fraction of them that is named, clean and attacked."""
    shown = load_scenes().first(budget.scenes)
    metric = ThingsNamed(shown.things, shown.captions, all_concepts())
    options = _options(_shown(vlm, name), "scenes", torch.arange(len(shown)), threat_models, seed, distributed)
    options |= {"task": "captions", "steps": budget.caption_steps, "half": None, "max_new_tokens": 24}
    found = evaluate_vlm(*vlm, shown.pixels, PROMPT, metric, **options, folder=folder)
    if answers is not None:
        answers += answers_of(found, [PROMPT] * len(shown), [[caption] for caption in shown.captions])
    return with_samples(found, metric).rows


def measure_descriptions(
    name: str, vlm: Vlm, dataset: str, samples: int | None, steps: int | None, **options: Any
) -> list[Row]:
    """Captions of a set as commands and suites name it: `scenes`, `captions` or one of `TEST_SETS`.

    Args:
        name, vlm, options: as for `measure_captions`.
        dataset: its name.
        samples: how many images; None is all.
        steps: of each attack; None is the usual number.
    """
    budget = Budget(captions=samples, scenes=samples, caption_steps=steps or Budget.caption_steps)
    if dataset == "scenes":
        return measure_scenes(name, vlm, budget, **options)
    return measure_captions(name, vlm, budget, **options, dataset=captioned_set(dataset)).rows


def measure_targeted(
    name: str,
    vlm: Vlm,
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    target: str = TARGET,
    folder: Path | None = None,
    distributed: bool = False,
    answers: list[dict[str, Any]] | None = None,
) -> list[Row]:
    """In how many images of each of the budget's sets an attacker makes the model caption them with the target."""
    rows = []
    for dataset in budget.targeted_sets:
        test = part(dataset, budget.targeted)
        options = _options(_shown(vlm, name), dataset, test.groups, threat_models, seed, distributed)
        options |= {"prompt": PROMPT, "steps": budget.targeted_steps, "max_new_tokens": 14}
        options["folder"] = folder and folder / dataset
        found = evaluate_targeted(*vlm, test.pixels, target, **options)
        rows += found.rows
        if answers is not None:
            answers += answers_of(found, [PROMPT] * len(test.pixels), [[target]] * len(test.pixels))
    return rows


def measure_questions(
    name: str,
    vlm: Vlm,
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    folder: Path | None = None,
    distributed: bool = False,
    style: str = TEST_STYLES[0],
    answers: list[dict[str, Any]] | None = None,
) -> list[Row]:
    """Yes-or-no questions: VQA accuracy on drawings, clothes and digits, POPE's F1 on scenes, clean and attacked.

    Of another `style` than the main one there are only those about drawings.
    """
    rows = []
    for dataset, count in budget.questions.items():
        if dataset in GREY and style != TEST_STYLES[0]:
            continue
        asked = load_question_set(dataset, style).first(count)
        called = dataset if style == TEST_STYLES[0] else f"{dataset}, {style}"
        options = _options(_shown(vlm, name), called, asked.groups, threat_models, seed, distributed)
        options |= {"steps": budget.question_steps, "half": None, "max_new_tokens": 5}
        options["folder"] = folder and folder / dataset
        metric: TextMetric = VqaAccuracy([[answer] * 10 for answer in asked.answers])
        options |= {"task": "vqa", "targets": QUESTION_TARGETS}
        if asked.splits is not None:
            metric = YesNo(asked.answers, asked.splits, words=("yes", "no"))
            options |= {"task": "pope", "targets": ()}
        found = evaluate_vlm(*vlm, asked.pixels, asked.prompts, metric, **options)
        rows += found.rows if asked.splits is not None else with_samples(found, metric).rows
        if answers is not None:
            answers += answers_of(found, asked.prompts, [[answer] for answer in asked.answers])
    return rows


def _shown(vlm: Vlm, tower: str) -> str:
    """A model with a tower, as rows name it."""
    return f"{NAMES[vlm[0].config.model_type]} + {tower}"


def _options(
    model: str, dataset: str, groups: Tensor, threat_models: Sequence[ThreatModel], seed: int, distributed: bool
) -> dict[str, Any]:
    """What every evaluation is told."""
    options: dict[str, Any] = {"model": model, "dataset": dataset, "groups": groups.tolist()}
    return options | {"threat_models": threat_models, "seed": seed, "distributed": distributed}
