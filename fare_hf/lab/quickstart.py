"""The quickstart: attack the lab's CLIP, make it robust, swap it into the lab's LLaVA, measure before and after."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import CLIPVisionModelWithProjection, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fare_hf.encoders import load_encoder
from fare_hf.evaluation import RobustnessReport, Row, TextEvaluation, environment
from fare_hf.files.folders import check_new_folder
from fare_hf.lab import measure, recipes
from fare_hf.lab.models import load_clip, load_llava
from fare_hf.lab.names import encoder_folder
from fare_hf.lab.quickstart_plan import REPORT, TRAINING, Plan, TimeLeft, in_words
from fare_hf.lab.quickstart_shown import PICTURES, draw, lower, proof, said, summary, wrapped
from fare_hf.lab.saving import save_with_report
from fare_hf.vlm import swap_vision_tower

__all__ = ["Quickstart"]

STRONGEST = measure.THREAT_MODELS[-1:]
"""4/255 alone: what survives it survives 2/255, and the smaller ball would take most of the time."""
BAR: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "disable": None}
"""Bars of the attacks: gone when done, and only in a terminal, as a file keeps every state of a bar."""
STEP = re.compile(r"step (\d+): loss ([\d.e+-]+)")
"""A line of the training's log."""
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
        plan: how much is trained and measured.
        minutes: how long all of it shall take on this machine; None is as long as `plan` takes. More lengthens the
            training and measures more images; less is refused when the first stage has shown the machine's speed.
    """

    output_dir: Path
    plan: Plan = Plan()
    minutes: float | None = None
    rows: list[Row] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.output_dir = Path(self.output_dir)
        check_new_folder(self.output_dir)
        self.left = TimeLeft(self.plan.costs())

    def run(self) -> Path:
        """Runs it all; returns the path of `report.json`.

        Raises:
            ValueError: the training failed, or `minutes` is less than all of it takes.
        """
        print(INTRODUCTION.format(folder=self.output_dir), flush=True)
        with without_bars_for_loading():
            path = self.tell()
        print(f"\n{summary(self.rows)}\n\nIn {self.output_dir}/:")
        for name, what in FILES.items():
            if (self.output_dir / name).exists():
                print(f"  {name:14s} {what}")
        print(f"{self.left.elapsed():.0f} s in all.")
        return path

    def tell(self) -> Path:
        """The five stages; returns the path of `report.json`."""
        with self.stage("1/5 Attack the CLIP: does it still know what a drawing shows?"):
            clean, attacked = self.zero_shot("CLIP", load_encoder(str(encoder_folder("clip"))))
            self.prove(lower(attacked, clean), "the CLIP is broken", clean, attacked)
            self.lengthen()
        with self.stage("2/5 Fine-tune it with FARE at eps 4/255; no labels are used"):
            self.fine_tune()
        with self.stage("3/5 Load the new encoder with transformers alone and attack it, and a TeCoA-4 to compare"):
            robust = self.zero_shot("FARE", self.loaded())[1]
            self.prove(lower(attacked, robust), "FARE made it robust: CLIP, then FARE, attacked", attacked, robust)
            self.zero_shot("TeCoA", load_encoder(str(encoder_folder("tecoa-4"))))
        with self.stage("4/5 Attack the LLaVA, swap the FARE encoder in, touch nothing else, and attack again"):
            before, after = self.with_both_towers()
        with self.stage("5/5 Write the report, the model card and the picture"):
            return self.write(before, after)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A heading before; after it how long it took, and how long the rest will take."""
        print(f"\n=== {title}", flush=True)
        started = time.perf_counter()
        yield
        print(f"    ({time.perf_counter() - started:.0f} s; {self.left})", flush=True)

    def prove(self, shown: bool, claim: str, first: Row, second: Row) -> None:
        """A line for what two rates show."""
        print(proof(shown, claim, f"{first.value:.1%}, {second.value:.1%} of {first.dataset}"), flush=True)

    def lengthen(self) -> None:
        """Makes the plan as long as `minutes`, now that the speed of the machine is known."""
        if self.minutes is None:
            return
        usual = self.left.elapsed() + self.left.seconds()
        if self.minutes * 60 < usual:
            raise ValueError(
                f"minutes={self.minutes:g} is too little: on this machine the quickstart takes about "
                f"{in_words(usual)} as it is; give more, or leave --minutes out."
            )
        # The first stage is done, of as many images as it had.
        self.plan = self.plan.lengthened(self.minutes * 60 / usual)
        done, self.left.costs = self.left.costs["CLIP"], self.plan.costs()
        self.left.costs["CLIP"] = done
        budget, steps = self.plan.budget, self.plan.max_steps
        images = ", ".join(f"{count} of {name}" for name, count in budget.samples.items())
        print(f"    {self.minutes:g} minutes: {steps} training steps; images measured: {images}", flush=True)

    def fine_tune(self) -> None:
        """`accelerate launch -m fare_hf.train`, as a user would type it; each line of its log says the time left."""
        words = recipes.command(recipes.quick_recipe(self.plan.max_steps), self.output_dir)
        print(f"{wrapped('$ ' + recipes.shown(words))}\n", flush=True)
        # Nothing is downloaded here, and loading takes no time: the one bar is the training's.
        variables = recipes.ALLOCATOR | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(words, env=os.environ | variables, stdout=subprocess.PIPE, text=True) as training:
            assert training.stdout is not None
            for line in training.stdout:
                self.pass_on(line.rstrip())
        if training.returncode:
            raise ValueError(
                f"the training stopped with exit status {training.returncode}; what it said stands above."
            )
        self.left.finish(TRAINING)
        first, last = self.losses[0], self.losses[-1]
        figures = f"loss under attack {first:.4g}, then {last:.4g}, after {self.plan.max_steps} steps"
        print(proof(last < first, "FARE trained", figures), flush=True)

    def pass_on(self, line: str) -> None:
        """A line of the training; one of its log with the time that is left for everything, not for its bar alone."""
        if found := STEP.match(line):
            self.losses.append(float(found[2]))
            self.left.finish(TRAINING, int(found[1]) / self.plan.max_steps)
            line = f"{line}; {self.left}"
        bar = sys.stdout.isatty()  # the bar stands in this line of the terminal: over it
        print(f"\r{line:<{shutil.get_terminal_size().columns - 1}}" if bar else line, flush=True)

    def loaded(self) -> PreTrainedModel:
        """The encoder, read by transformers as by anybody who has no fare_hf."""
        folder = str(self.output_dir / "encoder")
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
        print(f"    >>> CLIPVisionModelWithProjection.from_pretrained({folder!r})")
        print(proof(True, "it loads", f"{encoder.num_parameters():,} weights"), flush=True)
        return encoder

    def zero_shot(self, name: str, encoder: PreTrainedModel) -> tuple[Row, Row]:
        """Zero-shot accuracy of an encoder on each set; returns the first set's rows, clean and attacked."""
        clip, found = load_clip(), []
        counts = self.plan.budget.samples
        with tqdm(total=len(counts), unit="set", **BAR) as bar:
            for dataset, count in counts.items():
                bar.set_description(f"    attacking {name} on {dataset}")
                budget = replace(self.plan.budget, samples={dataset: count})
                found += measure.measure_zero_shot(name, encoder, clip, budget, STRONGEST)
                self.keep(found[-2:])
                bar.update()
        self.left.finish(name)
        return found[0], found[1]

    def with_both_towers(self) -> tuple[TextEvaluation, TextEvaluation]:
        """What the LLaVA says with its original tower, and with the FARE encoder in its place."""
        llava, encoder_dir = load_llava(), str(self.output_dir / "encoder")
        before, forced = self.language("CLIP", llava)
        print(f"    >>> swap_vision_tower(llava, {encoder_dir!r})")
        swapped = swap_vision_tower(llava[0], encoder_dir)
        figures = f"{swapped.changed} of {swapped.tensors} weight tensors of the tower changed"
        print(proof(swapped.changed > 0, "it is swapped in", figures), flush=True)
        after, less = self.language("FARE", llava)
        captions = before.rows[-1], after.rows[-1]
        self.prove(lower(*captions), "attacked captions are right more often: CLIP, then FARE", *captions)
        self.prove(lower(less, forced), "a sentence is forced less often: CLIP, then FARE", forced, less)
        return before, after

    def language(self, name: str, llava: Any) -> tuple[TextEvaluation, Row]:
        """Captions, and how often a sentence is forced on the last of the sets."""
        with tqdm(total=2, unit="task", **BAR) as bar:
            bar.set_description("    attacking captions")
            captions = measure.measure_captions(name, llava, self.plan.budget, STRONGEST, keep=range(PICTURES * 4))
            self.keep(captions.rows)
            bar.update()
            bar.set_description(f"    forcing {measure.TARGET!r}")
            forced = measure.measure_targeted(name, llava, self.plan.budget, STRONGEST)
            self.keep(forced)
            bar.update()
        self.left.finish(f"LLaVA + {name}")
        return captions, forced[-1]

    def keep(self, rows: list[Row]) -> None:
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
        draw(before, after, self.plan.budget, self.output_dir / "picture.png")
        self.left.finish(REPORT)
        return path


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
