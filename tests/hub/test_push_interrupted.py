"""Pushes that are killed, and a Hub that hangs: the next push goes on where the last one stopped."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from helpers.hub import FILES, online_hub, push, save, stop_time
from helpers.loopback_hub import TOKEN
from helpers.push_kills import KILLS, killed_push

from fare_hf.hub import PushError, Retries


@pytest.mark.parametrize(
    "where", [name if name == "put" else pytest.param(name, marks=pytest.mark.slow) for name in KILLS]
)
def test_a_killed_push_leaves_no_half_and_goes_on(where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    storage, request, read_bytes = KILLS[where]
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet", storage) as hub:
        folder = save(tmp_path / "fare4")
        fault = hub.fail(request, wait=threading.Event(), read_bytes=read_bytes, status=503)
        said = killed_push(hub, folder, storage, tmp_path / "xet", fault)
        assert TOKEN not in said
        assert fault.wait is not None
        fault.wait.set()
        assert all(len(repo.commits) == 1 for repo in hub.repos.values())
        sent = hub.count("PUT /lfs") if where == "commit" else None
        found = push(hub, folder)
        repo = hub.repos["me/fare4"]
        assert set(repo.tree()) == FILES | {".gitattributes"} and repo.head("main") == found.commit
        assert repo.tree()["model.safetensors"].data == (folder / "model.safetensors").read_bytes()
        assert len(repo.commits) == 2 and sent in (None, hub.count("PUT /lfs"))


HANGS = ["GET /api/whoami-v2", "POST /api/repos/create", "PUT /lfs/", "POST .*/commit/", "GET .*/tree/"]
HANGS += ["GET .*/revision/", "GET .*/refs"]


@pytest.mark.parametrize(
    "request_", [name if "commit" in name else pytest.param(name, marks=pytest.mark.slow) for name in HANGS]
)
def test_a_hub_that_accepts_and_never_answers(request_: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Silence counts as a failure: passing, it leaves one commit; for ever, it ends in a sentence."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as hub:
        folder = save(tmp_path / "fare4")
        retries = Retries(tries=2, silence=0.2)
        hub.fail(request_, times=99, wait=threading.Event())
        with pytest.raises(PushError, match=r"(?i)timed out.*To go on: fare-hf push"):
            push(hub, folder, retries=retries)
        hub.faults[0].times = 0
        push(hub, folder)
        hub.fail(request_, wait=threading.Event())
        push(hub, save(tmp_path / "again", datasets=["a/b"]), retries=Retries(tries=3, silence=0.2))
        assert len(hub.repos["me/fare4"].commits) == 3


@pytest.mark.slow
def test_a_xet_storage_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stop_time(monkeypatch)
    monkeypatch.setenv("HF_XET_CLIENT_READ_TIMEOUT", "1s")
    with online_hub(monkeypatch, tmp_path / "xet", "xet") as hub:
        folder = save(tmp_path / "fare4")
        fault = hub.fail("POST /v1/xorbs/", times=99, wait=threading.Event())
        with pytest.raises(PushError, match="To go on: fare-hf push"):
            push(hub, folder, retries=Retries(tries=1))
        fault.times = 0
        push(hub, folder)
        assert len(hub.repos["me/fare4"].commits) == 2
