"""Ways for tests to the loopback Hub: the client pointed at it, time that does not pass, tiny encoders to push."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.tiny_clip import tiny_clip_config, tiny_processor
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from huggingface_hub.utils._xet import abort_xet_session
from transformers import CLIPVisionModelWithProjection

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport, Row
from fare_hf.hub import Publication, Retries, push_robust_encoder, save_robust_encoder

FOUR = ThreatModel("linf", "4/255")
FILES = {"README.md", "config.json", "fare_hf.json", "model.safetensors", "preprocessor_config.json"}


@contextmanager
def online_hub(
    monkeypatch: pytest.MonkeyPatch, cache: Path, storage: str = "lfs", part_size: int | None = None
) -> Iterator[LoopbackHub]:
    """The Hub that the client of this process reaches; large files go by `storage`, "lfs" or "xet"."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", storage == "lfs")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # What Xet has sent once it believes to be there: a new Hub needs a new cache, and a session that reads this.
    for name, value in {**XET, "HF_XET_CACHE": str(cache)}.items():
        monkeypatch.setenv(name, value)
    close_session()
    abort_xet_session()
    with LoopbackHub(part_size) as hub:
        # As HF_ENDPOINT would set them at import; commits of two Hubs have the same names, so each gets its own cache.
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "downloads"))
        yield hub
    close_session()
    abort_xet_session()
    assert hub.leaks == [], "the token went to the storage's origin"


XET = {
    "HF_XET_XORB_COMPRESSION_POLICY": "none",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_TELEMETRY_ENABLED": "false",
}


def stop_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits end at once; the list gets the seconds they would have taken."""
    waits: list[float] = []
    sleep = time.sleep

    def brief(seconds: float) -> None:
        waits.append(seconds)
        sleep(min(seconds, 0.001))

    monkeypatch.setattr(time, "sleep", brief)
    return waits


def encoder(seed: int = 0) -> CLIPVisionModelWithProjection:
    """A random encoder of the shape of `conftest.clip_folder`."""
    torch.manual_seed(seed)
    return CLIPVisionModelWithProjection(tiny_clip_config().vision_config).eval()


def save(folder: Path, vision: Any = None, **changes: Any) -> Path:
    """A clean folder of an encoder."""
    options = {"processor": tiny_processor(), "base_model": "openai/clip", "threat_model": FOUR, "license": "mit"}
    return save_robust_encoder(encoder() if vision is None else vision, folder, **options | changes)


def report(robust: float) -> RobustnessReport:
    """A clean figure and a robust one."""
    names = {"model": "FARE", "task": "zero-shot", "dataset": "digits", "metric": "accuracy", "n": 100}
    attack = {"name": "apgd-ce", "steps": 50, "restarts": 1, "seed": 0}
    rows = [Row(**names, value=0.75, ci=(0.6, 0.9))]
    return RobustnessReport([*rows, Row(**names, value=robust, ci=(0, 1), threat_model=FOUR, attack=attack)])


def push(hub: LoopbackHub, source: Any, repo_id: str = "me/fare4", **options: Any) -> Publication:
    """A push to the loopback Hub."""
    options = {"token": TOKEN, "endpoint": hub.url, "retries": Retries(tries=4), **options}
    return push_robust_encoder(source, repo_id, **options)
