"""`fare-hf merge`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import refuse_missing
from fare_hf.files.folders import check_new_folder
from fare_hf.lab.names import encoder_path, is_in_lab

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "the same without loading the language model; on the Hub, without moving it"
EXAMPLES = """\
fare-hf merge llava-hf/llava-1.5-7b-hf fare4/encoder --output_dir robust-llava
fare-hf merge llava-hf/llava-1.5-7b-hf user/fare4-clip --push_to_hub --hub_model_id user/robust-llava
"""
GOING_ON = "nothing was written; run the same command again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives")
    parser.add_argument("encoder", help="folder, repository or open_clip file of the robust encoder")
    parser.add_argument("--output_dir", help="new folder")
    parser.add_argument("--push_to_hub", action="store_true", help="copy on the Hub; only the tower's files travel")
    parser.add_argument("--hub_model_id", help="the new repository of --push_to_hub, namespace/name")
    parser.add_argument("--hard_links", action="store_true", help="large files are the source's own, which saves room")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="of the new repository")
    parser.add_argument("--revision", help="of the vision-language model on the Hub")
    parser.add_argument("--encoder_revision", help="of the encoder on the Hub")
    parser.add_argument("--base", help="for a bare open_clip file, the CLIP it was fine-tuned from")


def check(args: argparse.Namespace) -> None:
    """Where it goes, and what `--base` is for."""
    if is_in_lab(args.vlm):
        raise ValueError(f"{args.vlm} is stored in two parts, and a merge works on files: use fare-hf swap.")
    if args.base is not None and not Path(args.encoder, "open_clip_config.json").exists():
        if Path(args.encoder, "config.json").exists():
            raise ValueError(f"--base is for weights of open_clip, and {args.encoder!r} says its own: leave it out.")
    if args.output_dir is not None:
        check_new_folder(Path(args.output_dir))
    for name, value in (("VLM", args.vlm), ("ENCODER", encoder_path(args.encoder))):
        refuse_missing(name, value)


def run(args: argparse.Namespace) -> None:
    """Merges on disk, or on the Hub."""
    from fare_hf.hub import merge_vision_tower

    names = ("push_to_hub", "hub_model_id", "hard_links", "private", "revision", "encoder_revision", "base")
    options = {name: getattr(args, name) for name in names}
    print(merge_vision_tower(args.vlm, encoder_path(args.encoder), args.output_dir, **options))
