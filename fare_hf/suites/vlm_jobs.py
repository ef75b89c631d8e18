"""Jobs of vision-language models whose tower is an encoder of the suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fare_hf.evaluation.processes import process_state
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.evaluate import with_samples
from fare_hf.evaluation.vlm.forced_strings import evaluate_targeted
from fare_hf.evaluation.vlm.own_data import (
    COLUMNS,
    TASKS,
    Texts,
    VlmImages,
    check_task,
    load_vlm_data,
    load_vlm_images,
)
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION, VlmData, chat_prompt, load_vlm_set, vlm_set
from fare_hf.files.folders import is_missing_path
from fare_hf.lab import TEST_SETS, measure
from fare_hf.lab.captions import chat
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.lab.names import LAB_VLMS, QUESTION_SETS, TEXT_SETS, check_vlm, is_in_lab, lab_name
from fare_hf.suites.settings import Attacked, Count, Job, Says, Subject, Template, Text, one_of
from fare_hf.vlm import swap_vision_tower

__all__ = ["VLM_JOBS", "Targeted", "Vlm"]

TARGETED_TOKENS = 20
"""Of an answer, as `evaluate_targeted` has it."""


@dataclass(frozen=True, kw_only=True)
class OfAVlm(Attacked):
    """Of a vision-language model with the subject for its tower.

    Attributes:
        vlm: which; the lab's have the lab's sets, every other one the paper's, and all have folders and repositories.
        template: of prompts, for models without a chat template.
        batch_size: images of a forward pass.
    """

    lab_sets: ClassVar[tuple[str, ...]]
    vlm: Text
    template: Annotated[Template, Says.NOT_OF_THE_LAB] = None
    batch_size: Annotated[Count, Says.NOT_OF_THE_LAB] = None

    def check(self, where: str) -> None:
        super().check(where)
        check_vlm(self.vlm, f"{where}: vlm ")
        if not self.is_own and is_in_lab(self.set) != is_in_lab(self.vlm):
            raise ValueError(
                f"{where} has set {self.set!r} for vlm {self.vlm!r}: only {LAB_VLMS} have lab sets, "
                "others the paper's."
            )
        if is_missing_path(self.vlm):
            raise ValueError(f"{where} has vlm {self.vlm!r}, and there is nothing: check the path.")
        if is_in_lab(self.set):
            lab_name(self.set, self.lab_sets, f"{where}: set ")
        elif not self.is_own:
            vlm_set(self.set)

    def swapped(self, subject: Subject) -> tuple[Any, Any]:
        """The model with the subject for its tower, and its processor."""
        vlm, processor = load_vlm_and_processor(self.vlm)
        swap_vision_tower(vlm, subject.name_or_path, processor)
        return vlm.to(process_state().device), processor

    def data(self, processor: Any) -> VlmData:
        """The set, as the model reads it."""
        return load_vlm_set(self.set, processor, **self.given("samples", "seed", "root", "template"))

    def _lab_options(self, subject: Subject) -> dict[str, Any]:
        """Of the lab's measurements."""
        effort = {"threat_models": self.threats(), "seed": self.seed}
        return effort | {"folder": subject.states, "distributed": True}

    def texts(self, prompt: str | None, *names: str) -> Texts:
        """Where a folder or repository has its images and words."""
        template = self.template or (chat("{}") if is_in_lab(self.vlm) else None)
        return Texts(prompt=prompt, template=template, **self.given("split", "dataset_config", "image_column", *names))


@dataclass(frozen=True, kw_only=True)
class Vlm(OfAVlm):
    """Captions or answers, as `evaluate_vlm`.

    Attributes:
        task: of a folder or repository, "captions", "vqa" or "pope".
        caption_column, question_column, answer_column: of its words; found where just one has a usual name.
        prompt: what is asked of every image; for questions with `{}` for the question.
        max_new_tokens: of an answer; by default 20 for captions and 5 for questions.
    """

    kind: ClassVar[str] = "vlm"
    lab_sets: ClassVar[tuple[str, ...]] = (*TEXT_SETS, *TEST_SETS)
    task: Annotated[str | None, one_of(TASKS[:3]), Says.OF_OWN_DATA] = None
    caption_column: Annotated[Text | None, Says.OF_OWN_DATA] = None
    question_column: Annotated[Text | None, Says.OF_OWN_DATA] = None
    answer_column: Annotated[Text | None, Says.OF_OWN_DATA] = None
    prompt: Annotated[Text | None, Says.OF_OWN_DATA] = None
    max_new_tokens: Annotated[Count, Says.OF_OWN_DATA] = None

    def check(self, where: str) -> None:
        super().check(where)
        if self.is_own and self.task is None:
            raise ValueError(f"{where} has set {self.set!r} and no task: say captions, vqa or pope.")
        if self.is_own and self.task is not None:
            check_task(self.task, self.texts(self.prompt))

    def silent(self) -> frozenset[str]:
        others = {column for columns in COLUMNS.values() for column in columns} - set(COLUMNS.get(self.task or "", ()))
        return super().silent() | others

    def figures(self) -> tuple[Any, ...]:
        return (*super().figures(), self.task)

    def data(self, processor: Any) -> VlmData:
        if not self.is_own:
            return super().data(processor)
        return load_vlm_data(self.set, processor, self.task or "", self._texts(), **self.given("samples", "seed"))

    def _texts(self) -> Texts:
        return self.texts(self.prompt, "caption_column", "question_column", "answer_column", "max_new_tokens")

    def run(self, subject: Subject) -> list[Row]:
        vlm, processor = self.swapped(subject)
        if is_in_lab(self.set):
            return self._run_on_the_lab(subject, (vlm, processor))
        data = self.data(processor)
        options = self.given("steps", "batch_size", "seed") | {"threat_models": self.threats()}
        options |= {"model": subject.model, "task": data.task, "dataset": data.name, "targets": data.targets}
        options |= {"max_new_tokens": data.max_new_tokens, "folder": subject.states, "distributed": True}
        found = evaluate_vlm(vlm, processor, data.images, data.prompts, data.metric, **options)
        return with_samples(found, data.metric).rows if self.is_own else found.rows

    def _run_on_the_lab(self, subject: Subject, llava: tuple[Any, Any]) -> list[Row]:
        options = self._lab_options(subject)
        if self.dataset not in QUESTION_SETS:
            effort = (self.samples, self.steps)
            return measure.measure_descriptions(subject.model, llava, self.dataset, *effort, **options)
        questions = {self.dataset: self.samples}
        budget = measure.Budget(questions=questions, question_steps=self.steps or measure.Budget.question_steps)
        return measure.measure_questions(subject.model, llava, budget, **options)


@dataclass(frozen=True, kw_only=True)
class Targeted(OfAVlm):
    """How often a string is forced, as `evaluate_targeted`.

    Attributes:
        samples: of the lab's sets, 100 without it.
        target: the string.
        question: what is asked.
        max_new_tokens: of an answer.
    """

    kind: ClassVar[str] = "targeted"
    lab_sets: ClassVar[tuple[str, ...]] = TEST_SETS
    target: Text | None = None
    question: Annotated[Text, Says.NOT_OF_THE_LAB] = CAPTION_QUESTION
    max_new_tokens: Annotated[Count, Says.NOT_OF_THE_LAB] = None

    def check(self, where: str) -> None:
        super().check(where)
        if not self.eps or (not is_in_lab(self.set) and self.target is None):
            raise ValueError(
                f"{where} is of kind 'targeted': give it eps, and a target string for sets that are not the lab's."
            )

    def run(self, subject: Subject) -> list[Row]:
        vlm, processor = self.swapped(subject)
        if is_in_lab(self.set):
            return self._run_on_the_lab(subject, (vlm, processor))
        options = self.given("steps", "batch_size", "seed") | {"threat_models": self.threats(), "distributed": True}
        shown = self.shown(processor)
        options |= {"model": subject.model, "dataset": shown.name, "prompt": shown.prompt}
        options |= {"max_new_tokens": shown.max_new_tokens, "folder": subject.states}
        return evaluate_targeted(vlm, processor, shown.images, self.target or "", **options).rows

    def shown(self, processor: Any) -> VlmImages:
        """The images, and what is asked of them."""
        if self.is_own:
            texts = self.texts(self.question, "max_new_tokens")
            return load_vlm_images(self.set, processor, texts, **self.given("samples", "seed"))
        data = self.data(processor)
        prompt = chat_prompt(processor, self.question, self.template)
        return VlmImages(data.name, data.images, prompt, self.max_new_tokens or TARGETED_TOKENS)

    def _run_on_the_lab(self, subject: Subject, llava: tuple[Any, Any]) -> list[Row]:
        images, steps = self.samples or measure.Budget.targeted, self.steps or measure.Budget.targeted_steps
        budget = measure.Budget(targeted=images, targeted_steps=steps, targeted_sets=(self.dataset,))
        options = self._lab_options(subject) | self.given("target")
        return measure.measure_targeted(subject.model, llava, budget, **options)


VLM_JOBS: tuple[type[Job], ...] = (Vlm, Targeted)
