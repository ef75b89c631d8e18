"""``fare-hf``: a thin command line over the public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one subcommand; what was asked wrongly is one sentence, without a traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # its options are those of the Trainer, parsed there
        from fare_hf import train

        train.main(words[1:])
        return
    args = build_parser().parse_args(words)
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
    except (ValueError, OSError) as error:
        sys.exit(f"fare-hf: error: {error}")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands but ``train``."""
    parser = argparse.ArgumentParser(prog="fare-hf", description="Adversarially robust CLIP vision encoders (FARE).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("train", help="fine-tune an encoder; same as python -m fare_hf.train", add_help=False)

    evaluate = commands.add_parser("evaluate", help="a suite (YAML), or one encoder on the lab's zero-shot sets")
    evaluate.add_argument(
        "encoder", nargs="?", help="folder or repository of an encoder of the lab's CLIP; no --suite"
    )
    evaluate.add_argument("--suite", help="lab, paper-zero-shot, paper-vlm, or a YAML file")
    evaluate.add_argument("--models", nargs="+", metavar="NAME=PATH", help="instead of the suite's own models")
    evaluate.add_argument("--datasets", nargs="+", default=["twemoji"], help="lab test sets (default: twemoji)")
    evaluate.add_argument("--eps", nargs="+", default=["2/255", "4/255"], help="radii of the linf ball")
    evaluate.add_argument("--steps", type=int, default=50, help="APGD steps of each run")
    evaluate.add_argument("--samples", type=int, default=None, help="images of each set (default: all)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of the random starts")
    evaluate.add_argument("--output_dir", type=Path, required=True, help="where report.json and report.md go")
    evaluate.set_defaults(run=run_evaluate)

    swap = commands.add_parser("swap", help="put an encoder into a LLaVA folder and save it as a new folder")
    swap.add_argument("vlm", help="folder or repository of a LLaVA")
    swap.add_argument("encoder", help="folder or repository of the robust encoder")
    swap.add_argument("output_dir", type=Path, help="where the swapped LLaVA goes; must be empty or absent")
    swap.set_defaults(run=run_swap)

    convert = commands.add_parser(
        "convert", help="from and to open_clip, proven to compute the same before it is written"
    )
    convert.add_argument("source", help="repository or folder; or a file with the state dict of a vision tower alone")
    convert.add_argument("output_dir", type=Path, help="where the result goes; must be empty or absent")
    convert.add_argument("--to", choices=("transformers", "open_clip"), required=True, help="format of the result")
    convert.add_argument(
        "--base", help="CLIP it was fine-tuned from: says what weights alone do not; gives a text tower"
    )
    convert.add_argument("--activation", help="gelu or quick_gelu, where the open_clip configuration does not say")
    convert.add_argument("--visual_only", action="store_true", help="leave the text tower out")
    convert.add_argument("--revision", help="of the source on the Hub")
    convert.set_defaults(run=run_convert)

    push = commands.add_parser("push", help="publish a saved encoder on the Hub, and read it back")
    push.add_argument("folder", type=Path, help="as save_robust_encoder or a training (<output_dir>/encoder) wrote it")
    push.add_argument("repo_id", help="namespace/name, or a name in your own account; made if absent")
    push.add_argument("--private", action=argparse.BooleanOptionalAction, help="of a new repository")
    push.add_argument("--revision", default="main", help="branch, made if absent: one for each checkpoint of a run")
    push.add_argument("--create_pr", action="store_true", help="open a pull request to the revision instead")
    push.add_argument("--tag", help="put on the published commit")
    push.add_argument("--message", help="of the commit")
    push.add_argument(
        "--with_text_encoder",
        nargs="?",
        const="",
        metavar="CLIP",
        help="publish the text encoder and tokenizer too, of CLIP or else of the base model that the card names",
    )
    push.set_defaults(run=run_push)

    quickstart = commands.add_parser("quickstart", help="the whole story on the embedded lab, in minutes")
    quickstart.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart"))
    quickstart.add_argument(
        "--max_steps", type=int, default=None, help="training steps (default: what fits 6 minutes)"
    )
    quickstart.set_defaults(run=run_quickstart)
    return parser


def run_suite_file(args: argparse.Namespace) -> None:
    """``fare-hf evaluate --suite``: jobs that are finished already are not run again."""
    from fare_hf.evaluation.suite import load_suite, run_suite
    from fare_hf.suites import runners

    if args.encoder is not None:
        raise ValueError(f"--suite has its own models: give --models NAME={args.encoder} instead.")
    wrong = [pair for pair in args.models or [] if "=" not in pair]
    if wrong:
        raise ValueError(f"--models {wrong[0]}: give NAME=PATH.")
    models = dict(pair.split("=", 1) for pair in args.models) if args.models else None
    report = run_suite(load_suite(args.suite, models), runners(args.output_dir), args.output_dir)
    print(report.to_markdown())
    print(args.output_dir / "report.json")


def run_evaluate(args: argparse.Namespace) -> None:
    """``fare-hf evaluate``: a suite, or the lab's zero-shot sets."""
    if args.suite is not None:
        run_suite_file(args)
        return
    if args.encoder is None:
        raise ValueError("nothing to evaluate: name an encoder, or a --suite.")
    from fare_hf.attacks import ThreatModel
    from fare_hf.encoders import load_encoder
    from fare_hf.evaluation import RobustnessReport, environment
    from fare_hf.lab import load_clip, measure

    budget = measure.Budget({name: args.samples for name in args.datasets}, steps=args.steps)
    threats = [ThreatModel("linf", eps) for eps in args.eps]
    encoder = load_encoder(args.encoder)
    rows = measure.measure_zero_shot(Path(args.encoder).name, encoder, load_clip(), budget, threats, args.seed)
    report = RobustnessReport(rows, environment(seed=args.seed))
    print(report.to_markdown())
    print(report.save(args.output_dir))


def run_swap(args: argparse.Namespace) -> None:
    """``fare-hf swap``: load, swap, save."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from fare_hf.vlm import swap_vision_tower

    if args.output_dir.exists() and any(args.output_dir.iterdir()):
        raise ValueError(f"output_dir {str(args.output_dir)!r} is not empty: name another.")
    vlm = AutoModelForImageTextToText.from_pretrained(args.vlm, dtype="auto")
    print(swap_vision_tower(vlm, args.encoder))
    vlm.save_pretrained(args.output_dir)
    AutoProcessor.from_pretrained(args.vlm).save_pretrained(args.output_dir)
    print(args.output_dir)


def run_convert(args: argparse.Namespace) -> None:
    """``fare-hf convert``."""
    from fare_hf.hub.convert import convert_from_open_clip, convert_to_open_clip

    options = {"base": args.base, "visual_only": args.visual_only, "revision": args.revision}
    if args.to == "transformers":
        print(convert_from_open_clip(args.source, args.output_dir, activation=args.activation, **options))
        return
    if args.activation is not None:
        raise ValueError("--activation is for --to transformers: a transformers model says its own.")
    print(convert_to_open_clip(args.source, args.output_dir, **options))


def run_push(args: argparse.Namespace) -> None:
    """``fare-hf push``: the token is that of `hf auth login` or HF_TOKEN, never a word of the command line."""
    from fare_hf.hub import push_robust_encoder

    options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr, "tag": args.tag}
    options |= {} if args.message is None else {"message": args.message}
    print(push_robust_encoder(args.folder, args.repo_id, text_encoder=args.with_text_encoder, **options))


def run_quickstart(args: argparse.Namespace) -> None:
    """``fare-hf quickstart``."""
    from fare_hf.lab.quickstart import Quickstart

    options = {} if args.max_steps is None else {"max_steps": args.max_steps}
    Quickstart(args.output_dir, **options).run()


if __name__ == "__main__":
    main()
