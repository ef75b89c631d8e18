"""`fare-hf evaluate`: a suite, or one encoder on the lab's zero-shot sets."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fare_hf.cli.console import named_values, natural, one_line, positive, refuse_given

if TYPE_CHECKING:
    from fare_hf.evaluation.report.rows import Row

__all__ = ["GOING_ON", "PURPOSE", "add_options", "run"]

PURPOSE = "a suite (YAML), or one encoder on the lab's zero-shot sets, attacked"
GOING_ON = (
    "the same command goes on after the last finished job of a suite; one encoder is measured from the beginning"
)
DEFAULTS = {"dataset": ["lab:twemoji"], "eps": ["2/255", "4/255"], "steps": 50, "seed": 0}
"""Of an encoder on the lab's sets; the parser has none, so that options beside a suite are noticed."""
OF_THE_LAB = (*DEFAULTS, "samples")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "encoder",
        nargs="?",
        help="folder or repository of an encoder fine-tuned from the lab's CLIP, or one such as lab:fare-4; not with "
        "--suite",
    )
    parser.add_argument(
        "--suite", help="lab, paper-zero-shot, paper-vlm, or a YAML file, which says all but --models and --output_dir"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME=PATH", help="instead of the models of the suite")
    parser.add_argument("--dataset", nargs="+", help="the lab's, such as lab:digits (default: lab:twemoji)")
    parser.add_argument("--eps", nargs="+", help="radii of the linf ball (default: 2/255 4/255)")
    parser.add_argument("--steps", type=positive, help="APGD steps of each run (default: 50)")
    parser.add_argument("--samples", type=positive, help="images of each set (default: all)")
    parser.add_argument("--seed", type=natural, help="seed of the random starts (default: 0)")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="where report.json and report.md go; a suite goes on there"
    )


def run(args: argparse.Namespace) -> None:
    """A suite, or one encoder on the lab's zero-shot sets."""
    if args.suite is not None:
        refuse_given(args, OF_THE_LAB, "is not for --suite, whose file says it; with it go --models and --output_dir.")
        run_suite_file(args)
        return
    if args.encoder is None:
        raise ValueError("nothing to evaluate: name an encoder, or a --suite.")
    refuse_given(args, ["models"], f"is for --suite; with an encoder go --{', --'.join(OF_THE_LAB)}, --output_dir.")
    for name, value in DEFAULTS.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    run_on_the_lab(args)


def run_suite_file(args: argparse.Namespace) -> None:
    """`--suite`: jobs that are finished already are not run again."""
    from transformers.utils import logging

    from fare_hf.suites import load_suite, run_suite

    if args.encoder is not None:
        raise ValueError(f"--suite has its own models: give --models NAME={args.encoder} instead.")
    models = named_values("--models", args.models) if args.models else None
    suite = load_suite(args.suite, models)
    logging.disable_progress_bar()  # bars of loaded weights would write over the one that says what is left
    report = run_suite(suite, args.output_dir)
    print(report.to_markdown())
    print(args.output_dir / "report.json")
    draw_plots(report.rows, args.output_dir / "plots")


def draw_plots(rows: Sequence[Row], folder: Path) -> None:
    """Charts beside a finished report; without matplotlib the report stands, and a line says how to get them."""
    from fare_hf.evaluation.report.plots import draw_report

    try:
        drawn = draw_report(rows, folder)
    except ImportError as error:
        print(f"no plots: {one_line(error)}")
        return
    if drawn:
        print(f"{folder} ({len(drawn)} plots)")


def run_on_the_lab(args: argparse.Namespace) -> None:
    """One encoder on zero-shot sets of the lab."""
    from tqdm.auto import tqdm

    from fare_hf.attacks import ThreatModel
    from fare_hf.encoders import load_encoder
    from fare_hf.evaluation import RobustnessReport, environment
    from fare_hf.files.folders import check_new_folder, locked_folder
    from fare_hf.lab import load_clip, measure
    from fare_hf.lab.names import TEST_SETS, encoder_path, lab_name

    check_new_folder(args.output_dir)
    names = [lab_name(name, TEST_SETS, "--dataset ") for name in args.dataset]
    threats = [ThreatModel("linf", eps) for eps in args.eps]
    check_once("--dataset", names)
    check_once("--eps", list(map(str, threats)))
    folder = Path(encoder_path(args.encoder))
    model = (folder.resolve() if folder.is_dir() else folder).name  # "." has no name of its own
    encoder, clip, rows = load_encoder(str(folder)), load_clip(), []
    check_lab_encoder(args.encoder, encoder, clip[0])
    with locked_folder(args.output_dir, "an evaluation"), tqdm(names, unit="set", leave=False) as bar:
        check_new_folder(args.output_dir)  # another run may have ended in it
        for name in bar:
            bar.set_description(f"attacking {args.encoder} on {name}")
            budget = measure.Budget({name: args.samples}, steps=args.steps)
            rows += measure.measure_zero_shot(model, encoder, clip, budget, threats, args.seed)
        report = RobustnessReport(rows, environment(seed=args.seed))
        path = report.save(args.output_dir)
    print(report.to_markdown())
    print(path)


def check_once(option: str, values: Sequence[str]) -> None:
    """Refuses a value that an option is given twice."""
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ValueError(f"{option} names {value} twice: give it once.")


def check_lab_encoder(name: str, encoder: Any, clip: Any) -> None:
    """Refuses an encoder that cannot be compared with the lab's texts."""
    for field in ("image_size", "projection_dim"):
        value, wanted = getattr(encoder.config, field), getattr(clip.config.vision_config, field)
        if value != wanted:
            raise ValueError(
                f"{name!r} has {field} {value}, the lab's CLIP has {wanted}: give an encoder fine-tuned from it, or "
                "use fare_hf.evaluate_zero_shot with images and texts of your own."
            )
