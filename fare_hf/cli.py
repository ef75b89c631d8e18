"""``fare-hf``: a thin command line over the public functions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fare_hf import __version__, attack, evaluate
from fare_hf.console import NEGATIVE_NUMBER, check_empty, hide_notices, one_sentence, positive, refuse_given
from fare_hf.folders import whole_folder

GOING_ON = {
    "attack": "the same command goes on from the last saved state",
    "card": "the card is as it was, or the new one; run the same command again",
    "convert": "nothing was written; run the same command again",
    "evaluate": "the same command goes on after the last finished job of a suite; one encoder is measured from the "
    "beginning",
    "merge": "nothing was written; run the same command again",
    "push": "what the Hub has is not sent again; the same command goes on",
    "quickstart": "empty the output_dir, and run the same command again",
    "swap": "nothing was written; run the same command again",
}
"""What Ctrl-C is answered with, for each command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one subcommand; what was asked wrongly is one sentence, without a traceback."""
    hide_notices()  # before anything is imported that gives them
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["train"]:  # its options are those of the Trainer, parsed there
        from fare_hf import train

        train.main(words[1:], prog="fare-hf train")
        return
    if words[:1] == ["estimate"]:
        from fare_hf import estimate

        estimate.main(words[1:])
        return
    args = build_parser().parse_args(words)
    run: Callable[[argparse.Namespace], None] = args.run
    with one_sentence("fare-hf", GOING_ON[args.command]):
        from fare_hf.hub.retry import Retries, bounded_waits

        with bounded_waits(Retries()):
            run(args)


class Command(argparse.ArgumentParser):
    """Takes `-4/255` for a number, to be refused as one; a mistake is one sentence."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage."""
        self.exit(2, f"{self.prog}: error: {message}; `{self.prog} --help` shows the options.\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands but ``train``."""
    parser = Command(prog="fare-hf", description="Adversarially robust CLIP vision encoders (FARE).")
    parser.add_argument("--version", action="version", version=f"fare_hf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    commands.add_parser("train", help="fine-tune an encoder; same as python -m fare_hf.train", add_help=False)
    commands.add_parser("estimate", help="operations, memory and hours of a training", add_help=False)
    add_evaluate(commands)
    add_attack(commands)
    add_swap(commands)
    add_merge(commands)
    add_convert(commands)
    add_push(commands)
    add_card(commands)
    add_quickstart(commands)
    return parser


def add_evaluate(commands: Any) -> None:
    """The options of ``fare-hf evaluate``."""
    parser = add_command(commands, "evaluate", "a suite (YAML), or one encoder on the lab's zero-shot sets, attacked")
    evaluate.add_options(parser)
    parser.set_defaults(run=evaluate.run)


def add_attack(commands: Any) -> None:
    """The options of ``fare-hf attack``."""
    purpose = "make a vision-language model write given strings; success is measured from the saved PNG files"
    parser = add_command(commands, "attack", purpose)
    attack.add_options(parser)
    parser.set_defaults(run=attack.run)


def add_swap(commands: Any) -> None:
    """The options of ``fare-hf swap``."""
    parser = add_command(commands, "swap", "put an encoder into a vision-language model and save it as a new folder")
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives")
    parser.add_argument("encoder", help="folder, repository or open_clip file of the robust encoder")
    parser.add_argument("output_dir", type=Path, help="where the swapped model goes; must be empty or absent")
    parser.set_defaults(run=run_swap)


def add_merge(commands: Any) -> None:
    """The options of ``fare-hf merge``."""
    parser = add_command(
        commands, "merge", "the same without loading the language model; on the Hub, without moving it"
    )
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives")
    parser.add_argument("encoder", help="folder, repository or open_clip file of the robust encoder")
    parser.add_argument("out", help="new folder; with --push_to_hub a new repository")
    parser.add_argument("--push_to_hub", action="store_true", help="copy on the Hub; only the tower's files travel")
    parser.add_argument("--hard_links", action="store_true", help="large files are the source's own, which saves room")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="of the new repository")
    parser.add_argument("--revision", help="of the vision-language model on the Hub")
    parser.add_argument("--encoder_revision", help="of the encoder on the Hub")
    parser.add_argument("--base", help="for a bare open_clip file, the CLIP it was fine-tuned from")
    parser.set_defaults(run=run_merge)


def add_convert(commands: Any) -> None:
    """The options of ``fare-hf convert``."""
    parser = add_command(commands, "convert", "from and to open_clip, proven to compute the same before it is written")
    parser.add_argument("source", help="repository or folder; or a file with the state dict of a vision tower alone")
    parser.add_argument("output_dir", type=Path, help="where the result goes; must be empty or absent")
    parser.add_argument("--to", choices=("transformers", "open_clip"), required=True, help="format of the result")
    parser.add_argument(
        "--base", help="CLIP it was fine-tuned from: says what weights alone do not; gives a text tower"
    )
    parser.add_argument("--activation", help="gelu or quick_gelu, where the open_clip configuration does not say")
    parser.add_argument("--visual_only", action="store_true", help="leave the text tower out")
    parser.add_argument("--revision", help="of the source on the Hub")
    parser.set_defaults(run=run_convert)


def add_push(commands: Any) -> None:
    """The options of ``fare-hf push``."""
    parser = add_command(commands, "push", "publish a saved encoder on the Hub, and read it back")
    parser.add_argument("folder", type=Path, help="as save_robust_encoder or a training (OUTPUT_DIR/encoder) wrote it")
    parser.add_argument("repo_id", help="namespace/name, or a name in your own account; made if absent")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="of a new repository")
    parser.add_argument("--revision", default="main", help="branch, made if absent: one for each checkpoint of a run")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request to the revision instead")
    parser.add_argument("--tag", help="put on the published commit")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument(
        "--with_text_encoder",
        nargs="?",
        const="",
        metavar="CLIP",
        help="publish the text encoder and tokenizer too, of CLIP or else of the base model that the card names",
    )
    parser.set_defaults(run=run_push)


def add_card(commands: Any) -> None:
    """The options of ``fare-hf card``."""
    parser = add_command(commands, "card", "render the model card again, with the figures of a report")
    parser.add_argument("source", help="folder of a saved encoder, rewritten in place; or a repository: printed")
    parser.add_argument("--report", type=Path, help="folder or report.json of fare-hf evaluate")
    parser.add_argument("--report_model", help="name under which the report measures this encoder")
    parser.add_argument("--license", help="identifier that the Hub knows, such as mit")
    parser.add_argument("--revision", help="of the repository")
    parser.set_defaults(run=run_card)


def add_quickstart(commands: Any) -> None:
    """The options of ``fare-hf quickstart``."""
    parser = add_command(
        commands,
        "quickstart",
        "break a CLIP, make it robust, swap it into a LLaVA, measure: 8 minutes on 2 cores, nothing is downloaded",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("outputs/quickstart"),
        help="where everything goes; must be empty or absent (default: outputs/quickstart)",
    )
    parser.add_argument(
        "--max_steps", type=positive, default=None, help="training steps (default: as many as the figures are of)"
    )
    parser.set_defaults(run=run_quickstart)


def add_command(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    """A subcommand with one line on what it is for, in the list of commands and in its own help."""
    return commands.add_parser(name, help=purpose, description=f"{purpose[0].upper()}{purpose[1:]}.")


def run_swap(args: argparse.Namespace) -> None:
    """``fare-hf swap``: load, swap, save."""
    check_empty(args.output_dir)
    from fare_hf.loading import load_processor, load_vlm
    from fare_hf.vlm import swap_vision_tower

    check_swap(args.vlm, args.encoder)
    processor, vlm = load_processor(args.vlm), load_vlm(args.vlm)
    print(swap_vision_tower(vlm, args.encoder, processor))
    with whole_folder(args.output_dir) as folder:
        vlm.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(args.output_dir)


def run_merge(args: argparse.Namespace) -> None:
    """``fare-hf merge``."""
    from fare_hf.hub import merge_vision_tower

    if not args.push_to_hub:
        refuse_given(args, ["private"], "is of a new repository: give it with --push_to_hub, or leave it out.")
    elif args.hard_links:
        raise ValueError("--hard_links is of files here: with --push_to_hub leave it out.")
    refuse_of_the_hub(args, "revision", args.vlm)
    refuse_of_the_hub(args, "encoder_revision", args.encoder)
    if args.base is not None and not Path(args.encoder, "open_clip_config.json").exists():
        if Path(args.encoder, "config.json").exists():
            raise ValueError(f"--base is for weights of open_clip, and {args.encoder!r} says its own: leave it out.")
    names = ("push_to_hub", "hard_links", "private", "revision", "encoder_revision", "base")
    options = {name: getattr(args, name) for name in names}
    print(merge_vision_tower(args.vlm, args.encoder, args.out, **options))


def refuse_of_the_hub(args: argparse.Namespace, option: str, source: str) -> None:
    """Refuses a revision of what lies here."""
    if Path(source).exists():
        refuse_given(args, [option], f"is of a repository, and {source!r} lies here: leave it out.")


def check_swap(vlm: str, encoder: str) -> None:
    """Refuses by the two configurations alone what a swap would refuse after the model's gigabytes are loaded."""
    from fare_hf.configuration import read_configuration
    from fare_hf.loading import vlm_configuration
    from fare_hf.vlm.checks import check_architecture
    from fare_hf.vlm.families import family_named

    config = vlm_configuration(vlm)
    family = family_named(config.architectures or [type(config).__name__], config)
    if Path(encoder).is_dir() and not (Path(encoder) / "config.json").is_file():
        return  # open_clip's
    try:
        given = read_configuration(encoder)
    except OSError:
        return  # the swap itself says what it is
    given = getattr(given, "vision_config", given)
    if given.model_type != config.vision_config.model_type:
        return  # a text encoder, another kind of tower: the swap names it
    check_architecture(config, family, config.vision_config, given, encoder, vlm)


def run_convert(args: argparse.Namespace) -> None:
    """``fare-hf convert``."""
    from fare_hf.convert import convert_from_open_clip, convert_to_open_clip

    refuse_of_the_hub(args, "revision", args.source)
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


def run_card(args: argparse.Namespace) -> None:
    """``fare-hf card``."""
    from fare_hf.evaluation import RobustnessReport
    from fare_hf.hub import regenerate_card, rewrite_card

    given = {"license": args.license, "report_model": args.report_model}
    changes = {name: value for name, value in given.items() if value is not None}
    if args.report is not None and not args.report.exists():
        raise ValueError(f"there is no report {str(args.report)!r}: name the output_dir of fare-hf evaluate.")
    report = None if args.report is None else RobustnessReport.load(args.report)
    if not Path(args.source).is_dir():
        print(regenerate_card(args.source, report=report, revision=args.revision, **changes))
        return
    refuse_of_the_hub(args, "revision", args.source)
    print(rewrite_card(args.source, report=report, **changes))


def run_quickstart(args: argparse.Namespace) -> None:
    """``fare-hf quickstart``."""
    from fare_hf.lab.quickstart import Quickstart

    options = {} if args.max_steps is None else {"max_steps": args.max_steps}
    Quickstart(args.output_dir, **options).run()


if __name__ == "__main__":
    main()
