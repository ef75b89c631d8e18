"""Where a report was measured: versions, machine, command, seed."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fare_hf.files.credentials import mask_secrets

__all__ = ["environment"]

PACKAGES = ("fare_hf", "torch", "transformers", "accelerate", "datasets", "huggingface_hub", "safetensors", "numpy")


def environment(command: str | None = None, seed: int | None = None) -> dict[str, Any]:
    """Versions, machine, command and seed of this process, as plain data for `RobustnessReport`.

    Args:
        command: what to run to get the report again; None takes this process's own command line.
        seed: the run's seed, left out when None.

    Tokens in the command (values of options that end in "token" and anything like `hf_...`) are masked.
    """
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    found: dict[str, Any] = {"versions": {name: version for name, version in versions.items() if version}}
    found["machine"] = {
        "system": platform.system(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    found["command"] = mask_secrets(_command_line() if command is None else command)
    return found if seed is None else found | {"seed": seed}


def _command_line() -> str:
    """How Python was started, without the folder of the interpreter and of the script."""
    words = list(sys.orig_argv)
    return " ".join(Path(word).name if Path(word).is_absolute() else word for word in words)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return getattr(sys.modules.get(name), "__version__", None)


def _cpu_name() -> str:
    """The processor's name; `platform.processor` is empty on most Linux systems."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = re.findall(
            r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
        )
        if names:
            return names[0].strip()
    return platform.processor() or platform.machine()
