"""Any vision-language model on anybody's images, in one call: clean and attacked, with its own tower or another."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.attack_loop import check_threat_models
from fare_hf.evaluation.given import check_name, check_samples, first_repeated, names_for_rows, short_name
from fare_hf.evaluation.processes import opening_together, process_state
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.vlm.answers import answers_of
from fare_hf.evaluation.vlm.ensemble import VlmEvaluation, evaluate_vlm
from fare_hf.evaluation.vlm.forced_strings import evaluate_targeted, target_loss
from fare_hf.evaluation.vlm.metrics import TextMetric, YesNo
from fare_hf.evaluation.vlm.own_data import Texts, VlmImages, check_task, load_vlm_data, load_vlm_images
from fare_hf.evaluation.vlm.sets import VlmData, is_vlm_set, load_vlm_set, strings, vlm_set
from fare_hf.pretrained.loading import load_processor, load_vlm, vlm_configuration
from fare_hf.vlm import swap_vision_tower
from fare_hf.vlm.families.table import family_of_config
from fare_hf.vlm.swap.before_loading import check_swap

__all__ = ["VlmDataEvaluation", "evaluate_vlm_on_data", "with_samples"]

logger = logging.getLogger(__name__)
Name: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, kw_only=True)
class VlmDataEvaluation(Evaluation):
    """What `evaluate_vlm_on_data` measured.

    Attributes:
        answers: what was said to each image with each tower, as `fare_hf.evaluation.vlm.answers.answers_of` has it.
    """

    answers: list[dict[str, Any]]


@opening_together()
def evaluate_vlm_on_data(
    vlm: Name | tuple[Any, Any],
    dataset: Name,
    task: str,
    *,
    encoder: Name | None = None,
    against: Name | None = None,
    split: str | None = None,
    dataset_config: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    prompt: str | None = None,
    template: str | None = None,
    targets: Sequence[str] = (),
    eps: Sequence[float | str] = ("2/255", "4/255"),
    samples: int | None = None,
    steps: int = 100,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    report: Callable[[str], None] = logger.info,
) -> VlmDataEvaluation:
    """A vision-language model on images of one's own, clean and attacked, as `fare-hf evaluate --vlm` measures it.

    Processes that `accelerate launch` started divide the batches, which are those of one process, so that the result
    is the same too.

    Args:
        vlm: folder or repository of a model of `fare_hf.vlm.families.table.FAMILIES`; or the model and its processor.
        dataset: folder of images with their words in `metadata.jsonl` or `metadata.csv`, folder of shards, saved data
            set, or repository on the Hub; or a set of the paper's table such as "COCO".
        task: "captions" (CIDEr), "vqa" (VQA accuracy), "pope" (F1 of yes, and accuracy) under the ensemble of
            `evaluate_vlm`; "targeted" (how often each of `targets` is forced).
        encoder: swapped in for its tower; measured after the model with its own tower, on the same images.
        against: another encoder, measured in the place of the own tower.
        split: None takes "test", or the only one of what lies here. Of this and what follows, only `template` is for a
            set of the table too.
        dataset_config: of a data set with several configurations.
        image_column, caption_column, question_column, answer_column: None finds the one with a usual name.
        prompt: what is asked of every image; for questions with `{}` for the question.
        template: a whole prompt with the image token and `{}` for what is asked, for processors without a chat
            template.
        max_new_tokens: of an answer.
        targets: strings to force, for "targeted" alone.
        eps: radii of the linf ball; none for clean figures alone.
        samples: how many images, drawn by `seed`; None takes all, of the table's sets as many as the paper.
        steps, batch_size, seed: of the attacks.
        folder: where finished batches are written down, so that the same call, made again, goes on after the last one;
            delete it when the result is kept.
        report: gets a line on the images, and one whenever a tower's turn begins.

    Returns:
        Rows for each tower, clean and for each radius, and the answers behind them; `report()` has the rows as tables
        with the paired differences.

    Raises:
        ValueError, TypeError: what is no such model or no encoder, towers that do not fit, no such task, strings for
            another task or none for "targeted", one that is too long, and as `load_vlm_data`; all but the length
            before weights are loaded, where `vlm` is a name.

    Example:
        >>> import json, tempfile
        >>> from fare_hf.data.pixels import to_pil
        >>> from fare_hf.lab import encoder_folder, load_llava, load_test_set
        >>> photos = Path(tempfile.mkdtemp())
        >>> for number, picture in enumerate(to_pil(load_test_set("digits").pixels[:2])):
        ...     picture.save(photos / f"{number}.png")
        >>> lines = [{"file_name": f"{number}.png", "caption": "the number seven"} for number in range(2)]
        >>> _ = (photos / "metadata.jsonl").write_text("\\n".join(map(json.dumps, lines)))
        >>> chat = {"template": "USER: <image>\\n{} ASSISTANT:"}
        >>> robust = encoder_folder("fare-4")
        >>> found = evaluate_vlm_on_data(load_llava(), photos, "captions", encoder=robust, eps=[], **chat)
        >>> [(row.model, row.metric) for row in found.rows]
        [('Llava', 'CIDEr'), ('Llava + fare-4', 'CIDEr')]
    """
    check_name("dataset", dataset)
    check_samples(samples)
    columns = (image_column, caption_column, question_column, answer_column)
    texts = Texts(split, dataset_config, *columns, prompt, template, max_new_tokens)
    threats = [ThreatModel("linf", radius) for radius in eps]
    check_threat_models(threats)
    if against is not None and encoder is None:
        raise ValueError(f"against {str(against)!r} is what an encoder is compared with: give the encoder too.")
    towers = [None if one is None else str(one) for one in ([against] if encoder is None else [against, encoder])]
    plan = _Plan(str(dataset), task, texts, threats, tuple(targets), samples, steps, batch_size, seed)
    _check(plan, vlm, towers)
    own = _Model(*vlm, _called(vlm[0])) if isinstance(vlm, tuple) else _loaded(str(vlm), plan)
    for other in filter(None, towers):  # one that cannot be read or does not fit is told before hours of attacks
        with _with_tower(own, other):
            pass
    found: list[VlmDataEvaluation] = []
    for number, (tower, called) in enumerate(zip(towers, _names_with(own.name, towers), strict=True)):
        states = None if folder is None else Path(folder) / f"tower-{number}"
        with _with_tower(replace(own, name=called), tower) as model:
            report(f"measuring {called} on {plan.dataset}")
            found.append(plan.measure(model, states, None if number else report))
    return _with_answers(_together(found, seed), [line for one in found for line in one.answers])


@dataclass(frozen=True)
class _Model:
    """A vision-language model, its processor, and what rows call it."""

    vlm: Any
    processor: Any
    name: str


@dataclass(frozen=True)
class _Plan:
    """What is measured, whatever the tower."""

    dataset: str
    task: str
    texts: Texts
    threats: Sequence[ThreatModel]
    targets: tuple[str, ...]
    samples: int | None
    steps: int
    batch_size: int
    seed: int

    @property
    def of_the_table(self) -> bool:
        """Whether the data set is one of the paper's, and no folder of that name."""
        return is_vlm_set(self.dataset) and not Path(self.dataset).expanduser().is_dir()

    def data(self, processor: Any, report: Callable[[str], None] | None) -> VlmData:
        """Images with words, as a processor reads them."""
        choice: dict[str, Any] = {"samples": self.samples, "seed": self.seed}
        if self.of_the_table:
            return load_vlm_set(self.dataset, processor, template=self.texts.template, **choice)
        return load_vlm_data(self.dataset, processor, self.task, self.texts, report=report, **choice)

    def images(self, processor: Any, report: Callable[[str], None] | None) -> VlmImages:
        """Images without words."""
        choice: dict[str, Any] = {"samples": self.samples, "seed": self.seed}
        return load_vlm_images(self.dataset, processor, self.texts, report=report, **choice)

    def open(self, processor: Any, report: Callable[[str], None] | None = None) -> None:
        """Look at the images and their columns, before any weights are loaded."""
        (self.images if self.task == "targeted" else self.data)(processor, report)

    def measure(self, model: _Model, folder: Path | None, report: Callable[[str], None] | None) -> VlmDataEvaluation:
        """One tower."""
        options: dict[str, Any] = {"model": model.name, "threat_models": self.threats, "distributed": True}
        options |= {"steps": self.steps, "batch_size": self.batch_size, "seed": self.seed}
        if self.task == "targeted":
            return self._targeted(model, folder, report, options)
        data = self.data(model.processor, report)
        options |= {"task": data.task, "dataset": data.name, "targets": data.targets, "folder": folder}
        options["max_new_tokens"] = data.max_new_tokens
        found = evaluate_vlm(model.vlm, model.processor, data.images, data.prompts, data.metric, **options)
        references = [strings(texts) for texts in cast(Any, data.metric).references]  # of all that `load_*` give
        said = answers_of(found, data.prompts, references, self._called(data.images))
        return _with_answers(with_samples(found, data.metric), said)

    def _called(self, images: Any) -> list[str]:
        """What each image is called: its file in the data set's folder, where there are files."""
        if not hasattr(images, "file_name"):
            return [f"image {index}" for index in range(len(images))]
        return [images.file_name(index, self.dataset) for index in range(len(images))]

    def _targeted(
        self, model: _Model, folder: Path | None, report: Callable[[str], None] | None, options: dict[str, Any]
    ) -> VlmDataEvaluation:
        shown = self.images(model.processor, report)
        options |= {"prompt": shown.prompt, "max_new_tokens": shown.max_new_tokens}
        for target in self.targets:  # before any attack: each has tokens, and room in an answer
            target_loss(model.vlm, model.processor, shown.prompt, target, shown.max_new_tokens)
        found, answers, count, called = [], [], len(shown.images), self._called(shown.images)
        for number, target in enumerate(self.targets):
            names: dict[str, Any] = {
                "dataset": shown.name if len(self.targets) == 1 else f"{shown.name}, {target!r}",
                "folder": folder and folder / f"string-{number}",
            }
            found.append(evaluate_targeted(model.vlm, model.processor, shown.images, target, **options | names))
            answers += answers_of(found[-1], [shown.prompt] * count, [[target]] * count, called)
        return _with_answers(_together(found, self.seed), answers)


def _check(plan: _Plan, vlm: Name | tuple[Any, Any], towers: Sequence[str | None]) -> None:
    """What can be refused before weights are loaded."""
    check_task(plan.task, plan.texts)
    if plan.task == "targeted" and not (plan.targets and plan.threats):
        raise ValueError("the task 'targeted' forces strings by an attack: give targets, and eps.")
    if plan.task != "targeted" and plan.targets:
        raise ValueError(f"targets are for the task 'targeted', not for {plan.task!r}: leave them out.")
    if (target := first_repeated(plan.targets)) is not None:
        raise ValueError(f"targets names {target!r} twice: give it once.")
    if len(set(towers)) < len(towers):
        raise ValueError(f"{towers[0]!r} is compared with itself: give another encoder, or leave against out.")
    if plan.of_the_table:
        _check_of_the_table(plan)
    for tower in filter(None, towers):
        check_swap(vlm[0] if isinstance(vlm, tuple) else str(vlm), tower)
    if not isinstance(vlm, tuple):
        family_of_config(vlm_configuration(str(vlm)))
    plan.open(vlm[1] if isinstance(vlm, tuple) else load_processor(str(vlm)))


def _check_of_the_table(plan: _Plan) -> None:
    """A set of the table has a task, and says what is asked."""
    row = vlm_set(plan.dataset)
    if plan.task != row.task:
        raise ValueError(f"{row.name} is a set of the task {row.task!r}, not {plan.task!r}: give images of your own.")
    given = [name for name, value in vars(plan.texts).items() if value is not None and name != "template"]
    if given:
        raise ValueError(f"{given[0]} is for images of your own: {row.name} has its own.")


def _loaded(name: str, plan: _Plan) -> _Model:
    vlm = load_vlm(name).eval().to(process_state().device)
    return _Model(vlm, load_processor(name), short_name(name))


@contextmanager
def _with_tower(own: _Model, tower: str | None) -> Iterator[_Model]:
    """The model with another tower, and its processor with that one's resolution, as long as the context lasts."""
    if tower is None:
        yield own
        return
    with swap_vision_tower(own.vlm, tower, own.processor):
        yield own


def _names_with(vlm: str, towers: Sequence[str | None]) -> list[str]:
    """What rows call a model with each tower; with its own its name alone."""
    others = iter(names_for_rows([tower for tower in towers if tower is not None]))
    return [vlm if tower is None else f"{vlm} + {next(others)}" for tower in towers]


def with_samples(found: VlmEvaluation, metric: TextMetric) -> Evaluation:
    """With what each sample gave in the rows, so that towers are compared in pairs; of yes and no also the rate of
    right answers, for F1 is no mean over samples."""
    if isinstance(metric, YesNo):
        right = [_right(row, scores, found.seed) for row, scores in zip(found.rows, found.outcomes, strict=True)]
        return _together([found, Evaluation.of_rates(right)], found.seed)
    scored = zip(found.rows, found.outcomes, strict=True)
    return replace(found, rows=[replace(row, scores=tuple(map(float, scores))) for row, scores in scored])


def _right(row: Row, scores: Sequence[float], seed: int) -> Row:
    """The rate of right answers behind a row."""
    kept = ("model", "task", "dataset", "threat_model", "attack", "precision", "batch_size", "seconds")
    names = {name: getattr(row, name) for name in kept}
    return fraction_row([score > 0 for score in scores], None, seed, metric="accuracy", **names)


def _together(parts: Sequence[Evaluation], seed: int) -> Evaluation:
    rows = [row for part in parts for row in part.rows]
    return Evaluation(rows=rows, outcomes=[one for part in parts for one in part.outcomes], seed=seed)


def _with_answers(found: Evaluation, answers: list[dict[str, Any]]) -> VlmDataEvaluation:
    return VlmDataEvaluation(rows=found.rows, outcomes=found.outcomes, seed=found.seed, answers=answers)


def _called(vlm: Any) -> str:
    """The folder or repository that a model in memory came from, or its class."""
    return short_name(getattr(vlm, "name_or_path", "") or type(vlm).__name__.removesuffix("ForConditionalGeneration"))
