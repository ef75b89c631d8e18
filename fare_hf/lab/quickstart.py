"""The quickstart: attack the lab's CLIP, make it robust, swap it into the lab's LLaVA, measure before and after."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from fare_hf.encoders import load_encoder
from fare_hf.evaluation import NamesConcept, RobustnessReport, Row, SheetRow, TextEvaluation, attack_sheet, environment
from fare_hf.evaluation.plots import Answer
from fare_hf.vlm import swap_vision_tower

from . import measure, recipes
from .drawings import all_concepts
from .models import encoder_folder, load_clip, load_llava
from .store import save_with_report

PICTURES = 4


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
        if self.output_dir.exists() and (not self.output_dir.is_dir() or any(self.output_dir.iterdir())):
            raise ValueError(f"output_dir {str(self.output_dir)!r} is not an empty folder: name another or empty it.")

    def run(self) -> Path:
        """Runs it all; returns the path of ``report.json``."""
        started = time.perf_counter()
        with stage("1/5 fine-tune the lab's CLIP with FARE, eps 4/255 (no labels are used)"):
            self.fine_tune()
        encoder_dir = self.output_dir / "encoder"
        with stage("2/5 attack zero-shot classification: CLIP, the new FARE encoder, the shipped TeCoA-4"):
            self.zero_shot({"CLIP": encoder_folder("clip"), "FARE": encoder_dir, "TeCoA": encoder_folder("tecoa-4")})
        llava = load_llava()
        with stage("3/5 attack the LLaVA with its original tower"):
            before = self.language("CLIP", llava)
        print(f"\n>>> swap_vision_tower(llava, {str(encoder_dir)!r})")
        print(swap_vision_tower(llava[0], str(encoder_dir)))
        with stage("4/5 attack the same LLaVA with the FARE tower; nothing else was touched"):
            after = self.language("FARE", llava)
        with stage("5/5 report and picture"):
            path = self.write(before, after)
        print(f"\n{RobustnessReport(self.rows).to_markdown()}")
        print(f"{time.perf_counter() - started:.0f} s in all; see {self.output_dir}/")
        return path

    def fine_tune(self) -> None:
        """``accelerate launch -m fare_hf.train``, as a user would type it."""
        words = recipes.command(recipes.recipe("fare-4", self.max_steps), self.output_dir)
        print(f"$ {recipes.shown(words)}", flush=True)
        subprocess.run(words, check=True)

    def zero_shot(self, encoders: dict[str, Path]) -> None:
        """Zero-shot accuracy of each encoder, clean and attacked."""
        clip = load_clip()
        for name, folder in encoders.items():
            encoder = load_encoder(str(folder))
            self.rows += measure.measure_zero_shot(name, encoder, clip, self.budget)
            print_rows(self.rows, name)

    def language(self, name: str, llava: Any) -> TextEvaluation:
        """Captions and a forced sentence, at 4/255 alone to save time."""
        strongest = measure.THREAT_MODELS[-1:]
        captions = measure.measure_captions(name, llava, self.budget, strongest, keep=range(PICTURES * 4))
        targeted = measure.measure_targeted(name, llava, self.budget, strongest)
        self.rows += captions.rows + targeted
        print_rows(self.rows, f"LLaVA + {name}")
        return captions

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


def print_rows(rows: list[Row], model: str) -> None:
    """One line a figure of one model."""
    for row in rows:
        if row["model"] == model:
            threat = row["threat_model"]
            where = f"{threat['norm']} {threat['eps']}" if threat else "clean"
            low, high = row["ci"]
            print(
                f"    {model:14s} {row['task']:10s} {row['dataset']:8s} {where:12s} "
                f"{row['value']:6.1%}  [{low:.1%}, {high:.1%}]  n={row['n']}",
                flush=True,
            )


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
        print("    no picture: no image was captioned rightly by both LLaVAs")
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
