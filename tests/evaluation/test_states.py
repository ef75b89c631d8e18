"""Files that interrupted runs leave: cut, edited, of another run, or something else in their place, all in one way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import PROMPT, images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import quantize
from fare_hf.evaluation import Row
from fare_hf.evaluation.resume import Change, SavedBatches, claim, read_tensors, write_tensors
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.metrics import VqaAccuracy
from fare_hf.evaluation.vlm.stealth import evaluate_stealth
from fare_hf.suites.settings import Job, Subject
from fare_hf.suites.suite import read_suite, run_suite

BALL = ThreatModel("linf", "8/255")
CLEAN = quantize(images(2))
STEALTH: dict[str, Any] = {"prompt": PROMPT, "model": "LLaVA", "dataset": "noise", "steps": 6, "save_every": 3}
STEALTH |= {"batch_size": 2, "max_new_tokens": 8}


def stealth(vlm: Any, proc: Any, folder: Path, clean: torch.Tensor = CLEAN, **changes: Any) -> Any:
    return evaluate_stealth(vlm, proc, clean, "bird bird face bird", BALL, folder=folder, **STEALTH | changes)


class Always(VqaAccuracy):
    """Everything is attacked."""

    threshold = -1.0


def attack_vlm(vlm: Any, proc: Any, folder: Path, seed: int = 0) -> Any:
    options: dict[str, Any] = {"model": "L", "task": "vqa", "dataset": "noise", "steps": 2, "batch_size": 2}
    options |= {"threat_models": [BALL], "half": None, "max_new_tokens": 3, "folder": folder, "seed": seed}
    return evaluate_vlm(vlm, proc, CLEAN, PROMPT, Always([["zebra"] * 4] * 2), **options)


def suite_run(folder: Path, source: str = "a") -> Any:
    class Plain(Job):
        kind = "k"

        def run(self, subject: Subject) -> list[Row]:
            names = {"model": subject.model, "task": "t", "dataset": "x", "metric": "accuracy"}
            return [Row(value=0.5, ci=(0, 1), n=2, outcomes="10", **names)]

    content = {"name": "s", "models": {"A": source}, "jobs": [{"kind": "k", "set": "x"}]}
    return run_suite(read_suite(content, kinds={"k": Plain}), folder, progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind of run; the stealth run once more with a saved state instead of its end."""
    from helpers.tiny_llava import llava, processor

    folder, vlm, proc = tmp_path_factory.mktemp("runs"), llava(), processor()
    stealth(vlm, proc, folder / "stealth")
    attack_vlm(vlm, proc, folder / "vlm")
    suite_run(folder / "suite")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        written = write_tensors

        def stops(path: Path, *words: Any) -> None:
            written(path, *words)
            raise KeyboardInterrupt

        patch.setattr("fare_hf.evaluation.vlm.stealth.write_tensors", stops)
        stealth(vlm, proc, folder / "begun")
    return folder


FILES = {
    "stealth/settings.json": "stealth",
    "stealth/states/00000.done.safetensors": "stealth",
    "begun/states/00000.safetensors": "begun",
    "stealth/images/manifest.json": "stealth",
    "stealth/images/00001.png": "stealth",
    "stealth/images/clean/00001.png": "stealth",
    "vlm/settings.json": "vlm",
    "vlm/clean.json": "vlm",
    "vlm/linf-8_255-00-00000.safetensors": "vlm",
    "suite/rows/A_k_x-*.json": "suite",
}


def again(kind: str, folder: Path, vlm: Any, proc: Any) -> Any:
    """The same command once more."""
    if kind == "suite":
        return suite_run(folder / kind)
    return attack_vlm(vlm, proc, folder / kind) if kind == "vlm" else stealth(vlm, proc, folder / kind)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def other_words(path: Path) -> None:
    path.write_text('["something else"]')


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: list[Callable[[Path], None]] = [cut, empty, flipped, other_words, pipe]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(
    name: str, damage: Callable[[Path], None], finished: Path, tmp_path: Path, vlm: Any, proc: Any
) -> None:
    """Never another figure, never a traceback, never a wait for ever."""
    shutil.copytree(finished, tmp_path / "runs")
    path = next((tmp_path / "runs").glob(name))
    damage(path)
    with pytest.raises(ValueError) as found:
        again(FILES[name], tmp_path / "runs", vlm, proc)
    named = path.parent if path.name == "settings.json" else path
    assert named.name in str(found.value) and "\n" not in str(found.value)


def test_undamaged_files_are_taken(finished: Path, tmp_path: Path, vlm: Any, proc: Any) -> None:
    shutil.copytree(finished, tmp_path / "runs")
    for kind in ("stealth", "begun", "vlm", "suite"):
        again(kind, tmp_path / "runs", vlm, proc)
    found, whole = (stealth(vlm, proc, tmp_path / "runs" / kind) for kind in ("begun", "stealth"))
    assert found.answers == whole.answers


@pytest.mark.parametrize(
    ("name", "into", "sentence"),
    [
        ("stealth/states/00000.done.safetensors", "stealth", "is of another run"),
        ("begun/states/00000.safetensors", "begun", "is of another run"),
        ("vlm/linf-8_255-00-00000.safetensors", "vlm", "is of another run"),
        ("vlm/clean.json", "vlm", "is of another run"),
        ("stealth/images", "stealth", "holds pictures of another run"),
    ],
)
def test_a_file_of_another_run_is_named(
    name: str, into: str, sentence: str, finished: Path, tmp_path: Path, vlm: Any, proc: Any
) -> None:
    """Copied into the folder of a run with another seed."""
    source, target = tmp_path / name, finished / name
    with pytest.raises(ValueError, match=sentence):
        if into == "vlm":
            attack_vlm(vlm, proc, tmp_path / into, seed=5)
            (shutil.copytree if target.is_dir() else shutil.copyfile)(target, source)
            attack_vlm(vlm, proc, tmp_path / into, seed=5)
        else:
            stealth(vlm, proc, tmp_path / into, seed=5)
            (source.parent / "00000.done.safetensors").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / into / "images")
            (shutil.copytree if target.is_dir() else shutil.copyfile)(target, source)
            stealth(vlm, proc, tmp_path / into, seed=5)


def test_a_stealth_run_is_of_its_images_and_its_tower(finished: Path, tmp_path: Path, vlm: Any, proc: Any) -> None:
    from helpers.tiny_llava import llava

    from fare_hf.vlm import tower_of

    shutil.copytree(finished / "stealth", tmp_path / "stealth")
    with pytest.raises(ValueError, match="holds a run with another images: name another folder"):
        stealth(vlm, proc, tmp_path / "stealth", quantize(images(2, seed=7)))
    other = llava()
    with torch.no_grad():
        list(tower_of(other).parameters())[-1].add_(0.5)
    with pytest.raises(ValueError, match="holds a run with another vision tower"):
        stealth(other, proc, tmp_path / "stealth")


def test_rows_of_another_job_are_named(tmp_path: Path) -> None:
    suite_run(tmp_path / "a")
    suite_run(tmp_path / "b", "other")
    first, second = (next((tmp_path / name / "rows").iterdir()) for name in "ab")
    shutil.copyfile(second, first)
    with pytest.raises(ValueError, match=f"{first.name}' is of another job: delete it"):
        suite_run(tmp_path / "a")


def test_points_that_leave_the_ball_are_refused_though_their_seal_is_right(
    tmp_path: Path, vlm: Any, proc: Any
) -> None:
    """Somebody wrote the file anew with this very package."""
    attack_vlm(vlm, proc, tmp_path)
    path = tmp_path / "linf-8_255-00-00000.safetensors"
    tensors, facts = read_tensors(path)
    for value in (0.98, float("nan")):
        write_tensors(path, {"pixels": torch.full_like(tensors["pixels"], value)}, facts)
        with pytest.raises(ValueError, match="leaves the threat model linf 8/255"):
            attack_vlm(vlm, proc, tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bytes_of_a_state_that_were_changed_are_noticed(data: st.DataObject, tmp_path: Path) -> None:
    """Anywhere in the file: header, metadata, tensors."""
    saved = SavedBatches(tmp_path, "run")
    saved.keep_batch(BALL, 0, 0, [3], [Change(3, 0.5, "cat", 0, torch.zeros(3, 2, 2))], 1.0)
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        found = saved.batch(BALL, 0, 0, [3])
    except ValueError as error:
        assert path.name in str(error)
        return
    assert found is not None and (found[0][0].score, found[0][0].answer, found[1]) == (0.5, "cat", 1.0)  # white space
    assert torch.equal(found[0][0].pixels, torch.zeros(3, 2, 2))


def test_a_plain_safetensors_file_is_no_state(tmp_path: Path) -> None:
    save_file({"points": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors' was changed after it was written"):
        read_tensors(tmp_path / "a.safetensors")
    write_tensors(tmp_path / "b.safetensors", {"points": torch.zeros(2)}, {"run": "x"})
    assert load_file(tmp_path / "b.safetensors").keys() == {"points"}
    with pytest.raises(ValueError, match="is of another run"):
        read_tensors(tmp_path / "b.safetensors", "y")


def test_settings_are_an_object(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(["a"]))
    with pytest.raises(ValueError, match="settings.json' holds no JSON object"):
        claim(tmp_path, {"a": 1})
