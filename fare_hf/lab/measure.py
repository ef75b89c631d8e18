"""Measures encoders and LLaVAs on the lab's sets: the quickstart on parts of them, the full table on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import text_classifier
from fare_hf.evaluation import (
    NamesConcept,
    Row,
    TextEvaluation,
    VqaAccuracy,
    YesNo,
    evaluate_captions,
    evaluate_targeted,
    evaluate_vlm,
)
from fare_hf.evaluation.vlm.ensemble import QUESTION_TARGETS
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot
from fare_hf.lab.captions import CAPTION_PROMPT, chat, zero_shot_prompts
from fare_hf.lab.drawings import all_concepts
from fare_hf.lab.models import MODELS
from fare_hf.lab.questions import QUESTION_SETS, load_question_set
from fare_hf.lab.sets import TestSet, load_test_set

TARGET = "a photo of a cat"
"""What the targeted attack forces: the caption of something that is in no test image. Chosen from "a cat",
"a rainbow" and "a crocodile" as the easiest to force on the original tower of an earlier LLaVA, on fxemoji and on
training digits; with the LLaVA that is shipped other captions do no better (`model_cards/lab-llava.md`)."""
TARGETED_SETS = ("twemoji", "digits")
THREAT_MODELS = (ThreatModel("linf", "2/255"), ThreatModel("linf", "4/255"))
PROMPT = chat(CAPTION_PROMPT)


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        images: for each zero-shot set, how many images (None is all).
        steps: APGD steps of each zero-shot run.
        targets: wrong classes that the targeted DLR loss is run for.
        captions: images captioned and attacked.
        caption_steps: APGD steps of the attack on a caption.
        targeted: images of each of `targeted_sets` on which a sentence is forced.
        targeted_steps: APGD steps of that.
        targeted_sets: which sets.
        questions: for each of `QUESTION_SETS`, about how many images is asked (None is all).
        question_steps: APGD steps of each stage of the attack on an answer.
    """

    images: Mapping[str, int | None] = field(default_factory=dict)
    steps: int = 50
    targets: int = 2
    captions: int | None = None
    caption_steps: int = 50
    targeted: int = 100
    targeted_steps: int = 100
    targeted_sets: Sequence[str] = TARGETED_SETS
    questions: Mapping[str, int | None] = field(default_factory=dict)
    question_steps: int = 50


FULL = Budget({"twemoji": None, "fashion": None, "digits": None}, questions={name: None for name in QUESTION_SETS})
QUICK = Budget(
    {"twemoji": 224, "fashion": 100, "digits": 100},
    steps=20,
    targets=2,
    captions=48,
    caption_steps=40,
    targeted=32,
    targeted_steps=60,
    questions={"yes-no": 48, "pope": 16},
    question_steps=20,
)
SEEDS = Budget(
    {"twemoji": 200, "fashion": 150, "digits": 150},
    steps=20,
    targets=2,
    captions=100,
    caption_steps=40,
    targeted=32,
    targeted_steps=60,
    questions={"yes-no": 100, "pope": 40},
    question_steps=20,
)
"""For several seeds of one training (`examples/lab_seeds.py`)."""


def part(name: str, count: int | None) -> TestSet:
    """A test set, or `count` of its images spread evenly."""
    whole = load_test_set(name)
    return whole if count is None else whole.first(count)


def measure_zero_shot(
    name: str,
    encoder: PreTrainedModel,
    clip: tuple[CLIPModel, CLIPTokenizer],
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
) -> list[Row]:
    """Zero-shot rows of one encoder (`CLIPVisionModelWithProjection`) on every set of the budget."""
    rows = []
    for dataset, count in budget.images.items():
        test = part(dataset, count)
        rows += evaluate_zero_shot(
            encoder,
            text_embeddings(clip, test),
            test.pixels,
            test.labels,
            normalization=lab_normalization(),
            model=name,
            dataset=dataset,
            threat_models=threat_models,
            steps=budget.steps,
            targets=budget.targets,
            seed=seed,
            groups=test.groups.tolist(),
        )
    return rows


def text_embeddings(clip: tuple[CLIPModel, CLIPTokenizer], test: TestSet) -> Tensor:
    """Class embeddings (K, D) of a test set's prompts."""
    return text_classifier(*clip, test.prompts, ["{}"])


def lab_normalization() -> Normalization:
    """The normalisation of every lab model."""
    return Normalization.from_processor(CLIPImageProcessor.from_pretrained(MODELS / "clip"))


def measure_captions(
    name: str,
    llava: tuple[LlavaForConditionalGeneration, LlavaProcessor],
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    keep: Sequence[int] = (),
) -> TextEvaluation:
    """Captions of the main set, clean and attacked; a caption is right if it names the concept."""
    test = part("twemoji", budget.captions)
    wanted = [test.class_names[label] for label in test.labels.tolist()]
    prompts = zero_shot_prompts(test.class_names, "twemoji")
    return evaluate_captions(
        *llava,
        test.pixels,
        [prompts[label] for label in test.labels.tolist()],
        wanted,
        prompt=PROMPT,
        model=f"LLaVA + {name}",
        dataset="twemoji",
        threat_models=threat_models,
        correct=NamesConcept(all_concepts()),
        steps=budget.caption_steps,
        seed=seed,
        max_new_tokens=14,
        groups=test.groups.tolist(),
        keep=keep,
    )


def measure_targeted(
    name: str,
    llava: tuple[LlavaForConditionalGeneration, LlavaProcessor],
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
    target: str = TARGET,
) -> list[Row]:
    """In how many images of each of the budget's sets an attacker makes the LLaVA caption them with the target."""
    rows = []
    for dataset in budget.targeted_sets:
        test = part(dataset, budget.targeted)
        rows += evaluate_targeted(
            *llava,
            test.pixels,
            target,
            prompt=PROMPT,
            model=f"LLaVA + {name}",
            dataset=dataset,
            threat_models=threat_models,
            steps=budget.targeted_steps,
            seed=seed,
            max_new_tokens=14,
            groups=test.groups.tolist(),
        ).rows
    return rows


def measure_questions(
    name: str,
    llava: tuple[LlavaForConditionalGeneration, LlavaProcessor],
    budget: Budget,
    threat_models: Sequence[ThreatModel] = THREAT_MODELS,
    seed: int = 0,
) -> list[Row]:
    """Yes-or-no questions: VQA accuracy on single drawings, POPE's F1 on scenes, clean and attacked."""
    rows = []
    for dataset, count in budget.questions.items():
        asked = load_question_set(dataset).first(count)
        pope = asked.splits is not None
        rows += evaluate_vlm(
            *llava,
            asked.pixels,
            asked.prompts,
            YesNo(asked.answers, asked.splits, words=("yes", "no"))
            if pope
            else VqaAccuracy([[answer] * 10 for answer in asked.answers]),
            model=f"LLaVA + {name}",
            task="yes-no" if pope else "vqa",
            dataset=dataset,
            threat_models=threat_models,
            steps=budget.question_steps,
            targets=() if pope else QUESTION_TARGETS,
            half=None,
            seed=seed,
            max_new_tokens=5,
            groups=asked.groups.tolist(),
        ).rows
    return rows
