"""What a vision-language model said to each image, to be read beside the figures: one line of JSON an image."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fare_hf.evaluation.resume import write_text
from fare_hf.evaluation.vlm.engine import Attacked, TextEvaluation
from fare_hf.evaluation.vlm.ensemble import VlmEvaluation

__all__ = ["answers_of", "write_answers"]

FILE = "answers.jsonl"


def answers_of(
    found: VlmEvaluation | TextEvaluation,
    prompts: Sequence[str],
    references: Sequence[Sequence[str]],
    images: Sequence[str | int] | None = None,
) -> list[dict[str, Any]]:
    """The answers behind one evaluation.

    Args:
        found: of N images.
        prompts: N, as the model read them.
        references: N lists of the texts that an answer is compared with; of a forced string that string.
        images: what each is called; None gives their numbers.

    Returns:
        N times `{"model", "task", "dataset", "image", "prompt", "references", "clean", "attacked"}`, where `attacked`
        has what `found` has of each threat model: the answer to the image that fooled the model, or to the last or
        worst one tried, and the clean one where that was wrong already.
    """
    first, called = found.rows[0], range(len(found.clean)) if images is None else images
    names = {"model": first.model, "task": first.task, "dataset": first.dataset}
    attacked = {name: said.answers if isinstance(said, Attacked) else said for name, said in found.attacked.items()}
    return [
        {
            **names,
            "image": called[index],
            "prompt": prompts[index],
            "references": list(references[index]),
            "clean": clean,
            "attacked": {name: said[index] for name, said in attacked.items()},
        }
        for index, clean in enumerate(found.clean)
    ]


def write_answers(folder: Path, answers: Iterable[dict[str, Any]]) -> Path:
    """Writes `answers.jsonl` into a folder that is there, and returns its path."""
    path = folder / FILE
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers))
    return path
