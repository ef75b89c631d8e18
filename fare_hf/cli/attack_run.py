"""What ``fare-hf attack`` does: string after string, and then the pictures shown to other towers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.cli.console import named_values, refuse_given
from fare_hf.data.opening import find_columns, load_images
from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.data.pixels import quantize
from fare_hf.evaluation.report.environment import environment
from fare_hf.evaluation.report.report import RobustnessReport
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.vlm.adversarial_images import load_exported
from fare_hf.evaluation.vlm.forced_strings import STEALTH_TARGETS, as_sent, evaluate_stealth, read_targets
from fare_hf.evaluation.vlm.sets import chat_prompt
from fare_hf.evaluation.vlm.text_attack import says, target_loss
from fare_hf.evaluation.vlm.transfer import transfer_matrix
from fare_hf.files.folders import locked_folder
from fare_hf.pretrained.loading import load_processor, load_vlm, vlm_configuration
from fare_hf.vlm import generate_text, swap_vision_tower

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Attacks string after string; what is finished is not run again."""
    threat_model = ThreatModel("linf", args.eps)
    _check_options(args)
    targets = list(STEALTH_TARGETS) if args.targets is None else read_targets(args.targets)
    victims = named_values("--victims", args.victims, "ENCODER")
    vlm, processor, prompt = _model(args)
    if args.vision_tower is not None:
        print(swap_vision_tower(vlm, args.vision_tower, processor))
    for target in targets:  # before any attack: each has tokens, and room in an answer
        target_loss(vlm, processor, prompt, target, args.max_new_tokens)
    pixels = _pixels(args, processor)
    source = Path(args.vision_tower or args.vlm).name
    names = {"prompt": prompt, "model": source, "dataset": Path(args.images).name}
    counts = ("steps", "save_every", "seed", "batch_size", "max_new_tokens")
    options = names | {name: getattr(args, name) for name in counts}
    rows: list[Row] = []
    with locked_folder(args.output_dir, "an attack"):
        for number, target in enumerate(targets):
            folder = args.output_dir / f"target-{number}"
            named = options | {"dataset": f"{names['dataset']}, string {number}"}
            found = evaluate_stealth(vlm, processor, pixels, target, threat_model, folder=folder, **named)
            rows += found.rows
            forced = f"{sum(found.forced)} of {len(found.forced)}"
            print(f"{target!r}: {forced} pictures force it; they are in {found.folder}")
        if victims:
            rows += _transfer(vlm, processor, prompt, targets, victims, args, names)
        report = RobustnessReport(rows, environment(seed=args.seed))
        path = report.save(args.output_dir)
    print(report.to_markdown())
    print(path)


def _check_options(args: argparse.Namespace) -> None:
    """Refuses what the lab's model and the lab's images do not read."""
    if args.vlm == "lab":
        refuse_given(args, ["template"], "is for other models than lab, whose prompt is its own: leave it out.")
    if args.images.startswith("lab:"):
        refuse_given(
            args, ["split", "dataset_config"], f"is not for {args.images}, which has one split: leave it out."
        )


def _model(args: argparse.Namespace) -> tuple[Any, Any, str]:
    """Model, processor and prompt."""
    if args.vlm == "lab":
        from fare_hf.lab import load_llava
        from fare_hf.lab.captions import chat

        return (*load_llava(), chat(args.question))
    vlm_configuration(args.vlm)
    processor = load_processor(args.vlm)
    prompt = chat_prompt(processor, args.question, args.template)
    return load_vlm(args.vlm).eval(), processor, prompt


def _pixels(args: argparse.Namespace, processor: Any) -> Any:
    """The first images, in 8 bit as files hold them, at the tower's resolution."""
    if args.images.startswith("lab:"):
        from fare_hf.lab.measure import part

        return quantize(part(args.images.removeprefix("lab:"), args.samples).pixels)
    dataset = load_images(args.images, args.split or "train", config=args.dataset_config, report=print)
    column, _ = find_columns(dataset, None, name=args.images)
    data = PixelDataset(dataset.select(range(min(args.samples, len(dataset)))), processor.image_processor, column)
    if not len(data):
        raise ValueError(f"{args.images!r} holds no image in the split {args.split or 'train'!r}: give at least one.")
    return quantize(torch.stack([data[index]["pixel_values"] for index in range(len(data))]))


def _transfer(
    vlm: Any,
    processor: Any,
    prompt: str,
    targets: Sequence[str],
    victims: dict[str, str],
    args: argparse.Namespace,
    names: dict[str, str],
) -> list[Row]:
    """The saved pictures of all strings, shown to the model with each other tower in turn."""
    held = [load_exported(args.output_dir / f"target-{number}" / "images") for number in range(len(targets))]
    rows: list[Row] = []
    for victim, encoder in victims.items():
        with swap_vision_tower(vlm, encoder, processor):
            for number, (target, sent) in enumerate(zip(targets, held, strict=True)):

                def forced(pixels: Any, target: str = target) -> list[bool]:
                    answers: list[str] = []
                    for batch in as_sent(pixels, processor).split(args.batch_size):
                        options = {"max_new_tokens": args.max_new_tokens}
                        answers += generate_text(vlm, processor, batch, prompt, **options)
                    return [says(answer, target) for answer in answers]

                matrix = transfer_matrix(
                    {names["model"]: sent.pixels},
                    {victim: forced},
                    sent.clean,
                    ThreatModel("linf", args.eps),
                    task="transfer",
                    dataset=f"{names['dataset']}, string {number}",
                    metric="target forced by the PNG",
                    attack=sent.facts["attack"],
                    seed=args.seed,
                    batch_size=args.batch_size,
                )
                rows += matrix.rows
    return rows
