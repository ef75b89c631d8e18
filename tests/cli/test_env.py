"""`fare-hf env`: enough for a bug report, and nothing of who runs it."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
import torch
import transformers

from fare_hf.cli import main


def test_it_names_versions_and_device_and_no_user(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret, home = "hf_abcdefghijklmnopqrstuvwxyz0123456789", tmp_path / "home" / "alice"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    main.main(["env", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["torch"], found["transformers"]) == (torch.__version__, transformers.__version__)
    assert found["python"] == platform.python_version() and found["HF_HUB_OFFLINE"] == "1"
    assert found["gpu"] == "none" or torch.cuda.is_available()
    main.main(["env"])
    said = capsys.readouterr().out
    assert len(said.splitlines()) == len(found)
    assert not [word for word in (secret, "alice", os.sep + "home", str(tmp_path)) if word in said]
