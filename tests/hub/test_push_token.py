"""The token appears in no output, file or exception, whatever a Hub, or a proxy before it, answers and repeats."""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import online_hub, push, save, stop_time
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.push_faults import OPERATIONS

from fare_hf.hub import PushError, Retries

ECHO = {
    "X-Error-Message": f"not with {TOKEN}",
    "X-Request-Id": TOKEN,
    "X-Error-Code": f"Gated{TOKEN}",
    "Content-Type": "application/json",
}
BODIES = [f"no {TOKEN}", f'{{"error": "no {TOKEN}"}}', f"<html>{TOKEN}</html>", f'{{"errors": ["{TOKEN}"]}}', ""]
STATUSES = [200, 302, 400, 401, 403, 404, 409, 412, 416, 429, 500, 503]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """An empty Hub; the client keeps everything under `tmp_path`."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "cache") as found:
        yield found


def faults(count: int | None) -> list[tuple[str, dict[str, Any]]]:
    """One for each operation, or so many drawn at random: an answer that repeats the token, or a reset."""
    draw = random.Random(0)
    names = list(OPERATIONS) if count is None else draw.choices(list(OPERATIONS), k=count)
    found = []
    for name in names:
        status = draw.choice(STATUSES)
        headers = ECHO | ({"Retry-After": draw.choice(["7", "7200", TOKEN])} if status in (429, 503) else {})
        headers |= {"Location": f"/?token={TOKEN}"} if status == 302 else {}
        fault = {"status": status, "body": draw.choice(BODIES), "headers": headers, "times": draw.choice([1, 99])}
        found.append((name, fault if draw.random() < 0.9 else {"read_bytes": 0, "times": 99}))
    return found


@pytest.mark.parametrize("count", [None, pytest.param(150, marks=pytest.mark.slow)])
def test_the_token_is_nowhere(
    count: int | None,
    hub: LoopbackHub,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = save(tmp_path / "fare4")
    failed = 0
    # The client's HTTP library logs whole answers, if it is asked to: not so by default.
    with caplog.at_level(logging.WARNING), caplog.at_level(logging.DEBUG, "fare_hf"):
        for number, (operation, fault) in enumerate(faults(count)):
            hub.faults.clear()
            hub.fail(OPERATIONS[operation], **fault)
            try:
                push(
                    hub,
                    folder,
                    f"me/{number}",
                    revision="checkpoint-1",
                    tag="v1",
                    retries=Retries(tries=2, silence=1.0),
                )
            except (ValueError, PushError) as error:
                failed += 1
                assert "\n" not in str(error) and TOKEN not in "".join(traceback.format_exception(error)), fault
                chain = [error.__cause__, error.__context__]
                assert TOKEN not in repr(error) + repr(vars(error)) + repr(chain), fault
    assert failed >= 4
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err + caplog.text
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(TOKEN.encode() in path.read_bytes() for path in written)
