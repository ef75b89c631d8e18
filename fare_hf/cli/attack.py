"""The options of ``fare-hf attack``; what runs it is imported when it runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import natural, positive

__all__ = ["add_options", "run"]

QUESTION = "Provide a short caption for this image."
"""`fare_hf.evaluation.vlm.sets.CAPTION_QUESTION`, known here before that is imported (a test compares them)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives; or lab")
    parser.add_argument("images", help="folder of images, data set saved to disk, name on the Hub; or lab:twemoji")
    parser.add_argument("--vision_tower", help="folder or repository of an encoder to swap in first")
    parser.add_argument(
        "--victims", nargs="*", default=[], metavar="NAME=ENCODER", help="towers to show the images to"
    )
    parser.add_argument("--targets", type=Path, help="file with one string a line (default: six harmless ones)")
    parser.add_argument("--question", default=QUESTION, help=f"asked of each image (default: {QUESTION})")
    parser.add_argument("--template", help="prompt with {} for the question, for processors without a chat template")
    parser.add_argument("--split", help="of the data set (default: train)")
    parser.add_argument("--dataset_config", default=None, help="of a data set with several configurations")
    parser.add_argument("--eps", default="2/255", help="radius of the linf ball (default: 2/255)")
    parser.add_argument("--max_new_tokens", type=positive, default=32, help="of an answer (default: 32)")
    parser.add_argument("--output_dir", type=Path, required=True, help="called again with it, an attack goes on")
    for name, value, help_text in (
        ("steps", 10_000, "of APGD"),
        ("samples", 25, "images, the first ones"),
        ("batch_size", 32, "images attacked together"),
        ("save_every", 250, "steps between saved states"),
        ("seed", 0, "of the random starts"),
    ):
        parser.add_argument(
            f"--{name}",
            type=natural if name == "seed" else positive,
            default=value,
            help=f"{help_text} (default: {value})",
        )


def run(args: argparse.Namespace) -> None:
    """Attacks string after string; what is finished is not run again."""
    from fare_hf.cli.attack_run import run as run_now

    run_now(args)
