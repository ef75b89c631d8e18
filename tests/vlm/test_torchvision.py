"""With torchvision, transformers takes other image processors, and those of videos: every family once more."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.environments import environment, run
from helpers.open_clip_itself import STUBS
from helpers.paths import TESTS
from helpers.vlm_capabilities import DOCUMENT

pytestmark = pytest.mark.slow
FOLDER = TESTS
SCRIPT = """
import runpy
sys.path[:0] = sys.argv[1:3]
runpy.run_path(sys.argv[1] + "/helpers/torchvision_stand_in.py", run_name="__main__")
"""


def test_all_capabilities_of_all_families_with_torchvision() -> None:
    minor = int(torch.__version__.split(".")[1]) + 15
    python = environment("torchvision", [f"torchvision==0.{minor}.0"], dependencies=False)
    stubs = STUBS.replace("import open_clip\n", "")
    printed = run(python, stubs + SCRIPT, str(FOLDER), str(FOLDER.parent))
    *families, videos = [json.loads(line) for line in printed.splitlines() if line.startswith("[")]
    document = DOCUMENT.read_text()
    for name, kind, *states in families:
        assert not kind.endswith("Pil")
        assert f"| {name} | {' | '.join(states)} |" in document
    assert len(families) > 10 and videos == ["videos", "yes", "yes", "yes"]
