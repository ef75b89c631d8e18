"""The paper's sets for vision-language models: where they are on the Hub, and how they become prompts and metrics.

Repositories and columns are those of lmms-eval 0.7.3's tasks; questions, thresholds and lengths of answers those of
Robust CLIP's scripts. The paper takes its captions from Karpathy's test splits; the splits here are COCO's validation
images and all of Flickr30k, which hold those.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fare_hf.data.columns import find_columns
from fare_hf.data.image_folders import has_configurations
from fare_hf.data.opening import open_split
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.evaluation.vlm.ensemble import QUESTION_TARGETS
from fare_hf.evaluation.vlm.metrics import Choice, Cider, TextMetric, VqaAccuracy, YesNo
from fare_hf.vlm.families.family import IMAGE
from fare_hf.vlm.processors import attacked_pixels

__all__ = ["VLM_SETS", "VlmData", "VlmSet", "chat_prompt", "is_vlm_set", "load_vlm_set", "strings", "vlm_set"]

LMMS, SQA = "lmms-lab-encoder", "ScienceQA-IMG"
CAPTION_QUESTION = "Provide a short caption for this image."
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class VlmSet:
    """One set of the table.

    Attributes:
        name: as reports give it.
        repo, config, split: on the Hub.
        task: "captions", "vqa", "pope" or "choice".
        question, answer: columns; captions have no question.
        splits: column that names a question's split (POPE).
        threshold: score from which an attack gives up on a caption.
        samples: what the paper takes.
        max_new_tokens: of an answer.
        hint: what is said between question and instruction.
    """

    name: str
    repo: str
    task: str
    split: str
    answer: str
    question: str = "question"
    config: str | None = None
    splits: str | None = None
    threshold: float = 0.0
    samples: int = 500
    max_new_tokens: int = 5
    hint: str = ""


VLM_SETS: tuple[VlmSet, ...] = (
    VlmSet("COCO", f"{LMMS}/COCO-Caption", "captions", "val", "answer", threshold=0.10, max_new_tokens=20),
    VlmSet("Flickr30k", f"{LMMS}/flickr30k", "captions", "test", "caption", threshold=0.02, max_new_tokens=20),
    VlmSet("VQAv2", f"{LMMS}/VQAv2", "vqa", "validation", "answers"),
    VlmSet("TextVQA", f"{LMMS}/textvqa", "vqa", "validation", "answers", max_new_tokens=10),
    VlmSet("VizWiz", f"{LMMS}/VizWiz-VQA", "vqa", "val", "answers", hint=UNANSWERABLE),
    VlmSet("OK-VQA", f"{LMMS}/OK-VQA", "vqa", "val2014", "answers"),
    VlmSet(
        "POPE",
        f"{LMMS}/POPE",
        "pope",
        "test",
        "answer",
        splits="category",
        samples=8910,
        max_new_tokens=128,
    ),
    VlmSet(
        "SQA-I",
        f"{LMMS}/ScienceQA",
        "choice",
        "test",
        "answer",
        config="ScienceQA-IMG",
        samples=2017,
        max_new_tokens=128,
    ),
)


@dataclass(frozen=True)
class VlmData:
    """A set ready for `evaluate_vlm(vlm, processor, data.images, data.prompts, data.metric, ...)`."""

    name: str
    task: str
    images: Any
    prompts: list[str]
    metric: TextMetric
    targets: tuple[str, ...]
    max_new_tokens: int


def vlm_set(name: str) -> VlmSet:
    """The row of a name such as "COCO" (case does not matter); ValueError for others."""
    for row in VLM_SETS:
        if row.name.lower() == name.lower():
            return row
    raise ValueError(f"there is no set {name!r}: use one of {', '.join(row.name for row in VLM_SETS)}.")


def is_vlm_set(name: str) -> bool:
    """Whether a name is of a row of the table, as `vlm_set` reads it."""
    return any(row.name.lower() == name.lower() for row in VLM_SETS)


def load_vlm_set(
    row: VlmSet | str,
    processor: Any,
    *,
    root: str | Path | None = None,
    samples: int | None = None,
    seed: int = 0,
    template: str | None = None,
) -> VlmData:
    """Read one set, from the Hub or from a folder.

    Args:
        row: of `VLM_SETS`, or its name.
        processor: the model's processor: its image processor makes the pixels, its chat template the prompts.
        root: folder with a sub-folder for each repository's own name; None asks the Hub.
        samples: how many, shuffled; None takes the paper's number, or all where there are fewer.
        seed: of the shuffling.
        template: a prompt with `{}` for the question, for processors without a chat template.

    Raises:
        ValueError: no such set, split or column; an empty split; a processor without a chat template and no
            `template`; answers that the task's metric refuses.
    """
    row = vlm_set(row) if isinstance(row, str) else row
    place = row.repo if root is None else str(Path(root) / row.repo.split("/")[-1])
    configured = root is None or has_configurations(Path(place))  # as a whole copy is, by its card
    dataset: Any = open_split(place, row.split, config=row.config if configured else None)[0]
    image, _ = find_columns(dataset, "image" if "image" in dataset.features else None, name=row.name)
    missing = [
        c for c in (row.answer, None if row.task == "captions" else row.question) if c and c not in dataset.features
    ]
    if missing:
        raise ValueError(f"{row.name} has no column {missing[0]!r}; its columns are {', '.join(dataset.features)}.")
    dataset = dataset.shuffle(seed=seed).select(range(min(samples or row.samples, len(dataset))))
    if not len(dataset):
        raise ValueError(f"{row.name}: the split {row.split!r} is empty.")
    texts = dataset.remove_columns(image)  # images are not decoded to read the words
    prompts = [chat_prompt(processor, _question(row, line), template) for line in texts]
    pixels = PixelDataset(dataset, attacked_pixels(processor), image)
    targets = QUESTION_TARGETS if row.task == "vqa" else ()
    return VlmData(row.name, row.task, pixels, prompts, _metric(row, texts), targets, row.max_new_tokens)


def chat_prompt(processor: Any, question: str, template: str | None = None) -> str:
    """A one-turn prompt with the image before the question, as the processor's chat template writes it.

    Args:
        processor: with a chat template, or without one if `template` is given.
        question: what is asked.
        template: text with `{}` for the question and the processor's image token, used instead.

    Raises:
        ValueError: neither a chat template nor `template`, a `template` without `{}` or image token, or one with a
            backslash and an n where a line break is meant, which the model would read.
    """
    image = getattr(processor, "image_token", None) or IMAGE
    if template is not None:
        if "{}" not in template or image not in template:
            raise ValueError(f"template {template!r} needs {{}} for the question and {image!r}.")
        if "\\n" in template:
            raise ValueError(f"template {template!r} holds a backslash and an n: write a line break.")
        return template.replace("{}", question)
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"{type(processor).__name__} has no chat template: give template (--template), such as "
            f"'USER: {image}\\n{{}} ASSISTANT:'."
        )
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _question(row: VlmSet, line: dict[str, Any]) -> str:
    if row.task == "captions":
        return CAPTION_QUESTION
    question = str(line[row.question]).strip()
    if row.task != "choice":
        return question + row.hint + SHORT_ANSWER
    options = "\n".join(f"{chr(ord('A') + number)}. {choice}" for number, choice in enumerate(line["choices"]))
    hint = f"Context: {line['hint']}\n" if line.get("hint") else ""
    return f"{hint}{question}\n{options}{LETTER}"


def _metric(row: VlmSet, lines: Any) -> TextMetric:
    answers = list(lines[row.answer])
    if row.task == "captions":
        return Cider([strings(captions) for captions in answers], row.threshold)
    if row.task == "vqa":
        return VqaAccuracy([strings(people) for people in answers])
    if row.task == "pope":
        return YesNo(answers, None if row.splits is None else list(lines[row.splits]))
    return Choice([answer if isinstance(answer, str) else chr(ord("A") + int(answer)) for answer in answers])


def strings(values: Any) -> list[str]:
    """Captions or answers, as VQAv2 (`[{"answer": ...}]`) and others (`[...]`, or one alone) store them."""
    items = list(values) if isinstance(values, (list, tuple)) else [values]
    return [str(item["answer"]) if isinstance(item, dict) else str(item) for item in items]
