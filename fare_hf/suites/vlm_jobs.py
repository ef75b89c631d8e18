"""Jobs of vision-language models whose tower is an encoder of the suite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.forced_strings import evaluate_targeted
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION, VlmData, chat_prompt, load_vlm_set, vlm_set
from fare_hf.files.folders import is_missing_path
from fare_hf.lab import TEST_SETS, measure
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.lab.names import LLAVA, TEXT_SETS, is_in_lab, lab_name
from fare_hf.suites.settings import Attacked, Count, Job, Says, Subject, Template, Text
from fare_hf.vlm import swap_vision_tower

__all__ = ["VLM_JOBS", "Targeted", "Vlm"]


@dataclass(frozen=True, kw_only=True)
class OfAVlm(Attacked):
    """Of a vision-language model with the subject for its tower.

    Attributes:
        vlm: which; `lab:llava` has the lab's sets, every other one those of the Hub.
        template: of prompts, for models without a chat template.
        batch_size: images of a forward pass.
    """

    lab_sets: ClassVar[tuple[str, ...]]
    vlm: Text
    template: Annotated[Template, Says.ON_THE_HUB] = None
    batch_size: Annotated[Count, Says.ON_THE_HUB] = None

    def check(self, where: str) -> None:
        super().check(where)
        if is_in_lab(self.set) != (self.vlm == LLAVA):
            raise ValueError(
                f"{where} has set {self.set!r} for vlm {self.vlm!r}: only {LLAVA} has lab sets, and no other sets."
            )
        if is_missing_path(self.vlm):
            raise ValueError(f"{where} has vlm {self.vlm!r}, and there is nothing: check the path.")
        if is_in_lab(self.set):
            lab_name(self.set, self.lab_sets, f"{where}: set ")
        else:
            vlm_set(self.set)

    def swapped(self, subject: Subject) -> tuple[Any, Any]:
        """The model with the subject for its tower, and its processor."""
        vlm, processor = load_vlm_and_processor(self.vlm)
        swap_vision_tower(vlm, subject.name_or_path)
        return vlm, processor

    def data(self, processor: Any) -> VlmData:
        """The set, as the model reads it."""
        return load_vlm_set(self.set, processor, **self.given("samples", "seed", "root", "template"))


@dataclass(frozen=True, kw_only=True)
class Vlm(OfAVlm):
    """Captions or answers, as `evaluate_vlm`; an interrupted job goes on in its middle."""

    kind: ClassVar[str] = "vlm"
    lab_sets: ClassVar[tuple[str, ...]] = TEXT_SETS

    def run(self, subject: Subject) -> list[Row]:
        vlm, processor = self.swapped(subject)
        if is_in_lab(self.set):
            return self._run_on_the_lab(subject.model, (vlm, processor))
        data = self.data(processor)
        options = self.given("steps", "batch_size", "seed") | {"threat_models": self.threats()}
        options |= {"model": subject.model, "task": data.task, "dataset": data.name, "targets": data.targets}
        options |= {"max_new_tokens": data.max_new_tokens, "folder": subject.states}
        return evaluate_vlm(vlm, processor, data.images, data.prompts, data.metric, **options).rows

    def _run_on_the_lab(self, model: str, llava: tuple[Any, Any]) -> list[Row]:
        if self.dataset == "captions":
            budget = measure.Budget(captions=self.samples, caption_steps=self.steps or measure.Budget.caption_steps)
            return measure.measure_captions(model, llava, budget, self.threats(), self.seed).rows
        questions = {self.dataset: self.samples}
        budget = measure.Budget(questions=questions, question_steps=self.steps or measure.Budget.question_steps)
        return measure.measure_questions(model, llava, budget, self.threats(), self.seed)


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
    question: Annotated[Text, Says.ON_THE_HUB] = CAPTION_QUESTION
    max_new_tokens: Annotated[Count, Says.ON_THE_HUB] = None

    def check(self, where: str) -> None:
        super().check(where)
        if not self.eps or (self.vlm != LLAVA and self.target is None):
            raise ValueError(
                f"{where} is of kind 'targeted': give it eps, and a target string for models not of the lab."
            )

    def run(self, subject: Subject) -> list[Row]:
        vlm, processor = self.swapped(subject)
        if is_in_lab(self.set):
            return self._run_on_the_lab(subject.model, (vlm, processor))
        data = self.data(processor)
        options = self.given("steps", "batch_size", "seed", "max_new_tokens") | {"threat_models": self.threats()}
        options |= {"model": subject.model, "dataset": data.name}
        options["prompt"] = chat_prompt(processor, self.question, self.template)
        return evaluate_targeted(vlm, processor, data.images, self.target or "", **options).rows

    def _run_on_the_lab(self, model: str, llava: tuple[Any, Any]) -> list[Row]:
        images, steps = self.samples or measure.Budget.targeted, self.steps or measure.Budget.targeted_steps
        budget = measure.Budget(targeted=images, targeted_steps=steps, targeted_sets=(self.dataset,))
        return measure.measure_targeted(model, llava, budget, self.threats(), self.seed, **self.given("target"))


VLM_JOBS: tuple[type[Job], ...] = (Vlm, Targeted)
