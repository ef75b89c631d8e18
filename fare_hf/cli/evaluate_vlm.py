"""`fare-hf evaluate --vlm`: a vision-language model on images of one's own, or on the lab's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fare_hf.cli.console import positive, refuse_given, silent, tell, whole_prompt
from fare_hf.cli.going_on import going_on

if TYPE_CHECKING:
    from fare_hf.evaluation import RobustnessReport, Row

    Measured: TypeAlias = tuple[RobustnessReport, list[dict[str, Any]]]
    """The report, and the answers behind it."""

__all__ = ["OF_A_VLM", "add_vlm_options", "run_vlm"]

TASKS = ("captions", "vqa", "pope", "targeted")
"""`fare_hf.evaluation.vlm.own_data.TASKS`, known here before that is imported (a test compares them)."""
OF_A_VLM = ("task", "caption_column", "question_column", "answer_column", "prompt", "targets", "max_new_tokens")
OF_AN_ENCODER_ALONE = ("label_column", "class_names", "text_model")
COLUMNS = ("image_column", "caption_column", "question_column", "answer_column")
PASSED = ("split", "dataset_config", *COLUMNS, "prompt", "max_new_tokens")
EFFORT = ("eps", "samples", "steps", "batch_size", "seed")


def add_vlm_options(parser: argparse.ArgumentParser) -> None:
    """The options that --vlm brings."""
    parser.add_argument(
        "--vlm",
        help="folder or repository of a vision-language model, or lab:llava or lab:smolvlm: measured with its own "
        "tower, and with ENCODER swapped in, if one is given",
    )
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="of --vlm: captions (images with a caption or several), vqa (question and answers), pope (question and "
        "yes or no), targeted (any images, and --targets)",
    )
    parser.add_argument("--caption_column", help="text, or a list of texts; found where just one is called so")
    parser.add_argument("--question_column", help="of vqa and pope; found where just one is called so")
    parser.add_argument("--answer_column", help="text, or a list of texts; found where just one is called so")
    parser.add_argument(
        "--prompt", type=whole_prompt, help="what is asked of each image; of vqa and pope with {} for the question"
    )
    parser.add_argument("--targets", type=Path, help="file with one string a line, for the task targeted")
    parser.add_argument("--max_new_tokens", type=positive, help="of an answer (default: 20, 5, 5, 32 by task)")


def run_vlm(args: argparse.Namespace) -> RobustnessReport | None:
    """One model with one tower or two; of several processes the first one writes, and gets the report."""
    from datasets import disable_progress_bars
    from transformers.utils import logging

    from fare_hf.evaluation.processes import process_state
    from fare_hf.evaluation.vlm.answers import write_answers
    from fare_hf.lab.names import encoder_path

    refuse_given(args, OF_AN_ENCODER_ALONE, "is for the classes of zero-shot, and --vlm asks for words: leave it out.")
    if args.dataset is None or len(args.dataset) != 1 or args.task is None:
        hint = ""
        if args.encoder is None and args.dataset and len(args.dataset) > 1:
            hint = (
                f" --dataset was given {', '.join(args.dataset)}: if one is the encoder, name it before the options."
            )
        raise ValueError(f"--vlm needs one --dataset, and the --task: captions, vqa, pope or targeted.{hint}")
    for name in ("encoder", "against"):
        setattr(args, name, getattr(args, name) and encoder_path(getattr(args, name)))
    first = process_state().is_main_process
    logging.disable_progress_bar()  # bars of loaded weights and of opened tables say nothing of the attack
    disable_progress_bars()
    with going_on(args) as states:
        report, answers = _measured(args, _strings(args), first, states)
        if first:
            report.save(args.output_dir)
            tell(f"what was said to each image: {write_answers(args.output_dir, answers)}")
    return report if first else None


def _strings(args: argparse.Namespace) -> list[str]:
    from fare_hf.evaluation.vlm.forced_strings import read_targets

    if args.targets is None:
        return []
    if args.task != "targeted":
        raise ValueError(f"--targets is for the task targeted, not for {args.task}: leave it out.")
    return read_targets(args.targets)


def _measured(args: argparse.Namespace, strings: Sequence[str], first: bool, states: Path) -> Measured:
    from fare_hf.evaluation import evaluate_vlm_on_data
    from fare_hf.lab.captions import chat
    from fare_hf.lab.models import load_vlm_and_processor
    from fare_hf.lab.names import is_in_lab

    dataset, prompts = args.dataset[0], args.templates or []
    if is_in_lab(dataset):
        return _on_the_lab(args, dataset, strings, states)
    if len(prompts) > 1:
        raise ValueError(f"--template is given {len(prompts)} times: with --vlm it is one whole prompt.")
    if args.task == "targeted" and not strings:
        raise ValueError("the task targeted needs --targets, a file with one string a line.")
    template, vlm = (whole_prompt(prompts[0]) if prompts else None), args.vlm
    if is_in_lab(vlm):
        template, vlm = template or chat("{}"), load_vlm_and_processor(vlm)
    options = {name: getattr(args, name) for name in (*PASSED, *EFFORT) if getattr(args, name) is not None}
    options |= {"encoder": args.encoder, "against": args.against, "template": template, "targets": strings}
    options |= {"folder": states, "report": tell if first else silent}
    found = evaluate_vlm_on_data(vlm, dataset, args.task, **options)
    return found.report(), found.answers


def _on_the_lab(args: argparse.Namespace, dataset: str, strings: Sequence[str], states: Path) -> Measured:
    """A model of the lab on the lab's sets, as its shipped figures are measured."""
    from fare_hf.attacks import ThreatModel
    from fare_hf.evaluation import RobustnessReport, environment
    from fare_hf.evaluation.given import names_for_rows
    from fare_hf.lab.models import load_vlm_and_processor
    from fare_hf.lab.names import LAB_VLMS, LLAVA, QUESTION_SETS, TEST_SETS, is_in_lab, trained_path
    from fare_hf.vlm import swap_vision_tower
    from fare_hf.vlm.swap.before_loading import check_swap

    if not is_in_lab(args.vlm):
        raise ValueError(f"--dataset {dataset} is for --vlm {LAB_VLMS} alone: give images of your own.")
    captioned, asked = ["captions", "scenes", *TEST_SETS], [name for name in QUESTION_SETS if name != "pope"]
    sets = {"captions": captioned, "vqa": asked, "pope": ["pope"], "targeted": TEST_SETS}[args.task]
    if dataset.removeprefix("lab:") not in sets:
        raise ValueError(f"--task {args.task} has no {dataset} in the lab; use one of lab:{', lab:'.join(sets)}.")
    why = f"is for images of your own: {dataset} has its own."
    refuse_given(args, [*PASSED, "templates", "batch_size"], why)
    if args.against is not None and args.encoder is None:
        raise ValueError(f"--against {args.against} is what an encoder is compared with: give ENCODER too.")
    threats = [ThreatModel("linf", radius) for radius in args.eps or ("2/255", "4/255")]
    towers = [args.against] if args.encoder is None else [args.against, args.encoder]
    for tower in filter(None, towers):
        check_swap(trained_path(args.vlm), tower)
    rows: list[Row] = []
    answers: list[dict[str, Any]] = []
    if len(set(towers)) < len(towers):
        raise ValueError(f"{towers[0]!r} is compared with itself: give another encoder, or leave --against out.")
    own = "CLIP" if args.vlm == LLAVA else "its own tower"
    names = names_for_rows([tower or own for tower in towers])
    for number, (tower, name) in enumerate(zip(towers, names, strict=True)):
        vlm = load_vlm_and_processor(args.vlm)
        if tower is not None:
            swap_vision_tower(vlm[0], tower)
        known = {"threat_models": threats, "folder": states / f"tower-{number}", "answers": answers}
        rows += _lab_rows(args, name, vlm, dataset.removeprefix("lab:"), known, strings)
    return RobustnessReport(rows, environment(seed=args.seed or 0)), answers


def _lab_rows(
    args: argparse.Namespace, name: str, vlm: Any, dataset: str, known: dict[str, Any], strings: Sequence[str]
) -> list[Row]:
    from fare_hf.lab import measure

    known |= {"seed": args.seed or 0, "distributed": True}
    few, steps = args.samples, args.steps
    if args.task == "captions":
        return measure.measure_descriptions(name, vlm, dataset, few, steps, **known)
    if args.task != "targeted":
        budget = measure.Budget(questions={dataset: few}, question_steps=steps or measure.Budget.question_steps)
        return measure.measure_questions(name, vlm, budget, **known)
    count, length = few or measure.Budget.targeted, steps or measure.Budget.targeted_steps
    budget = measure.Budget(targeted=count, targeted_steps=length, targeted_sets=(dataset,))
    rows: list[Row] = []
    for number, target in enumerate(strings or [measure.TARGET]):
        own = known | {"folder": known["folder"] / f"string-{number}"}
        found = measure.measure_targeted(name, vlm, budget, **own, target=target)
        rows += [replace(row, dataset=f"{dataset}, {target!r}") for row in found] if len(strings) > 1 else found
    return rows
