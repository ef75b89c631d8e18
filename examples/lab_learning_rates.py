"""Chooses the learning rates of FARE-4 and TeCoA-4 on the validation style, with equal budgets.

    python examples/lab_learning_rates.py --output_dir outputs/lab-learning-rates
    python examples/lab_learning_rates.py --set attack_steps=1 attack_step_size=5/255 --max_steps 1000 ...

Prints clean and robust accuracy on the validation style for each; what was found stands in
`fare_hf.lab.recipes.LEARNING_RATES`. `--set` changes other options of the recipe. No test set is opened.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from fare_hf import RobustnessReport, ThreatModel
from fare_hf.encoders import load_encoder
from fare_hf.evaluation import Row, environment
from fare_hf.lab import load_clip, measure, recipes

BUDGET = measure.Budget({"fxemoji": 252}, steps=20, target_classes=2)


def main() -> None:
    """Trains and measures each learning rate of each objective."""
    parser = argparse.ArgumentParser(description="Chooses learning rates on the lab's validation style.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/lab-learning-rates"))
    parser.add_argument("--learning_rates", nargs="+", default=["1e-3", "2e-3", "3e-3"])
    parser.add_argument("--objectives", nargs="+", default=["fare", "tecoa"], choices=["fare", "tecoa"])
    parser.add_argument("--max_steps", type=int, default=750)
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="of the recipe, for all runs")
    parser.add_argument("--samples", type=int, default=BUDGET.samples["fxemoji"])
    args = parser.parse_args()
    budget = measure.Budget({"fxemoji": args.samples}, BUDGET.steps, BUDGET.target_classes)
    changed = dict(pair.split("=", 1) for pair in args.set)
    rows: list[Row] = []
    for objective in args.objectives:
        for rate in args.learning_rates:
            folder = args.output_dir / f"{objective}-{rate}"
            options = recipes.recipe(f"{objective}-4", args.max_steps, rate) | changed
            if not (folder / "encoder").exists():
                subprocess.run(recipes.command(options, folder), check=True)
            encoder = load_encoder(str(folder / "encoder"))
            found = measure.measure_zero_shot(
                f"{objective} {rate}", encoder, load_clip(), budget, [ThreatModel("linf", "4/255")]
            )
            rows += found
            clean, robust = (row.value for row in found)
            print(f"{objective} lr {rate}: clean {clean:.1%}, robust {robust:.1%}", flush=True)
    print(RobustnessReport(rows, environment()).save(args.output_dir))


if __name__ == "__main__":
    main()
