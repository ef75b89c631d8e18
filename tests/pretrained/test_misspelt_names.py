"""A misspelt folder or name is told at once: the Hub is not asked, and not asked again, wherever a model is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_llava import llava, processor

from fare_hf import evaluate, evaluate_vlm_on_data, load_encoder, swap_vision_tower
from fare_hf.cli import main as cli
from fare_hf.evaluation import evaluate_probe
from fare_hf.pretrained.loading import vlm_configuration

CALLS: dict[str, Callable[[str], Any]] = {
    "load_encoder": load_encoder,
    "evaluate": lambda name: evaluate(name, "photos"),
    "probe": lambda name: evaluate_probe(name, "photos"),
    "swap": lambda name: swap_vision_tower(llava(), name, processor()),
    "a whole model": vlm_configuration,
    "a model to evaluate": lambda name: evaluate_vlm_on_data(name, "photos", "captions"),
    "train": lambda name: cli.main(f"train --model {name} --dataset photos --output_dir out".split()),
    "swap, by the command": lambda name: cli.main(f"swap {name} lab:fare-4 --output_dir out".split()),
}


@pytest.mark.parametrize("name", ["./tinyclpi", "tinyclpi", "../models/tinyclpi", "~/tinyclpi"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_network_is_asked_for_a_misspelt_name(
    call: Callable[[str], Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in ("fare_hf.pretrained.configuration", "transformers.utils.hub", "transformers.configuration_utils"):
        monkeypatch.setattr(f"{module}.cached_file", pytest.fail)
    monkeypatch.setattr("fare_hf.convert.checkpoints.hf_hub_download", pytest.fail)
    with pytest.raises((ValueError, SystemExit)) as told:
        call(name)
    assert "tinyclpi' " in (text := str(told.value)) or "tinyclpi':" in text
    assert "check the path" in text or "check the spelling" in text or "namespace/name" in text
    assert "\n" not in text
