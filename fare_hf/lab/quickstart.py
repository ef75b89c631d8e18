"""The quickstart: attack the lab's CLIP, make it robust, swap it into the lab's LLaVA, measure before and after."""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from fare_hf.encoders import load_encoder
from fare_hf.evaluation import NamesConcept, RobustnessReport, Row, SheetRow, TextEvaluation, attack_sheet, environment
from fare_hf.evaluation.report.attack_sheet import Answer
from fare_hf.files.folders import check_new_folder
from fare_hf.lab import measure, recipes
from fare_hf.lab.drawings import all_concepts
from fare_hf.lab.models import load_clip, load_llava
from fare_hf.lab.names import encoder_folder
from fare_hf.lab.saving import save_with_report
from fare_hf.vlm import swap_vision_tower

__all__ = ["Quickstart", "summary"]

PICTURES = 4
BAR: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "disable": None}
"""Bars of the attacks: gone when done, and only in a terminal, as a file keeps every state of a bar."""
INTRODUCTION = """\
A small CLIP, trained on drawings, is the eye of a small LLaVA. An attacker who may change every pixel by at most 4/255
breaks both. FARE makes the CLIP robust, the LLaVA takes it without being trained again, and everything is measured
before and after, on images that no training has seen. All of it goes to {folder}/."""
FILES = {
    "encoder": "the robust encoder and its card, for CLIPVisionModel.from_pretrained",
    "report.md": "all figures with their attacks",
    "report.json": "the same for programs",
    "picture.png": "clean and attacked images, and what both LLaVAs say",
    "training.json": "how the encoder was trained",
}


@dataclass
class Quickstart:
    """One run of the quickstart.

    Attributes:
        output_dir: where everything goes; must be empty or absent.
        max_steps: training steps.
        budget: how much is measured.
    """

    output_dir: Path
    max_steps: int = recipes.QUICK_STEPS
    budget: measure.Budget = measure.QUICK
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        check_new_folder(self.output_dir)

    def run(self) -> Path:
        """Runs it all; returns the path of `report.json`."""
        started = time.perf_counter()
        print(INTRODUCTION.format(folder=self.output_dir), flush=True)
        with without_bars_for_loading():
            path = self.tell()
        print(f"\n{summary(self.rows)}\n\nIn {self.output_dir}/:")
        for name, what in FILES.items():
            if (self.output_dir / name).exists():
                print(f"  {name:14s} {what}")
        print(f"{time.perf_counter() - started:.0f} s in all.")
        return path

    def tell(self) -> Path:
        """The five stages; returns the path of `report.json`."""
        with stage("1/5 Fine-tune the CLIP with FARE at eps 4/255; no labels are used"):
            self.fine_tune()
        encoder_dir = self.output_dir / "encoder"
        with stage("2/5 Attack zero-shot classification: CLIP, the new FARE encoder, a TeCoA-4 to compare"):
            self.zero_shot({"CLIP": encoder_folder("clip"), "FARE": encoder_dir, "TeCoA": encoder_folder("tecoa-4")})
        llava = load_llava()
        with stage("3/5 Attack the LLaVA with its original tower"):
            before = self.language("CLIP", llava)
        with stage("4/5 Swap the FARE encoder in, touch nothing else, and attack again"):
            print(f"    >>> swap_vision_tower(llava, {str(encoder_dir)!r})")
            swapped = swap_vision_tower(llava[0], str(encoder_dir))
            print(f"    {swapped.changed} of {swapped.tensors} weight tensors of the tower changed", flush=True)
            after = self.language("FARE", llava)
        with stage("5/5 Write the report, the model card and the picture"):
            return self.write(before, after)

    def fine_tune(self) -> None:
        """`accelerate launch -m fare_hf.train`, as a user would type it."""
        words = recipes.command(recipes.recipe("fare-4", self.max_steps), self.output_dir)
        print(f"{wrapped('$ ' + recipes.shown(words))}\n", flush=True)
        # Nothing is downloaded here, and loading takes no time: the one bar is the training's.
        done = subprocess.run(words, env=os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"})
        if done.returncode:
            raise ValueError(f"the training stopped with exit status {done.returncode}; what it said stands above.")

    def zero_shot(self, encoders: dict[str, Path]) -> None:
        """Zero-shot accuracy of each encoder, clean and attacked."""
        clip = load_clip()
        with tqdm(total=len(encoders) * len(self.budget.samples), unit="set", **BAR) as bar:
            for name, folder in encoders.items():
                encoder = load_encoder(str(folder))
                for dataset, count in self.budget.samples.items():
                    bar.set_description(f"    attacking {name} on {dataset}")
                    budget = replace(self.budget, samples={dataset: count})
                    self._add(measure.measure_zero_shot(name, encoder, clip, budget))
                    bar.update()

    def language(self, name: str, llava: Any) -> TextEvaluation:
        """Captions and a forced sentence, at 4/255 alone to save time."""
        strongest = measure.THREAT_MODELS[-1:]
        with tqdm(total=2, unit="task", **BAR) as bar:
            bar.set_description("    attacking captions")
            captions = measure.measure_captions(name, llava, self.budget, strongest, keep=range(PICTURES * 4))
            self._add(captions.rows)
            bar.update()
            bar.set_description(f"    forcing {measure.TARGET!r}")
            self._add(measure.measure_targeted(name, llava, self.budget, strongest))
            bar.update()
        return captions

    def _add(self, rows: list[Row]) -> None:
        """Keeps rows and prints a line for each, above the bar."""
        self.rows += rows
        for row in rows:
            tqdm.write(f"    {said(row)}")

    def write(self, before: TextEvaluation, after: TextEvaluation) -> Path:
        """Report, the card with its figures, and the picture of what both LLaVAs say."""
        report = RobustnessReport(self.rows, environment(seed=0))
        path = report.save(self.output_dir)
        recipe = json.loads((self.output_dir / "training.json").read_text())
        folder = self.output_dir / "encoder"
        named = {"eps": "4/255", "shown": "FARE", "repo_id": "fare_hf-lab-quickstart"}
        save_with_report(load_encoder(str(folder)), recipe, folder, report=report, **named)
        draw(before, after, self.budget, self.output_dir / "picture.png")
        return path


@contextmanager
def stage(title: str) -> Iterator[None]:
    """A heading before, the seconds after."""
    print(f"\n=== {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"    ({time.perf_counter() - started:.0f} s)", flush=True)


@contextmanager
def without_bars_for_loading() -> Iterator[None]:
    """Transformers draws a bar for every model it loads, even from a folder in no time."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def wrapped(command: str) -> str:
    """A command on several lines, as a shell would take it."""
    lines = textwrap.wrap(command, 100, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return " \\\n".join(lines)


def said(row: Row) -> str:
    """One figure as a line."""
    low, high = row.ci
    figure = f"{row.value:6.1%}  [{low:.1%}, {high:.1%}]  n={row.n}"
    return f"{row.model:14s} {row.task:10s} {row.dataset:8s} {radius(row):12s} {figure}"


def radius(row: Row) -> str:
    """`clean`, or the threat model."""
    return str(row.threat_model or "clean")


def summary(rows: list[Row]) -> str:
    """The table at the end: a line for each task, data set and threat model, a column for each encoder, in percent."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        metric = row.metric if row.metric != "accuracy" else f"{row.task} accuracy"
        line = cells.setdefault((metric, row.dataset, radius(row)), {})
        low, high = row.ci
        line[row.model.removeprefix("LLaVA + ")] = f"{100 * row.value:.1f} [{100 * low:.0f}, {100 * high:.0f}]"
    columns = list(dict.fromkeys(name for line in cells.values() for name in line))
    head = f"{'percent, with 95 % intervals':44s}" + "".join(f"{name:>17s}" for name in columns)
    lines = [
        f"{metric:20s}{dataset:10s}{threat:14s}" + "".join(f"{line.get(name, ''):>17s}" for name in columns)
        for (metric, dataset, threat), line in cells.items()
    ]
    hint = "target forced: how often the attacker's sentence is written, less is better"
    return "\n".join([head, "-" * len(head), *lines, hint])


def draw(before: TextEvaluation, after: TextEvaluation, budget: measure.Budget, path: Path) -> None:
    """Clean image, the attack on either tower, and what both LLaVAs say, for images that both were attacked on."""
    test, threat = measure.part("twemoji", budget.captions), measure.THREAT_MODELS[-1]
    sides = {"CLIP": before, "FARE": after}
    shared = set.intersection(*(set(side.adversarial[str(threat)]) for side in sides.values()))
    rule = NamesConcept(all_concepts())
    rows = [
        sheet_row(test.pixels[index], index, sides, str(threat), test.class_names[test.labels[index]], rule)
        for index in sorted(shared)[:PICTURES]
    ]
    if not rows:
        print("    no picture: no image was captioned rightly by both LLaVAs", flush=True)
        return
    attack_sheet(rows, path, threat_model=threat, title="What the lab's LLaVA says, with both towers")


def sheet_row(
    pixels: Tensor, index: int, sides: dict[str, TextEvaluation], threat: str, wanted: str, rule: NamesConcept
) -> SheetRow:
    """One image of the picture; answers that name the concept are marked right."""

    def marked(text: str) -> Answer:
        return Answer(text, rule(text, wanted))

    clean = {name: marked(side.clean[index]) for name, side in sides.items()}
    attacked = {
        f"attack on {name}": (side.adversarial[threat][index], {name: marked(side.attacked[threat][index])})
        for name, side in sides.items()
    }
    return SheetRow(pixels, clean, attacked, wanted)
