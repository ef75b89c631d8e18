"""Anybody's images with captions or questions, opened for a vision-language model: folders, saved sets, the Hub's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from fare_hf.data.columns import find_columns
from fare_hf.data.opening import open_split, whole_split
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.evaluation.vlm.ensemble import QUESTION_TARGETS
from fare_hf.evaluation.vlm.metrics import Cider, TextMetric, VqaAccuracy, YesNo
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION, SHORT_ANSWER, VlmData, chat_prompt, strings
from fare_hf.vlm.processors import attacked_pixels

__all__ = ["COLUMNS", "TASKS", "Texts", "VlmImages", "check_task", "load_vlm_data", "load_vlm_images"]

MAX_NEW_TOKENS = {"captions": 20, "vqa": 5, "pope": 5, "targeted": 32}
TASKS = tuple(MAX_NEW_TOKENS)
ASKED = ("question_column", "answer_column")
COLUMNS: dict[str, tuple[str, ...]] = {"captions": ("caption_column",), "vqa": ASKED, "pope": ASKED, "targeted": ()}
"""Task -> the columns of words that it reads."""
CALLED = {
    "caption_column": ("caption", "captions", "sentences", "text", "texts"),
    "question_column": ("question", "questions", "query"),
    "answer_column": ("answer", "answers", "label"),
}
"""What such columns are called, where a data set does not say it."""
FEWEST_ANSWERS = 4
"""VQA accuracy wants three people who agree with a fourth: of fewer answers to a question, each counts as right."""


@dataclass(frozen=True)
class Texts:
    """Where a data set has its images and words, and what is asked; None finds a column, or takes the default.

    Attributes:
        split: see `load_vlm_data`.
        dataset_config: of a data set with several configurations.
        image_column, caption_column, question_column, answer_column: names of columns.
        prompt: what is asked of every image; for questions with `{}` for the question.
        template: a whole prompt with the image token and `{}` for what is asked, for processors without a chat
            template.
        max_new_tokens: of an answer.
    """

    split: str | None = None
    dataset_config: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    question_column: str | None = None
    answer_column: str | None = None
    prompt: str | None = None
    template: str | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class VlmImages:
    """Images without words.

    Attributes:
        name: as reports give it.
        images: map-style, items of `{"pixel_values"}`.
        prompt: with the image token.
        max_new_tokens: of an answer.
    """

    name: str
    images: Any
    prompt: str
    max_new_tokens: int


def load_vlm_data(
    name: str,
    processor: Any,
    task: str,
    texts: Texts | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> VlmData:
    """Opens images for a task, as one model reads them.

    Args:
        name: folder of images with their words in `metadata.jsonl` or `metadata.csv` (`file_name` and columns),
            folder of shards, saved data set, or repository on the Hub.
        processor: of the model: its image processor makes the pixels, its chat template the prompts.
        task: "captions" reads one or more captions of each image, "vqa" a question and the answers of people (or one),
            "pope" a question and yes or no.
        texts: columns, split, prompts. Without a split it is "test", or the only one of what lies here.
        samples: how many, drawn by `seed`; None takes all, in their order.
        seed: of the choice.
        report: gets a line on the images and their columns.

    Raises:
        ValueError: no such task, what cannot be opened, a column that is not there or not to be told from others, an
            empty split, a row without its words, a prompt without `{}`, a processor without a chat template and no
            template, answers that the task's metric refuses.
    """
    texts = texts or Texts()
    check_task(task, texts)
    rows, image, called = _opened(name, task, texts, samples, seed, report)
    columns = _columns(task, texts, rows, image, name)
    words = [_words(rows, column, task, name) for column in columns]
    prompts = [chat_prompt(processor, question, texts.template) for question in _asked(task, texts, words[0])]
    pixels = PixelDataset(rows, attacked_pixels(processor), image)
    targets = QUESTION_TARGETS if task == "vqa" else ()
    metric, length = _metric(task, words[-1], columns[-1], name), texts.max_new_tokens or MAX_NEW_TOKENS[task]
    return VlmData(called, task, pixels, prompts, metric, targets, length)


def load_vlm_images(
    name: str,
    processor: Any,
    texts: Texts | None = None,
    *,
    samples: int | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> VlmImages:
    """Opens images without words, to force strings in. Arguments and errors are those of `load_vlm_data`."""
    texts = texts or Texts()
    check_task("targeted", texts)
    rows, image, called = _opened(name, "targeted", texts, samples, seed, report)
    prompt = chat_prompt(processor, texts.prompt or CAPTION_QUESTION, texts.template)
    pixels = PixelDataset(rows, attacked_pixels(processor), image)
    return VlmImages(called, pixels, prompt, texts.max_new_tokens or MAX_NEW_TOKENS["targeted"])


def check_task(task: str, texts: Texts) -> None:
    """Raises ValueError for a task that there is not, and for a column or prompt that says nothing to it."""
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}: use one of {', '.join(TASKS)}.")
    for column in ("caption_column", *ASKED):
        if getattr(texts, column) is not None and column not in COLUMNS[task]:
            raise ValueError(f"{column} says nothing to the task {task!r}: leave it out.")
    if task in ("vqa", "pope") and texts.prompt is not None and "{}" not in texts.prompt:
        raise ValueError(f"prompt {texts.prompt!r} has no {{}} for the question, which each image has: add it.")


def _opened(
    name: str, task: str, texts: Texts, samples: int | None, seed: int, report: Callable[[str], None] | None
) -> tuple[Any, str, str]:
    """The rows, their image column, and what reports call them."""
    split = texts.split or whole_split(name)
    rows, left = open_split(name, split, config=texts.dataset_config)
    image, _ = find_columns(rows, texts.image_column, name=name)
    if not isinstance(rows, datasets.Dataset) or not len(rows):
        raise ValueError(f"{name!r}: the split {split!r} is empty.")
    read = [image, *_columns(task, texts, rows, image, name)]
    if report is not None:
        report(f"{name!r} ({split}): {len(rows):,} images{left}; columns read: {', '.join(read)}")
    if samples is not None:
        rows = rows.shuffle(seed=seed).select(range(min(samples, len(rows))))
    return rows, image, Path(name).expanduser().resolve().name if Path(name).expanduser().is_dir() else name


def _columns(task: str, texts: Texts, rows: Any, image: str, name: str) -> list[str]:
    """The columns with words that a task reads."""
    return [_column(rows, image, getattr(texts, option), option, name) for option in COLUMNS[task]]


def _column(rows: Any, image: str, given: str | None, option: str, name: str) -> str:
    """The column that is named, or the only one with a name that such columns have."""
    there, known = ", ".join(rows.features), CALLED[option]
    if given is not None:
        if given not in rows.features:
            raise ValueError(f"{option} {given!r} is not in {name!r}; its columns are {there}.")
        return given
    found = [column for column in rows.features if column.lower() in known and column != image]
    if len(found) != 1:
        what = option.removesuffix("_column")
        fault = f"several columns that may be the {what} ({', '.join(found)})" if found else f"no column {known[0]!r}"
        raise ValueError(f"{name!r} has {fault}; its columns are {there}: name the {what} with {option}.")
    return found[0]


def _words(rows: Any, column: str, task: str, name: str) -> list[Any]:
    """What a column says of every row."""
    feature, values = rows.features[column], list(rows.select_columns(column)[:][column])
    for index, value in enumerate(values):
        if not (value is None or isinstance(feature, datasets.ClassLabel) or _is_text(value, task)):
            raise ValueError(
                f"sample {index} of {name!r} has {value!r} in {column!r}, no text and no list of texts: name another "
                "column, or write texts."
            )
        if value is None or not strings(value) or not all(text.strip() for text in strings(value)):
            raise ValueError(f"sample {index} of {name!r} has no {column!r} ({value!r}): leave such images out.")
    return [feature.int2str(value) for value in values] if isinstance(feature, datasets.ClassLabel) else values


def _is_text(value: Any, task: str) -> bool:
    """Whether a value is words; of POPE yes and no may be true and false."""
    items = [item["answer"] if isinstance(item, dict) and "answer" in item else item for item in _listed(value)]
    return all(isinstance(item, str) for item in items) or (task == "pope" and isinstance(value, bool))


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _asked(task: str, texts: Texts, words: Sequence[Any]) -> list[str]:
    """What is asked of each image."""
    if task == "captions":
        return [texts.prompt or CAPTION_QUESTION] * len(words)
    asked = "{}" + SHORT_ANSWER if texts.prompt is None else texts.prompt
    return [asked.replace("{}", str(question).strip()) for question in words]


def _metric(task: str, values: Sequence[Any], column: str, name: str) -> TextMetric:
    if task == "captions":
        return Cider([strings(captions) for captions in values])
    if task == "vqa":
        people = [strings(answers) for answers in values]
        return VqaAccuracy(
            [answers * FEWEST_ANSWERS if len(answers) < FEWEST_ANSWERS else answers for answers in people]
        )
    return YesNo([_yes_or_no(answer, column, name) for answer in values])


def _yes_or_no(answer: Any, column: str, name: str) -> str:
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    text = strings(answer)[0].strip().rstrip(".!").lower()
    if text not in ("yes", "no"):
        raise ValueError(f"{name!r} has the answer {answer!r} in {column!r}: the task 'pope' wants yes or no in each.")
    return text
