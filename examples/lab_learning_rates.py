"""Chooses the learning rates of FARE-4 and TeCoA-4 on the validation style, with equal budgets.

    python examples/lab_learning_rates.py --output_dir outputs/lab-learning-rates
    python examples/lab_learning_rates.py --set attack_steps=1 attack_step_size=5/255 --max_steps 1000 ...

Prints zero-shot accuracy (clean and at 4/255) and captions of the lab's LLaVA (clean and at 2/255) on the validation
style for each, and their mean, by which both objectives are chosen alike; what was found stands in
`fare_hf.lab.recipes.LEARNING_RATES`. `--set` changes other options of the recipe. No test set is opened.
"""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

from fare_hf import RobustnessReport, ThreatModel, swap_vision_tower
from fare_hf.encoders import load_encoder
from fare_hf.evaluation import Row, environment
from fare_hf.lab import load_clip, load_llava, measure, recipes

STYLE = "fxemoji"
SAMPLES, CAPTIONS = 252, 100
BUDGET = measure.Budget(steps=20, target_classes=2, caption_steps=20)


def main() -> None:
    """Trains and measures each learning rate of each objective."""
    parser = argparse.ArgumentParser(description="Chooses learning rates on the lab's validation style.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lab-learning-rates"))
    parser.add_argument("--learning_rates", nargs="+", default=["1e-3", "2e-3", "3e-3"])
    parser.add_argument("--objectives", nargs="+", default=["fare", "tecoa"], choices=["fare", "tecoa"])
    parser.add_argument("--max_steps", type=int, default=recipes.LONG_STEPS)
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="of the recipe, for all runs")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="images; at most 100 are captioned")
    args = parser.parse_args()
    changed = dict(pair.split("=", 1) for pair in args.set)
    rows: list[Row] = []
    for objective in args.objectives:
        for rate in args.learning_rates:
            folder = args.output_dir / f"{objective}-{rate}"
            options = recipes.recipe(f"{objective}-4", args.max_steps, rate) | changed
            if not (folder / "encoder").exists():
                subprocess.run(recipes.command(options, folder), check=True)
            found = validated(f"{objective} {rate}", folder / "encoder", args.samples)
            rows += found
            shown = ", ".join(f"{row.task} {row.threat_model or 'clean'} {row.value:.1%}" for row in found)
            mean = sum(row.value for row in found) / len(found)
            print(f"{objective} lr {rate}: {shown}; mean {mean:.1%}", flush=True)
    print(RobustnessReport(rows, environment()).save(args.output_dir))


def validated(name: str, encoder: Path, samples: int) -> list[Row]:
    """Zero-shot accuracy, clean and at 4/255, and captions, clean and at 2/255, of the validation style."""
    budget = replace(BUDGET, samples={STYLE: samples}, captions=min(samples, CAPTIONS))
    strong, weak = ([ThreatModel("linf", eps)] for eps in ("4/255", "2/255"))
    llava = load_llava()
    swap_vision_tower(llava[0], str(encoder))
    rows = measure.measure_zero_shot(name, load_encoder(str(encoder)), load_clip(), budget, strong)
    return rows + measure.measure_captions(name, llava, budget, weak, dataset=STYLE).rows


if __name__ == "__main__":
    main()
