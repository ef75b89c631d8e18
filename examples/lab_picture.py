"""The README's picture: a sentence forced on the lab's LLaVA, and the same attempt after a robust tower is swapped in.

    python examples/lab_picture.py --output docs/images/before-and-after.png

Images of a fixed stride are attacked, each tower on its own, with APGD towards the sentence. Drawn are the first ones
that both towers caption rightly and on which the attack works with the original tower; the heading says on how many it
works with either. `lab_table.py` measures more images.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fare_hf import swap_vision_tower
from fare_hf.evaluation import NamesConcept, SheetRow, TextEvaluation, attack_sheet, evaluate_targeted
from fare_hf.evaluation.report.attack_sheet import Answer
from fare_hf.evaluation.vlm.forced_strings import says
from fare_hf.lab import encoder_folder, load_llava, measure
from fare_hf.lab.drawings import all_concepts


def main() -> None:
    """Attacks the LLaVA with either tower, and draws both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("outputs/before-and-after.png"))
    parser.add_argument("--encoder", default="fare-4")
    parser.add_argument("--images", type=int, default=24, help="that are attacked")
    parser.add_argument("--drawn", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    llava = load_llava()
    found = {"original": forced(llava, args.images, args.steps)}
    swap_vision_tower(llava[0], str(encoder_folder(args.encoder)))
    found["FARE-4"] = forced(llava, args.images, args.steps)
    threat = measure.THREAT_MODELS[-1]
    hits = {name: [says(text, measure.TARGET) for text in one.attacked[str(threat)]] for name, one in found.items()}
    counts = ", ".join(f"{name} {sum(hit)} of {len(hit)}" for name, hit in hits.items())
    title = f"An attacker makes the LLaVA say {measure.TARGET!r}: {counts}"
    test, names = measure.part("twemoji", args.images), NamesConcept(all_concepts())
    wanted = [test.class_names[label] for label in test.labels.tolist()]
    right = [all(names(one.clean[index], wanted[index]) for one in found.values()) for index in range(len(test))]
    chosen = [index for index, hit in enumerate(hits["original"]) if hit and right[index]] or [0]
    rows = [sheet_row(test.pixels[index], index, wanted[index], found, str(threat)) for index in chosen[: args.drawn]]
    print(attack_sheet(rows, args.output, threat_model=threat, title=title))


def sheet_row(pixels: Tensor, index: int, name: str, found: Mapping[str, TextEvaluation], threat: str) -> SheetRow:
    """One image of the picture."""
    attacked = {
        f"attack on {tower}": (one.adversarial[threat][index], {tower: said(one.attacked[threat][index])})
        for tower, one in found.items()
    }
    clean = {tower: said(one.clean[index]) for tower, one in found.items()}
    return SheetRow(pixels, clean, attacked, name)


def forced(llava: measure.Vlm, images: int, steps: int) -> TextEvaluation:
    """What the LLaVA says of clean images, and of those that are to make it say the sentence."""
    return evaluate_targeted(
        *llava,
        measure.part("twemoji", images).pixels,
        measure.TARGET,
        prompt=measure.PROMPT,
        model="LLaVA",
        dataset="twemoji",
        threat_models=measure.THREAT_MODELS[-1:],
        steps=steps,
        keep=range(images),
        max_new_tokens=14,
    )


def said(text: str) -> Answer:
    """Red where it is the attacker's sentence, green where not."""
    return Answer(text, not says(text, measure.TARGET))


if __name__ == "__main__":
    main()
