"""`fare-hf env`: what a bug report has to say of a machine, and nothing of its user."""

from __future__ import annotations

import argparse
import json
import os
from importlib import metadata
from typing import Any

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "facts", "run"]

PURPOSE = "versions, device and settings for a bug report; no token, no path"
EXAMPLES = """\
fare-hf env
fare-hf env --json
"""
GOING_ON = "run the same command again"
OPTIONAL = ("matplotlib", "torchvision", "gradio", "peft", "open_clip_torch", "tensorboard", "trackio", "wandb")
SETTINGS = (
    *("ACCELERATE_MIXED_PRECISION", "CUDA_VISIBLE_DEVICES", "FARE_HF_TRACEBACK", "HF_DATASETS_OFFLINE"),
    *("HF_HUB_OFFLINE", "OMP_NUM_THREADS", "TRANSFORMERS_OFFLINE", "WORLD_SIZE"),
)
"""Environment variables whose values are numbers or words; no other is read."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="the same for programs")


def check(args: argparse.Namespace) -> None:
    """Nothing: argparse has."""


def run(args: argparse.Namespace) -> None:
    """Prints the facts."""
    found = facts()
    lines = [f"{name:24} {value}" for name, value in found.items()]
    print(json.dumps(found, indent=2) if args.json else "\n".join(lines))


def facts() -> dict[str, Any]:
    """Name -> what it is here."""
    import torch
    from accelerate.commands.config.config_args import default_config_file

    from fare_hf.evaluation.report.environment import environment

    found = environment(command="")
    return {
        **found["versions"],
        **{name: metadata.version(name) for name in OPTIONAL if _installed(name)},
        **{name: value for name, value in found["machine"].items() if name != "gpu"},
        "gpu": ", ".join(map(_gpu, range(torch.cuda.device_count()))) or "none",
        "cuda": torch.version.cuda or "none",
        "accelerate configuration": "there is one" if os.path.isfile(default_config_file) else "none",
        **{name: os.environ[name] for name in SETTINGS if name in os.environ},
    }


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _gpu(number: int) -> str:
    import torch

    properties = torch.cuda.get_device_properties(number)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB, compute capability {capability})"
