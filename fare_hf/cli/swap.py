"""`fare-hf swap`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fare_hf.cli.console import refuse_missing
from fare_hf.files.folders import check_new_folder
from fare_hf.lab.names import check_vlm, encoder_path, trained_path

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "put an encoder into a vision-language model and save it as a new folder"
EXAMPLES = """\
fare-hf swap lab:llava lab:fare-4 --output_dir robust-llava   # offline
fare-hf swap llava-hf/llava-1.5-7b-hf fare4/encoder --output_dir robust-llava
fare-hf swap llava-hf/llava-1.5-7b-hf chs20/fare4-clip --output_dir robust-llava
"""
GOING_ON = "nothing was written; run the same command again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives; or lab:llava")
    parser.add_argument("encoder", help="folder, repository or open_clip file of the robust encoder; or lab:NAME")
    parser.add_argument("--output_dir", type=Path, required=True, help="for the new model; must be empty or absent")


def check(args: argparse.Namespace) -> None:
    """The folders and the lab's names."""
    check_new_folder(args.output_dir)
    check_vlm(args.vlm, "VLM ")
    for name, value in (("VLM", args.vlm), ("ENCODER", encoder_path(args.encoder))):
        refuse_missing(name, value)


def run(args: argparse.Namespace) -> None:
    """Loads, swaps and saves."""
    from fare_hf.files.folders import whole_folder
    from fare_hf.lab.models import load_vlm_and_processor
    from fare_hf.vlm import swap_vision_tower
    from fare_hf.vlm.swap.before_loading import check_swap

    encoder = encoder_path(args.encoder)
    check_swap(trained_path(args.vlm), encoder)
    vlm, processor = load_vlm_and_processor(args.vlm)
    print(swap_vision_tower(vlm, encoder, processor))
    with whole_folder(args.output_dir) as folder:
        vlm.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(args.output_dir)
