"""Pictures of attacks. Needs matplotlib: `pip install matplotlib`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import check_pixels
from fare_hf.evaluation.report.plots import new_figure, save_figure

__all__ = ["Answer", "SheetRow", "attack_sheet"]

RIGHT, WRONG, PLAIN = "#1a7f37", "#c4261d", "#24292f"
WIDTH = 32  # characters of an answer per line, what fits under a picture
IMAGE, GAP, TITLE, LINE, HEADING = 2.5, 0.12, 0.4, 0.155, 0.75  # inches
MAGNIFICATION = 20  # of the difference, drawn around mid-grey


@dataclass(frozen=True)
class Answer:
    """What one model said.

    Attributes:
        text: the answer.
        right: True is drawn green, False red, None black.
    """

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class SheetRow:
    """One image of an attack sheet.

    Attributes:
        clean: (3, H, W) in [0, 1].
        clean_answers: what each model says to it, {model name: answer}.
        attacked: {title: (perturbed pixels (3, H, W), {model name: answer})}, one entry per attack drawn, such as
            "attack on CLIP" and "attack on FARE".
        reference: what is in the image, for the heading; may be empty.
    """

    clean: torch.Tensor
    clean_answers: Mapping[str, Answer]
    attacked: Mapping[str, tuple[torch.Tensor, Mapping[str, Answer]]]
    reference: str = ""


def attack_sheet(
    rows: Sequence[SheetRow],
    path: str | Path,
    *,
    threat_model: ThreatModel,
    title: str = "",
) -> Path:
    """Draw clean images, attacked images, their differences, and what the models say to each.

    Args:
        rows: at least one, all with the same attacks.
        path: file to write; its folder is made if absent.
        threat_model: named in the heading; every perturbed image is checked against it.
        title: first line of the heading.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: no rows, rows with different attacks, pixels outside [0, 1] or outside the threat model.
    """
    attacks = list(rows[0].attacked) if rows else []
    if not attacks or any(list(row.attacked) != attacks for row in rows):
        raise ValueError("the sheet needs at least one row, and the same attacks in every row.")
    below = max(_height(said) for row in rows for said in (row.clean_answers, *(a for _, a in row.attacked.values())))
    figure, axes = _canvas(len(rows), 1 + 2 * len(attacks), below)
    for line, row in zip(axes, rows, strict=True):
        check_pixels(row.clean[None])
        _draw(line[0], row.clean, f"clean: {row.reference}" if row.reference else "clean", row.clean_answers)
        for number, (name, (pixels, answers)) in enumerate(row.attacked.items()):
            threat_model.check(pixels[None].float(), row.clean[None].float())
            difference = (0.5 + MAGNIFICATION * (pixels - row.clean)).clamp(0, 1)
            _draw(line[1 + 2 * number], pixels, name, answers)
            _draw(line[2 + 2 * number], difference, f"difference x {MAGNIFICATION}", {})
    heading = f"white-box attack within {threat_model}"
    top = 1 - 0.1 / figure.get_figheight()
    figure.suptitle(f"{title}\n{heading}" if title else heading, fontsize=13, y=top, va="top")
    return save_figure(figure, path)


def _canvas(rows: int, columns: int, below: float) -> tuple[Any, list[list[Any]]]:
    """A figure and its axes, with `below` inches of text under each."""
    step = TITLE + IMAGE + below
    width, height = GAP + columns * (IMAGE + GAP), HEADING + rows * step
    figure = new_figure(width, height, "pictures")

    def axes(row: int, column: int) -> Any:
        left, bottom = GAP + column * (IMAGE + GAP), height - HEADING - row * step - TITLE - IMAGE
        return figure.add_axes((left / width, bottom / height, IMAGE / width, IMAGE / height))

    return figure, [[axes(row, column) for column in range(columns)] for row in range(rows)]


def _draw(axes: Any, pixels: torch.Tensor, title: str, answers: Mapping[str, Answer]) -> None:
    """One picture with its title above and the answers below."""
    axes.imshow(pixels.detach().float().permute(1, 2, 0).cpu().numpy(), interpolation="nearest", vmin=0, vmax=1)
    axes.set_title(textwrap.shorten(title, 40, placeholder=" ..."), fontsize=10)
    axes.set_axis_off()
    depth = 0.08
    for model, answer in answers.items():
        lines = _lines(answer.text)
        color = {True: RIGHT, False: WRONG, None: PLAIN}[answer.right]
        below = {"transform": axes.transAxes, "ha": "left", "va": "top", "fontsize": 9, "parse_math": False}
        axes.text(0, -depth / IMAGE, f"{model}:", color=PLAIN, weight="bold", **below)
        axes.text(0, -(depth + LINE) / IMAGE, "\n".join(lines), color=color, linespacing=1.1, **below)
        depth += _height({model: answer})


def _lines(text: str) -> list[str]:
    """An answer in at most three lines."""
    return textwrap.wrap(text, WIDTH, max_lines=3, placeholder=" ...") or ["(nothing)"]


def _height(answers: Mapping[str, Answer]) -> float:
    """Inches that answers take under a picture."""
    return sum(LINE * (1 + len(_lines(answer.text))) + 0.08 for answer in answers.values())
