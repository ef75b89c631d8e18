"""``fare-hf merge``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fare_hf.cli.command import add_command, refuse_of_the_hub
from fare_hf.cli.console import refuse_given

__all__ = ["add_merge", "run_merge"]


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
