"""How long a Hub can keep anybody waiting: of one answer, of many, of the client's own tries, and of a card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub import online_hub, push, save, stop_time
from helpers.loopback_hub import File, LoopbackHub

from fare_hf.cli import main as cli
from fare_hf.files.documents import MIB
from fare_hf.hub import PushError, Retries
from fare_hf.hub.base_model import inherited_license
from fare_hf.hub.retry import TooLongAsked


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    return stop_time(monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    """An empty Hub, with LFS."""
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found


@pytest.mark.parametrize("operation", ["PUT /lfs/", "POST .*/commit/", "GET .*/tree/", "POST .*/objects/batch"])
def test_two_hours_end_the_push(operation: str, hub: LoopbackHub, waits: list[float], tmp_path: Path) -> None:
    """`PUT /lfs/` is one that the client tries again by itself, after as long as it is asked to."""
    hub.fail(operation, status=503, headers={"Retry-After": "7200"}, times=99)
    with pytest.raises(PushError) as caught:
        push(hub, save(tmp_path / "fare4"))
    assert "asks to wait 7200 s" in str(caught.value) and "To go on: fare-hf push" in str(caught.value)
    assert sum(waits) < 60


def test_ten_minutes_again_and_again_are_bounded_in_all(hub: LoopbackHub, waits: list[float], tmp_path: Path) -> None:
    hub.fail("PUT /lfs/", status=503, headers={"Retry-After": "590"}, times=99)
    with pytest.raises(PushError) as caught:
        push(hub, save(tmp_path / "fare4"))
    assert "1800 s in all are waited" in str(caught.value)
    assert sum(waits) < 1900


def test_patience_is_counted_over_all_requests() -> None:
    retries = Retries(longest_total=100.0)
    for _ in range(10):
        retries.spend(10.0)
    with pytest.raises(TooLongAsked, match="would wait 1 s, 100 s were waited"):
        retries.spend(1.0)
    assert Retries().waits == []


def test_a_card_is_fetched_within_the_same_bounds(
    hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create("me/fare4").tree()["fare_hf.json"] = File(b"{}", False)
    hub.fail("(GET|HEAD) ", status=503, headers={"Retry-After": "7200"}, times=99)
    with pytest.raises(SystemExit, match="fare-hf: error: "):
        cli.main(["card", "me/fare4"])
    assert sum(waits) < 60


def test_a_card_without_end_hands_on_its_head(hub: LoopbackHub) -> None:
    tree = hub.create("them/clip").tree()
    tree["README.md"] = File(b"---\nlicense: mit\n---\n" + b"x" * (3 * MIB), False)
    assert inherited_license("them/clip") == {"license": "mit"}


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "them/llava", "them/clip", "--output_dir", "OUT"],
        ["swap", "them/llava", "them/clip", "--output_dir", "OUT"],
        ["convert", "them/clip", "--output_dir", "OUT", "--to", "open_clip"],
        ["evaluate", "them/clip", "--output_dir", "OUT"],
        ["train", "--model", "them/clip", "--dataset", "lab:drawings", "--output_dir", "OUT"],
    ],
    ids=lambda words: words[0],
)
def test_no_command_waits_two_hours(words: list[str], hub: LoopbackHub, waits: list[float], tmp_path: Path) -> None:
    hub.fail("(GET|HEAD) ", status=503, headers={"Retry-After": "7200"}, times=99)
    with pytest.raises(SystemExit) as caught:
        cli.main([str(tmp_path / "out") if word == "OUT" else word for word in words])
    assert sum(waits) < 60
    assert "asks to wait 7200 s" in str(caught.value.code)
