"""Every operation of a push under every fault: what is on the Hub afterwards, and what is said."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.hub import FILES, online_hub, push, save, stop_time
from helpers.loopback_hub import TOKEN, File, LoopbackHub, Repo
from helpers.loopback_repos import Tree
from helpers.push_faults import FAULTS, HTML, OPERATIONS, XET_STEPS

from fare_hf.hub import PushError, Retries

slow = pytest.mark.slow


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited."""
    return stop_time(monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, waits: list[float]) -> Iterator[LoopbackHub]:
    """An empty Hub, with LFS."""
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean folder, the same for all."""
    return save(tmp_path_factory.mktemp("saved") / "fare4")


def failure(hub: LoopbackHub, folder: Path, **options: Any) -> str:
    """The sentence with which a push stops; no token anywhere in what was raised."""
    with pytest.raises(PushError) as caught:
        push(hub, folder, **options)
    error: BaseException | None = caught.value
    assert error is not None and error.__cause__ is None and error.__context__ is None
    assert TOKEN not in "".join(traceback.format_exception(error))
    return str(caught.value)


def some(rows: Iterable[str], columns: Sequence[Any], every: Iterable[str] = ()) -> list[Any]:
    """All pairs; by default one of each row and those of the rows in `every`, the others as slow tests."""
    pairs = []
    for number, row in enumerate(rows):
        for place, column in enumerate(columns):
            default = row in every or place == number % len(columns)
            pairs.append(pytest.param(row, column, marks=[] if default else pytest.mark.slow))
    return pairs


@pytest.mark.parametrize(("operation", "fault"), some(OPERATIONS, list(FAULTS), ["commit"]))
def test_a_fault_that_passes_leaves_one_commit(
    operation: str, fault: str, hub: LoopbackHub, folder: Path, waits: list[float], capfd: pytest.CaptureFixture[str]
) -> None:
    planted = hub.fail(OPERATIONS[operation], times=2, **FAULTS[fault])
    found = push(hub, folder, revision="checkpoint-5", tag="v1")
    repo = hub.repos["me/fare4"]
    assert planted.times < 2, "the fault never struck"
    assert set(repo.tree("checkpoint-5")) == FILES | {".gitattributes"} and repo.tags == {"v1": found.commit}
    assert len(repo.commits) == 2 and set(repo.tree()) == {".gitattributes"}
    assert len(hub.stored) == 1
    if fault == "429 Retry-After":
        assert any(wait >= 7 for wait in waits)
    said = capfd.readouterr()
    assert TOKEN not in said.out + said.err


REFUSED = ["create", "preupload", "batch", "upload", "commit", "compare", "tag"]


@pytest.mark.parametrize(("operation", "status"), some(REFUSED, [401, 403, 404]))
def test_a_refusal_is_told_and_not_tried_again(
    operation: str, status: int, hub: LoopbackHub, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    echo = {"X-Error-Message": f"refused {TOKEN}"}
    hub.fail(OPERATIONS[operation], times=99, status=status, body=f"no {TOKEN}", headers=echo)
    said = failure(hub, folder, tag="v1")
    assert str(status) in said and said.endswith(f"To go on: fare-hf push {folder} me/fare4 --tag v1")
    assert hub.count(OPERATIONS[operation]) == 1
    on_hub, not_there = said.split("On the Hub: ")[1].split(". Not on the Hub: ")
    committed = operation in ("compare", "tag")
    assert ("model.safetensors" in on_hub) == committed and ("model.safetensors" in not_there) != committed
    assert (
        (len(hub.repos["me/fare4"].commits) == 2)
        if committed
        else not any(len(repo.commits) > 1 for repo in hub.repos.values())
    )
    captured = capfd.readouterr()
    assert TOKEN not in captured.out + captured.err
    hub.faults.clear()
    assert push(hub, folder, tag="v1").commit == hub.repos["me/fare4"].head("main")
    assert len(hub.repos["me/fare4"].commits) == 2 and hub.count("PUT /lfs/") <= 2


@pytest.mark.parametrize(
    "operation", [pytest.param("create", marks=slow), "upload", pytest.param("commit", marks=slow), "compare"]
)
def test_a_fault_that_stays_is_told_and_the_next_push_goes_on(operation: str, hub: LoopbackHub, folder: Path) -> None:
    hub.fail(OPERATIONS[operation], times=999, status=503, body=HTML)
    said = failure(hub, folder)
    assert "503" in said and "To go on: fare-hf push" in said
    hub.faults.clear()
    push(hub, folder)
    assert len(hub.repos["me/fare4"].commits) == 2


def test_reset_in_the_middle_of_an_upload(hub: LoopbackHub, folder: Path) -> None:
    hub.fail("PUT /lfs/", times=2, read_bytes=40_000)
    push(hub, folder)
    assert hub.count("PUT /lfs/") == 3 and len(hub.repos["me/fare4"].commits) == 2


def test_a_pull_request_whose_answer_is_lost_is_found(hub: LoopbackHub, folder: Path) -> None:
    hub.create("you/fare4")
    hub.fail("POST .*/commit/", lose_answer=True)
    assert push(hub, folder, repo_id="you/fare4", create_pr=True).revision == "refs/pr/1"
    assert len(hub.repos["you/fare4"].pulls) == 1


def test_somebody_elses_commit_is_not_overwritten(hub: LoopbackHub, folder: Path) -> None:
    fault = hub.fail("POST .*/commit/", status=503)
    repo = hub.create("me/fare4")
    theirs = repo.add({}, repo.head("main"))

    def meanwhile(where: str) -> Any:
        taken = take(where)
        if taken is fault:
            repo.branches["main"] = theirs
        return taken

    take, hub.take_fault = hub.take_fault, meanwhile  # type: ignore[method-assign]
    assert "somebody else has changed 'main'" in failure(hub, folder)
    assert repo.head("main") == theirs


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_arrived_different_is_told(
    name: str, hub: LoopbackHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it was, so that its hash alone tells; the next push sends it again."""
    add = Repo.add

    def damaged(self: Repo, tree: Tree, parent: str | None) -> str:
        changed = {name: File(tree[name].data[:-1] + b"?", tree[name].lfs)} if name in tree else {}
        return add(self, {**tree, **changed}, parent)

    with monkeypatch.context() as patch:
        patch.setattr(Repo, "add", damaged)
        said = failure(hub, folder, tag="v1")
    assert f"{name} of commit" in said and "has other hashes than here" in said and hub.repos["me/fare4"].tags == {}
    assert f"Not on the Hub: {name}. To go on: fare-hf push" in said
    push(hub, folder, tag="v1")
    assert hub.repos["me/fare4"].tree()[name].data == (folder / name).read_bytes()


def test_a_wait_that_is_too_long_ends_it(hub: LoopbackHub, folder: Path, waits: list[float]) -> None:
    hub.fail("POST .*/tag/", status=429, headers={"Retry-After": "7200"})
    assert "asks to wait 7200 s" in failure(hub, folder, tag="v1")
    assert max(waits, default=0) < 7200


def test_a_hub_that_is_away(hub: LoopbackHub, folder: Path) -> None:
    said = failure(hub, folder, endpoint="http://127.0.0.1:9", retries=Retries(tries=2))
    assert "asking who the token belongs to" in said and "Nothing was sent. To go on: fare-hf push" in said


@pytest.mark.parametrize(("operation", "fault"), some(XET_STEPS, ["403", "reset", "answer lost", "500", "503 HTML"]))
def test_faults_of_xet(
    operation: str, fault: str, monkeypatch: pytest.MonkeyPatch, waits: list[float], folder: Path, tmp_path: Path
) -> None:
    with online_hub(monkeypatch, tmp_path / "cache", "xet") as hub:
        hub.fail(operation, times=1, **FAULTS.get(fault, {"status": 403}))
        try:
            push(hub, folder)
        except PushError as error:
            assert fault == "403", error
            assert "To go on: fare-hf push" in str(error) and TOKEN not in str(error)
            push(hub, folder)
        assert len(hub.repos["me/fare4"].commits) == 2 and hub.count("objects/batch") == 0
