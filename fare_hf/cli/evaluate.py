"""`fare-hf evaluate`: one encoder on labelled images, a vision-language model on words about images, or a suite."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fare_hf.cli.console import (
    named_values,
    natural,
    one_line,
    positive,
    refuse_given,
    refuse_missing,
    refuse_no_file,
    silent,
    tell,
)
from fare_hf.cli.evaluate_vlm import OF_A_VLM, add_vlm_options, run_vlm
from fare_hf.cli.going_on import going_on
from fare_hf.lab.names import TEST_SETS, check_vlm, encoder_path
from fare_hf.numerals import parse_eps

if TYPE_CHECKING:
    from fare_hf.evaluation import RobustnessReport
    from fare_hf.evaluation.report.rows import Row
    from fare_hf.evaluation.zero_shot.sets import ZeroShotData

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "clean and attacked: one encoder on labelled images, a --vlm on captions or questions, or a suite (YAML)"
EXAMPLES = """\
fare-hf evaluate lab:fare-4 --output_dir outputs/fare-4   # offline: the lab's main set, 2/255 and 4/255
fare-hf evaluate fare4/encoder --dataset path/to/photos --eps 2/255 4/255 --output_dir outputs/photos
fare-hf evaluate fare4/encoder --dataset cifar10 --samples 500 --against openai/clip-vit-large-patch14 --output_dir o
fare-hf evaluate facebook/dinov2-base --probe knn --dataset path/to/photos --output_dir outputs/knn
fare-hf evaluate fare4/encoder --vlm llava-hf/llava-1.5-7b-hf --dataset photos --task captions --output_dir o
fare-hf evaluate --suite paper-zero-shot --models FARE-4=fare4/encoder --output_dir outputs/paper
"""
GOING_ON = "the same command goes on after the last finished batch, and a suite after its last finished job"
OF_IMAGES = ("split", "dataset_config", "image_column", "label_column", "class_names", "templates")
OF_A_PROBE = ("probe", "train_split")
NOT_OF_A_PROBE = ("templates", "text_model")
OF_AN_ENCODER = ("dataset", *OF_IMAGES, "against", "text_model", "eps", "samples", "steps", "batch_size", "seed")
"""They have no defaults in the parser, so that those beside a suite are noticed."""
NUMBER = re.compile(r"[-+]?[\d.]+(/[\d.]+)?")
LAB_EFFORT = {"steps": 50, "target_classes": 2}
"""Of the figures that the lab has published."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "encoder",
        nargs="?",
        help="folder or repository of a CLIP or SigLIP, or of its vision encoder, or one such as lab:fare-4; with "
        "--vlm what is swapped in; not with --suite",
    )
    parser.add_argument(
        "--suite", help="lab, paper-zero-shot, paper-vlm, or a YAML file, which says all but --models and --output_dir"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME=PATH", help="instead of the models of the suite")
    parser.add_argument(
        "--dataset",
        nargs="+",
        help="folder of images (a folder a class; with --vlm a metadata.jsonl) or data set of the Hub; one of the "
        "paper's, such as cifar10 or COCO; or the lab's, such as lab:digits (default: lab:twemoji)",
    )
    parser.add_argument("--split", help="of the data set (default: test, or all of a folder that is not divided)")
    parser.add_argument("--dataset_config", help="of a data set with several configurations")
    parser.add_argument("--image_column", help="found where there is just one")
    parser.add_argument("--label_column", help="whole numbers or words; found where the data set names its classes")
    parser.add_argument("--class_names", nargs="+", help="in the order of the labels (default: the data set's own)")
    parser.add_argument(
        "--templates",
        "--template",
        nargs="+",
        help="sentences with {} for the class name (default: a photo of a {}.); with --vlm one whole prompt with the "
        "image token and {} for what is asked, for processors without a chat template",
    )
    parser.add_argument("--against", help="the original: measured on the same images, and compared in pairs")
    parser.add_argument(
        "--text_model",
        help="CLIP or SigLIP whose text encoder reads the names (default: the one the encoder was made from)",
    )
    parser.add_argument("--eps", nargs="+", help="radii of the linf ball (default: 2/255 4/255)")
    parser.add_argument("--steps", type=positive, help="APGD steps of each run (default: 100; of the lab's sets 50)")
    parser.add_argument("--samples", type=positive, help="images of each set (default: all; as many as the paper)")
    parser.add_argument("--batch_size", type=positive, help="images of a forward pass (default: 128; with --vlm 32)")
    parser.add_argument("--seed", type=natural, help="of the choice of images and the random starts (default: 0)")
    parser.add_argument(
        "--probe",
        choices=("knn", "linear"),
        help="without texts, for encoders such as DINOv2: the nearest clean training images vote (k=20, as DINO), or "
        "a logistic regression on clean features; --dataset is then one folder with train/ and test/, or of the Hub",
    )
    parser.add_argument("--train_split", help="of the data set, that --probe is fitted on (default: train)")
    add_vlm_options(parser)
    parser.add_argument("--json", action="store_true", help="print report.json, and nothing else, to standard output")
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="where report.json and report.md go; called again with it, the command goes on",
    )


def check(args: argparse.Namespace) -> None:
    """The folder, radii, and names of the lab."""
    for radius in () if args.suite else args.eps or ():
        check_radius(radius, args.encoder)
    if args.suite is None and args.encoder is not None:
        refuse_missing("ENCODER", encoder_path(args.encoder))
    for name in () if args.suite else args.dataset or ():
        if name in TEST_SETS and not Path(name).exists():
            raise ValueError(f"--dataset {name} is the name of no data set; did you mean lab:{name}?")
    check_vlm(args.vlm or "", "--vlm ")
    refuse_missing("--vlm", args.vlm or "")
    refuse_no_file("--targets", args.targets)


def check_radius(value: str, encoder: str | None) -> None:
    """A radius is a number; where no encoder is named, a word may be that."""
    try:
        parse_eps(value)
    except ValueError as error:
        if encoder is not None or NUMBER.fullmatch(value):
            raise
        hint = f"If {value!r} is the encoder, name it before the options: --eps takes all that follows it."
        raise ValueError(f"{error} {hint}") from None


def run(args: argparse.Namespace) -> None:
    """A suite, a vision-language model, or one encoder on labelled images."""
    from fare_hf.attacks import ThreatModel

    if args.suite is not None:
        why = "is not for --suite, whose file says it; with it go --models, --json and --output_dir."
        refuse_given(args, [*OF_AN_ENCODER, *OF_A_PROBE, "vlm", *OF_A_VLM], why)
        run_suite_file(args)
        return
    if args.encoder is None and args.vlm is None:
        raise ValueError("nothing to evaluate: name an encoder, a --vlm, or a --suite.")
    refuse_given(args, ["models"], f"is for --suite; with an encoder go --{', --'.join(OF_AN_ENCODER)}, --output_dir.")
    check_once("--eps", [str(ThreatModel("linf", radius)) for radius in args.eps or ()])
    if args.vlm is None:
        refuse_given(args, OF_A_VLM, "is for a vision-language model: give that with --vlm.")
        if args.probe is None:
            refuse_given(args, ["train_split"], "is for --probe: give that too, or leave it out.")
        else:
            refuse_given(args, NOT_OF_A_PROBE, "is for comparing with texts: leave it out, or --probe.")
            check_probed(args.dataset)
        run_encoder(args)
        return
    refuse_given(args, OF_A_PROBE, "is for an encoder alone: leave it or --vlm out.")
    if (report := run_vlm(args)) is not None:
        show(report, args)


def run_suite_file(args: argparse.Namespace) -> None:
    """`--suite`: jobs that are finished already are not run again."""
    from transformers.utils import logging

    from fare_hf.evaluation.processes import process_state
    from fare_hf.suites import load_suite, run_suite

    if args.encoder is not None:
        raise ValueError(f"--suite has its own models: give --models NAME={args.encoder} instead.")
    models = named_values("--models", args.models) if args.models else None
    suite = load_suite(args.suite, models)
    logging.disable_progress_bar()  # bars of loaded weights would write over the one that says what is left
    report = run_suite(suite, args.output_dir)
    if process_state().is_main_process:
        show(report, args)


def show(report: RobustnessReport, args: argparse.Namespace) -> None:
    """A saved report, as a table or as JSON, and its plots."""
    say: Callable[[str], None] = tell if args.json else print
    print(report.to_json(), end="") if args.json else print(report.to_markdown())
    say(str(args.output_dir / "report.json"))
    draw_plots(report.rows, args.output_dir / "plots", say)


def draw_plots(rows: Sequence[Row], folder: Path, say: Callable[[str], None] = print) -> None:
    """Charts beside a finished report; without matplotlib the report stands, and a line says how to get them."""
    from fare_hf.evaluation.report.plots import draw_report

    try:
        drawn = draw_report(rows, folder)
    except ImportError as error:
        say(f"no plots: {one_line(error)}")
        return
    if drawn:
        say(f"{folder} ({len(drawn)} plots)")


def run_encoder(args: argparse.Namespace) -> None:
    """One encoder on labelled images; of several processes the first one writes."""
    from transformers.utils import logging

    from fare_hf.evaluation import evaluate, evaluate_probe
    from fare_hf.evaluation.processes import process_state

    options = {name: getattr(args, name) for name in OF_AN_ENCODER if getattr(args, name) is not None}
    names = options.pop("dataset", ["lab:twemoji"])
    check_once("--dataset", names)
    first = process_state().is_main_process
    options |= {name: encoder_path(options[name]) for name in ("against", "text_model") if name in options}
    logging.disable_progress_bar()  # bars of loaded weights say nothing of the attack
    with going_on(args) as states:
        options |= probe_options(args) if args.probe else lab_options(args, names)
        options |= {"folder": states, "report": tell if first else silent}
        images: Any = names[0] if args.probe else [lab_images(name, args.samples) for name in names]
        measure: Any = evaluate_probe if args.probe else evaluate
        report = measure(encoder_path(args.encoder), images, **options).report()
        if first:
            report.save(args.output_dir)
    if first:
        show(report, args)


def probe_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `evaluate_probe` is given beside what it has in common with `evaluate`."""
    return {name: getattr(args, name) for name in OF_A_PROBE if getattr(args, name) is not None}


def check_probed(names: Sequence[str] | None) -> None:
    """A probe needs one data set with a training split."""
    from fare_hf.evaluation.zero_shot.sets import is_zero_shot_set
    from fare_hf.lab.names import is_in_lab

    name = names[0] if names else "lab:twemoji"
    if names is not None and len(names) > 1:
        raise ValueError(f"--probe is fitted on one data set: give {name!r} alone.")
    if is_in_lab(name) or (not Path(name).expanduser().is_dir() and is_zero_shot_set(name)):
        raise ValueError(
            f"--probe is fitted on training images, and {name!r} has none here: give a folder with train/ and test/, "
            "or a data set of the Hub such as uoft-cs/cifar10."
        )


def lab_options(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The effort of the lab's figures, and the lab's texts for encoders that name no others."""
    from fare_hf.encoders import check_encoder_type
    from fare_hf.evaluation.zero_shot.evaluate import text_model_of
    from fare_hf.lab.names import TEST_SETS, encoder_path, is_in_lab, lab_name

    ours = [lab_name(name, TEST_SETS, "--dataset ") for name in names if is_in_lab(name)]
    options: dict[str, Any] = {}
    check_encoder_type(encoder_path(args.encoder), "pooled")
    subjects = [name for name in (args.encoder, args.against) if name is not None]
    own = {name: text_model_of(encoder_path(name)) for name in subjects} if args.text_model is None else {}
    without = [name for name, text_model in own.items() if text_model is None and (ours or is_in_lab(name))]
    if without and set(own.values()) <= {None, encoder_path("lab:clip")}:
        options["text_model"] = encoder_path("lab:clip")
    if len(ours) == len(names):
        options |= LAB_EFFORT if args.steps is None else {"target_classes": LAB_EFFORT["target_classes"]}
    return options


def lab_images(name: str, samples: int | None) -> str | ZeroShotData:
    """A set of the lab, opened; any other as its name."""
    from fare_hf.evaluation.zero_shot.sets import ZeroShotData
    from fare_hf.lab.measure import part
    from fare_hf.lab.names import is_in_lab
    from fare_hf.lab.sets import TestSamples

    if not is_in_lab(name):
        return name
    test = part(name, samples)
    return ZeroShotData(test.name, TestSamples(test), list(test.prompts), ["{}"], False, groups=test.groups.tolist())


def check_once(option: str, values: Sequence[str]) -> None:
    """Refuses a value that an option is given twice."""
    from fare_hf.evaluation.given import first_repeated

    if (value := first_repeated(values)) is not None:
        raise ValueError(f"{option} names {value} twice: give it once.")
