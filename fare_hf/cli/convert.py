"""``fare-hf convert``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fare_hf.cli.command import add_command, refuse_of_the_hub

__all__ = ["add_convert", "run_convert"]


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
