"""What becomes of a push under each fault, all tried: the checks behind the table of `fare_hf/hub/FAULTS.md`.

`PYTHONPATH=tests python tests/helpers/hub_faults_table.py` runs all of them against the loopback Hub and writes the
table; `test_faults.py` runs a part as tests and compares the table with what it finds.
"""

from __future__ import annotations

import hashlib
import platform
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from helpers.hub import FILES, online_hub, push, save, stop_time
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.paths import ROOT
from helpers.push_faults import FAULTS, OPERATIONS, XET_STEPS
from helpers.push_kills import KILLS, killed_push

from fare_hf.hub import PushError

DOCUMENT = ROOT / "fare_hf" / "hub" / "FAULTS.md"
PASSING = {name: {**fault, "times": 2} for name, fault in FAULTS.items()}
# One try fewer than Xet's own client makes in these tests, which then gives up.
XET_PASSING = {name: {**fault, "times": 1} for name, fault in FAULTS.items()}
STAYING = {str(status): {"status": status, "times": 999} for status in (401, 403, 404)}
COLUMNS = [*PASSING, *STAYING]
ROWS = {**{name: ("lfs", where) for name, where in OPERATIONS.items()}, **{name: ("xet", name) for name in XET_STEPS}}
INTRO = """# What becomes of a push when something fails

Each cell was tried: a push of a small encoder to the loopback Hub of `tests/`, with the unmodified client, real HTTP,
and the fault in one operation. `PYTHONPATH=tests python tests/helpers/hub_faults_table.py` writes this page, a test
compares it.

- **published (n)**: the fault struck twice (in Xet's steps once) and then passed; all files are on the Hub, in one
  commit, equal to the folder, after n requests of that operation. A commit whose answer is lost is seen at the head
  of the branch, and not sent again.
- **told, ...**: the fault stayed. One sentence said what is on the Hub, what is not, and the command to go on; the
  cell says what was there. Without the fault the same push then published everything, in one commit.

In no cell was there a second commit, a half commit, or an access token in what was said.
"""


def tried(row: str, column: str, folder: Path, place: Path) -> str:
    """The cell: what a push under the fault came to, and that the next one completes it."""
    storage, where = ROWS[row]
    fault = dict(STAYING.get(column) or (PASSING if storage == "lfs" else XET_PASSING)[column])
    if column == "reset" and row in ("upload", "/v1/xorbs/"):
        fault["read_bytes"] = 40_000  # in the middle
    with pytest.MonkeyPatch.context() as patch:
        stop_time(patch)
        with online_hub(patch, place, storage) as hub:
            planted = hub.fail(where, **fault)
            before = planted.times
            outcome = _push(hub, folder, where)
            assert planted.times < before, "the fault never struck"
            planted.times = 0
            if outcome.startswith("told"):
                push(hub, folder, revision="checkpoint-5", tag="v1")
            _check(hub)
            return outcome


def _push(hub: LoopbackHub, folder: Path, where: str) -> str:
    try:
        push(hub, folder, revision="checkpoint-5", tag="v1")
    except (PushError, ValueError) as error:
        said = str(error)
        assert TOKEN not in said and "\n" not in said, said
        return f"told, {_there(said)}"
    return f"published ({hub.count(where)})"


def _there(said: str) -> str:
    if "On the Hub: " not in said:
        return "nothing sent"
    there = said.split("On the Hub: ")[1].split(". Not on the Hub: ")[0]
    if "model.safetensors" in there:
        return "the files there"
    return "an empty repository there" if "none of these" in there else f"{there} there"


def _check(hub: LoopbackHub) -> None:
    """One commit beside that of the creation, with all files and nothing else, and the tag on it."""
    repo = hub.repos["me/fare4"]
    assert set(repo.tree("checkpoint-5")) == FILES | {".gitattributes"} and len(repo.commits) == 2
    assert repo.tags == {"v1": repo.head("checkpoint-5")}


def killed(row: str, folder: Path, place: Path) -> str:
    """`kill -9` in the middle of a request; then the same push again."""
    storage, where, read_bytes = KILLS[row]
    with pytest.MonkeyPatch.context() as patch:
        stop_time(patch)
        with online_hub(patch, place, storage) as hub:
            fault = hub.fail(where, wait=threading.Event(), read_bytes=read_bytes, status=503)
            assert TOKEN not in killed_push(hub, folder, storage, place, fault)
            assert fault.wait is not None
            fault.wait.set()
            assert all(len(repo.commits) == 1 for repo in hub.repos.values()), "half a push is on the Hub"
            there = "an empty repository there" if hub.repos else "nothing there"
            there += ", the large file stored" if hub.stored else ""
            push(hub, folder)
            tree = hub.repos["me/fare4"].tree()
            assert set(tree) == FILES | {".gitattributes"} and len(hub.repos["me/fare4"].commits) == 2
            digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
            assert tree["model.safetensors"].sha256 == digest
            return f"{there}; the next push completes it"


def table(folder: Path, place: Path) -> str:
    """The page."""
    lines = [INTRO, f"| operation | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for number, row in enumerate(ROWS):
        cells = [tried(row, column, folder, place / f"{number}-{index}") for index, column in enumerate(COLUMNS)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "`kill -9` of the process while the Hub has the request half or whole:",
        "",
        "| in | outcome |",
        "|---|---|",
    ]
    for row in KILLS:
        lines.append(f"| {row} | {killed(row, folder, place / row)} |")
        print(lines[-1], flush=True)
    lines += ["", f"huggingface_hub {huggingface_hub.__version__}, Python {platform.python_version()}.", ""]
    return "\n".join(lines)


def cells_of(page: str) -> dict[str, dict[str, Any]]:
    """Row -> column -> cell of the page's first table."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    head = next(row for row in rows if row[0] == "operation")
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows if len(row) == len(head) and row != head}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        page = table(save(place / "fare4"), place)
    if "--print" not in sys.argv:
        DOCUMENT.write_text(page, encoding="utf-8")
