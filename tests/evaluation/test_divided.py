"""Whatever divides its work in two processes of the real launcher: the result of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.distributed.groups import LEFT, STILL_THERE
from helpers.divided import COUNT, RUNS, everything, questions
from helpers.launched_runs import TWO, start
from helpers.paths import ROOT, TESTS
from helpers.tiny_llava import encoder
from helpers.vlm_folders import TEMPLATE, command, write_captions, write_llava

from fare_hf.cli import main as cli
from fare_hf.evaluation.vlm.adversarial_images import load_exported
from fare_hf.evaluation.vlm.metrics import VqaAccuracy

SCRIPT = TESTS / "helpers" / "distributed" / "divided_run.py"


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """One process that is stopped in its second batch; says how many are finished."""
    left, score = [COUNT + 2], VqaAccuracy.score

    def ends(self: Any, answer: str, index: int) -> float:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return score(self, answer, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(VqaAccuracy, "score", ends)
        questions(folder, {"distributed": False})
    return len(list((folder / "questions").glob("linf-*.safetensors")))


def test_two_processes_find_what_one_does_and_go_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, photos = tmp_path / "two", write_captions(tmp_path / "photos", 4)
    llava = write_llava(tmp_path / "llava")
    words = command(llava, photos, "captions", "--json")
    finished = interrupted(two, monkeypatch)
    suite = ["evaluate", "--suite", str(write_suite(tmp_path, llava, photos)), "--output_dir"]
    own = [*words, "--output_dir", str(tmp_path / "reports" / "two")]
    forced = ["attack", str(llava), "--dataset", str(photos), "--template", TEMPLATE, "--steps", "2"]
    forced += ["--batch_size", "2", "--max_new_tokens", "4", "--targets", str(strings(tmp_path)), "--output_dir"]
    run: dict[str, Any] = {"folder": str(two), "commands": [own]}
    run["commands"] += [[*suite, str(tmp_path / "suites" / "two")], [*forced, str(tmp_path / "attack" / "two")]]
    ended = start(run, *TWO.split(), script=SCRIPT)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stderr.count(LEFT) == 2
    first, second = (json.loads((two / f"{rank}.json").read_text()) for rank in range(2))
    assert first.pop("processes") == second.pop("processes") == 2
    for told in (first.pop("universal"), second.pop("universal")):
        assert told.startswith("one perturbation for all images cannot be divided among 2 processes: start one alone")
    held = [found.pop("held") for found in (first, second)]  # of the folder that the first one writes to already
    assert [found["looked"] for found in held] == [["new", "new", "two"], []]
    assert held[0]["said"] == held[1]["said"] and "two' is not empty" in held[0]["said"]
    one = json.loads(json.dumps(everything(tmp_path / "one", distributed=False)))
    for name in RUNS:
        shares = [found[name].pop("attacked") for found in (first, second)]
        whole = one[name].pop("attacked")
        assert all(shares), f"of {name} one process attacked nothing"
        done = finished if name == "questions" else 0
        assert sorted(shares[0] + shares[1]) == sorted(whole[done:]), name
        assert first[name] == second[name] == one[name], name
    cli.main([*words, "--output_dir", str(tmp_path / "reports" / "one")])
    cli.main([*suite, str(tmp_path / "suites" / "one")])
    cli.main([*forced, str(tmp_path / "attack" / "one")])
    pictures = [load_exported(tmp_path / "attack" / name / "target-0" / "images") for name in ("one", "two")]
    assert pictures[0].entries == pictures[1].entries  # hashes of files, names, and what was written
    for kind in ("reports", "suites", "attack"):
        reports = [json.loads((tmp_path / kind / name / "report.json").read_text()) for name in ("one", "two")]
        rows = [[row | {"seconds": 0} for row in report["rows"]] for report in reports]
        assert rows[0] == rows[1] and len(rows[0]) >= 2, kind
    assert ended.stdout.count('"schema_version"') == ended.stdout.count("### captions") == 1  # of the first alone


def strings(folder: Path) -> Path:
    """One string to force."""
    (folder / "strings.txt").write_text("bird bird face\n")
    return folder / "strings.txt"


def write_suite(folder: Path, llava: Path, photos: Path) -> Path:
    """One job on the same captions."""
    encoder(seed=5).save_pretrained(folder / "encoder")
    job = f"kind: vlm, vlm: {llava}, set: {photos}, task: captions, template: '{TEMPLATE}', steps: 2, batch_size: 2"
    text = f"name: s\nmodels: {{A: {folder}/encoder}}\njobs:\n  - {{{job}, eps: [4/255]}}\n"
    (folder / "suite.yaml").write_text(text)
    return folder / "suite.yaml"


@pytest.mark.parametrize(("ending", "told"), [("", LEFT), ("raise ValueError", STILL_THERE)])
def test_a_process_leaves_its_group_unless_it_failed(ending: str, told: str, tmp_path: Path) -> None:
    """Leaving waits for the others, who may wait for this one; after an error the launcher ends them all."""
    code = (
        "from helpers.distributed.groups import tell_group_at_exit; tell_group_at_exit()\n"
        "from torch import distributed\n"
        "from fare_hf.evaluation.processes import leave_group_at_exit\n"
        "leave_group_at_exit()\n"
        f"distributed.init_process_group('gloo', init_method='file://{tmp_path / 'store'}', rank=0, world_size=1)\n"
    )
    paths = os.pathsep.join(map(str, (ROOT, TESTS)))
    environment = os.environ | {"PYTHONPATH": paths, "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-c", code + ending], env=environment, capture_output=True, text=True)
    assert told in found.stderr, found.stderr
