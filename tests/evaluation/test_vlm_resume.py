"""`evaluate_vlm(folder=...)`: interrupted anywhere, it goes on and ends where an unbroken run does, to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.paths import TESTS
from helpers.tiny_llava import PROMPT, images, llava, processor
from safetensors import safe_open

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.resume import claim, digest, write_tensors
from fare_hf.evaluation.vlm.ensemble import VlmEvaluation, evaluate_vlm
from fare_hf.evaluation.vlm.metrics import VqaAccuracy
from fare_hf.vlm import generate_text, tower_of

THREATS = [ThreatModel("linf", "16/255"), ThreatModel("linf", "4/255")]
NAMES: dict[str, Any] = {"model": "LLaVA", "task": "vqa", "dataset": "noise"}
OPTIONS: dict[str, Any] = {"steps": 3, "targets": ("cat",), "seed": 3, "batch_size": 2, "max_new_tokens": 3}


class Interrupted(VqaAccuracy):
    """A metric that ends the run at its n-th score; no sample is ever given up, all batches are run."""

    threshold = -1.0
    left = 10**9

    def score(self, answer: str, index: int) -> float:
        """As VQA accuracy, as long as it lasts."""
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().score(answer, index)


def references(vlm: Any, proc: Any, pixels: torch.Tensor) -> list[list[str]]:
    """What the model says anyway, so that all samples are attacked, and something else for a second stage."""
    said = generate_text(vlm, proc, pixels, PROMPT, max_new_tokens=3)
    return [[*[text or "cat"] * 4, "dog"] for text in said]


def run(vlm: Any, proc: Any, metric: Any, folder: Path | None, **changes: Any) -> VlmEvaluation:
    """An evaluation of five images in three batches a stage, two balls, four stages each."""
    options = NAMES | OPTIONS | {"threat_models": THREATS} | changes
    return evaluate_vlm(vlm, proc, images(5), PROMPT, metric, folder=folder, **options)


def same(found: VlmEvaluation, expected: VlmEvaluation) -> bool:
    """Equal to the bit, wall time aside."""
    untimed = [[replace(row, seconds=None) for row in e.rows] for e in (found, expected)]
    states = zip(found.attacked.items(), expected.attacked.items(), strict=True)
    return (
        untimed[0] == untimed[1]
        and (found.clean, found.scores) == (expected.clean, expected.scores)
        and all(
            (name, a.answers, a.scores, a.sources) == (other, b.answers, b.scores, b.sources)
            and list(a.pixels) == list(b.pixels)
            and all(torch.equal(a.pixels[index], b.pixels[index]) for index in a.pixels)
            for (name, a), (other, b) in states
        )
    )


@pytest.mark.parametrize("batches", [0, 1, 6])
def test_an_interrupted_evaluation_goes_on(
    batches: int, vlm: Any, proc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fare_hf.evaluation.vlm.engine as engine
    import fare_hf.evaluation.vlm.ensemble as ensemble

    ran: list[int] = []
    original = ensemble.apgd

    def counted(*words: Any, **options: Any) -> Any:
        ran.append(1)
        return original(*words, **options)

    monkeypatch.setattr(ensemble, "apgd", counted)
    metric = Interrupted(references(vlm, proc, images(5)))
    whole = run(vlm, proc, metric, None)
    needed = len(ran)
    assert needed > batches + 1 and any(a.pixels for a in whole.attacked.values())
    # Five clean scores, and five for the clean row; batches of two, two and one: in the middle of the next one.
    metric.left = 10 + 5 * (batches // 3) + 2 * (batches % 3) + 1
    ran.clear()
    with pytest.raises(KeyboardInterrupt):
        run(vlm, proc, metric, tmp_path)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("linf-*.safetensors")}
    assert 0 < len(ran) < needed and len(finished) == len(ran) - 1 == batches
    metric.left = 10**9
    attacked, answered = len(ran), []
    monkeypatch.setattr(engine, "generate_text", lambda *w, **o: answered.append(1) or generate_text(*w, **o))
    found = run(vlm, proc, metric, tmp_path)
    assert same(found, whole) and len(ran) - attacked == needed - len(finished) == len(answered)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert not list(tmp_path.glob("*.part"))
    timed = [row.seconds for row in found.rows[1:]]
    ran.clear()
    again = run(vlm, proc, metric, tmp_path)  # nothing is attacked or asked; the time is that of the attacks
    assert same(again, whole) and not ran and [row.seconds for row in again.rows[1:]] == timed


def test_a_files_content_is_what_its_batch_changed(vlm: Any, proc: Any, tmp_path: Path) -> None:
    result = run(vlm, proc, VqaAccuracy(references(vlm, proc, images(5))), tmp_path)
    assert json.loads((tmp_path / "clean.json").read_text())["answers"] == result.clean
    with safe_open(tmp_path / "linf-4_255-00-00001.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        pixels = file.get_tensor("pixels")
    assert facts["batch"] == [2, 3] and [index for index, *_ in facts["changes"]] == [2, 3]  # the first: all kept
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == torch.float32
    THREATS[1].check(pixels, images(5)[[2, 3]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 4}, "another steps: name another folder"),
        ({"seed": 4, "half": None}, "another half, seed"),
        ({"threat_models": THREATS[:1]}, "another threat_models"),
        ({"model": "other"}, "another model"),
        ({"max_new_tokens": 2, "targets": ()}, "another targets, max_new_tokens"),
    ],
)
def test_the_folder_of_another_run_is_refused(
    changes: dict, message: str, vlm: Any, proc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric = Interrupted(references(vlm, proc, images(5)))
    metric.left = 0
    with pytest.raises(KeyboardInterrupt):
        run(vlm, proc, metric, tmp_path)
    before = (tmp_path / "settings.json").read_bytes()
    monkeypatch.setattr("fare_hf.evaluation.vlm.engine.generate_text", pytest.fail)
    with pytest.raises(ValueError, match=message):
        run(vlm, proc, metric, tmp_path, **changes)
    with pytest.raises(ValueError, match="another metric, references|another references"):
        run(vlm, proc, VqaAccuracy([["zebra"]] * 5), tmp_path)
    assert (tmp_path / "settings.json").read_bytes() == before


def test_the_folder_of_another_tower_is_refused(proc: Any, tmp_path: Path) -> None:
    """The same names and settings: only the weights tell the towers apart."""
    vlm = llava()
    run(vlm, proc, VqaAccuracy([["cat"]] * 5), tmp_path, threat_models=[])
    with torch.no_grad():
        list(tower_of(vlm).parameters())[-1].add_(0.5)
    with pytest.raises(ValueError, match="another vision tower"):
        run(vlm, proc, VqaAccuracy([["cat"]] * 5), tmp_path, threat_models=[])


def test_a_cut_file_is_never_read(vlm: Any, proc: Any, tmp_path: Path) -> None:
    """What a kill leaves while a file is written stands beside its place."""
    metric = VqaAccuracy(references(vlm, proc, images(5)))
    whole = run(vlm, proc, metric, tmp_path)
    path = tmp_path / "linf-4_255-00-00001.safetensors"
    cut = path.with_name(path.name + ".1.part")
    cut.write_bytes(path.read_bytes()[:50])
    path.unlink()
    (tmp_path / "clean.json.1.part").write_text('["a')
    assert same(run(vlm, proc, metric, tmp_path), whole)
    path.write_bytes(path.read_bytes()[:50])  # damaged by someone else: an error, not another figure
    with pytest.raises(ValueError, match=r"linf-4_255-00-00001.safetensors' cannot be read .*: delete it"):
        run(vlm, proc, metric, tmp_path)


def test_files_are_whole_and_digests_differ(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2, 3).T}, {"k": "v"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert digest("ab", "c") != digest("a", "bc") and digest("a") == digest(b"a")
    claim(tmp_path, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="another b: "):
        claim(tmp_path, {"a": 1})


PROGRAM = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
sys.path.insert(0, {tests!r} + "/evaluation")
from test_vlm_resume import Interrupted, images, llava, processor, references, run
vlm, proc = llava(), processor()
run(vlm, proc, Interrupted(references(vlm, proc, images(5))), Path({folder!r}), steps=40)
"""


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    """kill -9 of a real process in the middle of its batches."""
    program = PROGRAM.format(tests=str(TESTS), folder=str(tmp_path / "killed"))
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        for _ in range(2400):
            if len(list((tmp_path / "killed").glob("linf-*.safetensors"))) >= 4 or process.poll() is not None:
                break
            time.sleep(0.025)
        process.kill()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("linf-*.safetensors")}
    assert process.returncode == -signal.SIGKILL and len(before) >= 4
    vlm, proc = llava(), processor()
    metric = Interrupted(references(vlm, proc, images(5)))
    found = run(vlm, proc, metric, tmp_path / "killed", steps=40)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("linf-*.safetensors")}
    assert len(after) > len(before) and {path: after[path] for path in before} == before
    assert same(found, run(vlm, proc, metric, None, steps=40))
