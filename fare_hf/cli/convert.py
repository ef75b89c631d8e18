"""`fare-hf convert`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import refuse_given, refuse_missing, refuse_of_the_hub
from fare_hf.files.folders import check_new_folder
from fare_hf.lab.names import encoder_path

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "from and to open_clip, proven to compute the same before it is written"
EXAMPLES = """\
fare-hf convert chs20/fare4-clip --to transformers --output_dir fare4-transformers
fare-hf convert fare4/encoder --to open_clip --base openai/clip-vit-large-patch14 --output_dir fare4-open-clip
fare-hf convert fare_eps_4.pt --to transformers --base openai/clip-vit-large-patch14 --output_dir fare4-transformers
"""
GOING_ON = "nothing was written; run the same command again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("encoder", help="repository or folder; or a file with the state dict of a vision tower alone")
    parser.add_argument("--to", choices=("transformers", "open_clip"), required=True, help="format of the result")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the result; must be empty or absent")
    parser.add_argument(
        "--base", help="CLIP it was fine-tuned from: says what weights alone do not; gives a text tower"
    )
    parser.add_argument("--activation", help="gelu or quick_gelu, where the open_clip configuration does not say")
    parser.add_argument("--visual_only", action="store_true", help="leave the text tower out")
    parser.add_argument("--revision", help="of the encoder on the Hub")


def check(args: argparse.Namespace) -> None:
    """Folders, the lab's names, and options of the other direction."""
    refuse_of_the_hub(args, "revision", args.encoder)
    if args.to == "open_clip":
        refuse_given(args, ["activation"], "is for --to transformers: a transformers model says its own.")
    refuse_missing("ENCODER", encoder_path(args.encoder) if args.to == "open_clip" else args.encoder)
    refuse_missing("--base", encoder_path(args.base or ""))
    check_new_folder(args.output_dir)


def run(args: argparse.Namespace) -> None:
    """Converts, and proves it before anything is written."""
    from fare_hf.convert import convert_from_open_clip, convert_to_open_clip

    base = args.base and encoder_path(args.base)
    options = {"base": base, "visual_only": args.visual_only, "revision": args.revision}
    if args.to == "transformers":
        print(convert_from_open_clip(args.encoder, args.output_dir, activation=args.activation, **options))
        return
    print(convert_to_open_clip(encoder_path(args.encoder), args.output_dir, **options))
