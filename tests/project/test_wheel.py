"""The built wheel in an empty environment: it works from another folder, is small, and holds nothing of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.paths import ROOT

MOST = 30_000_000  # bytes
THREE_LINES = """
from fare_hf.cli.main import main
import fare_hf, sys
main("evaluate lab:fare-4 --dataset lab:digits --samples 4 --steps 2 --eps 4/255 --output_dir out".split())
print(fare_hf.__file__)
"""


def copied(folder: Path) -> Path:
    """The files that git knows, as they lie here: a build leaves folders beside them."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    """Its dependencies are those of this environment: what a `pip install` would fetch is not fetched again."""
    source, environment, elsewhere = copied(tmp_path / "source"), tmp_path / "environment", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python, words = str(environment / "bin" / "python"), ["-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([python, *words, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("fare_hf-*.whl")
    subprocess.run([python, *words, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    names = zipfile.ZipFile(wheel).namelist()
    parts = {name.split("/")[0] for name in names}
    assert {part for part in parts if not part.endswith(".dist-info")} == {"fare_hf"}
    strangers = ("/tests/", "/tools/", "/examples/", "/docs/", "train-digits", "train-fashion")
    assert not [name for name in names for stranger in strangers if stranger in f"/{name}"]
    assert wheel.stat().st_size < MOST

    elsewhere.mkdir()
    host = [path for path in sys.path if path.endswith("site-packages")]
    (next(environment.glob("lib/python*/site-packages")) / "zz_host.pth").write_text("\n".join(host) + "\n")
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}

    def ran(*command: str) -> str:
        found = subprocess.run(
            command, cwd=elsewhere, env=os.environ | settings, capture_output=True, text=True, timeout=560
        )
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout

    fare_hf = str(environment / "bin" / "fare-hf")
    assert "commands:" in ran(fare_hf, "--help")
    assert "torch" in ran(fare_hf, "env")
    said = ran(python, "-c", THREE_LINES)
    assert "| fare-4 |" in said and str(environment) in said.splitlines()[-1]
    assert (elsewhere / "out" / "report.json").is_file()
