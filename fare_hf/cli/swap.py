"""``fare-hf swap``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fare_hf.cli.command import add_command
from fare_hf.cli.console import check_empty
from fare_hf.files.folders import whole_folder

__all__ = ["add_swap", "check_swap", "run_swap"]


def add_swap(commands: Any) -> None:
    """The options of ``fare-hf swap``."""
    parser = add_command(commands, "swap", "put an encoder into a vision-language model and save it as a new folder")
    parser.add_argument("vlm", help="folder or repository of a LLaVA or one of its relatives")
    parser.add_argument("encoder", help="folder, repository or open_clip file of the robust encoder")
    parser.add_argument("output_dir", type=Path, help="where the swapped model goes; must be empty or absent")
    parser.set_defaults(run=run_swap)


def run_swap(args: argparse.Namespace) -> None:
    """``fare-hf swap``: load, swap, save."""
    check_empty(args.output_dir)
    from fare_hf.pretrained.loading import load_processor, load_vlm
    from fare_hf.vlm import swap_vision_tower

    check_swap(args.vlm, args.encoder)
    processor, vlm = load_processor(args.vlm), load_vlm(args.vlm)
    print(swap_vision_tower(vlm, args.encoder, processor))
    with whole_folder(args.output_dir) as folder:
        vlm.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(args.output_dir)


def check_swap(vlm: str, encoder: str) -> None:
    """Refuses by the two configurations alone what a swap would refuse after the model's gigabytes are loaded."""
    from fare_hf.pretrained.configuration import read_configuration
    from fare_hf.pretrained.loading import vlm_configuration
    from fare_hf.vlm.families.table import family_named
    from fare_hf.vlm.swap.checks import check_architecture

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
