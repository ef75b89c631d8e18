"""Virtual environments of the `slow` tests: other packages beside this environment's own torch."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from helpers.paths import ROOT

# Kept between runs; `make clean` removes it.
PLACE = ROOT / "outputs" / "environments"


def environment(name: str, packages: Sequence[str], *, dependencies: bool) -> Path:
    """The Python of an environment with these packages, made once.

    Everything else, torch above all, comes from the running environment: its folder stands last on the path.
    """
    folder, unfinished = PLACE / name, PLACE / f".{name}"
    python = folder / "bin" / "python"
    if python.exists():
        return python
    shutil.rmtree(unfinished, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(unfinished)], check=True)
    words = [str(unfinished / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*words, *([] if dependencies else ["--no-deps"]), *packages], check=True)
    own = next(unfinished.glob("lib/python*/site-packages"))
    (own / "zz_host.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    unfinished.rename(folder)
    return python


def run(python: Path, script: str, *words: str) -> str:
    """Runs a script there, offline, and returns what it printed; an error shows its last lines."""
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    found = subprocess.run([python, "-c", script, *words], capture_output=True, text=True, env=os.environ | settings)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout
