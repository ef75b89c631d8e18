"""`fare-hf push`: the token is that of `hf auth login` or HF_TOKEN, never a word of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "publish a saved encoder on the Hub, and compare what is there"
EXAMPLES = """\
fare-hf push fare4/encoder user/fare4-clip-vit-large-patch14
fare-hf push fare4/encoder fare4-clip-vit-large-patch14 --private --with_text_encoder
"""
GOING_ON = "what the Hub has is not sent again; the same command goes on"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folder", type=Path, help="as save_robust_encoder or a training (OUTPUT_DIR/encoder) wrote it")
    parser.add_argument("repo_id", help="namespace/name, or a name in your own account; made if absent")
    parser.add_argument("--private", action=argparse.BooleanOptionalAction, help="of a new repository")
    parser.add_argument("--revision", default="main", help="branch, made if absent: one for each checkpoint of a run")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request to the revision instead")
    parser.add_argument("--tag", help="put on the published commit")
    parser.add_argument("--commit_message", help="of the commit")
    parser.add_argument(
        "--with_text_encoder",
        nargs="?",
        const="",
        metavar="CLIP",
        help="publish the text encoder and tokenizer too, of CLIP or else of the base model that the card names",
    )


def check(args: argparse.Namespace) -> None:
    """The folder."""
    if not args.folder.is_dir():
        raise ValueError(f"'{args.folder}' is no folder here: name a saved encoder's, such as OUTPUT_DIR/encoder.")


def run(args: argparse.Namespace) -> None:
    """Publishes the folder."""
    from fare_hf.hub import push_robust_encoder

    options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr, "tag": args.tag}
    options |= {} if args.commit_message is None else {"commit_message": args.commit_message}
    print(push_robust_encoder(args.folder, args.repo_id, text_encoder=args.with_text_encoder, **options))
