"""Files of strangers, changed at random: one sentence or something sound, in bounded time, and nothing else touched.

Configurations and image processors alone: `test_configuration.py`; headers, indexes and open_clip's configurations
alone: `test_hub_merge_trust.py`, `test_hub_convert_states.py`; numbers: `test_numerals.py`. Here whole files, through
their readers. `FARE_HF_FUZZ=250` tries 3,000 cases.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.hub import report, save
from helpers.merge_parents import write_encoder, write_vlm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fare_hf import ThreatModel, apgd
from fare_hf.encoders import load_encoder
from fare_hf.evaluation import RobustnessReport
from fare_hf.hub import merge_vision_tower
from fare_hf.hub.push.folder import read_folder
from fare_hf.suites.suite import load_suite

CASES = int(os.environ.get("FARE_HF_FUZZ", "6"))
LONGEST_S = 20
BALL, CLEAN = ThreatModel("linf", "4/255"), torch.full((2, 3, 8, 8), 0.5)
SUITE = {
    "name": "s",
    "models": {"CLIP": "lab:clip"},
    "jobs": [{"kind": "zero-shot", "set": "lab:digits", "eps": ["4/255"], "steps": 5, "samples": 4}],
}
STRANGE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.sampled_from(["", "../x", "/etc/passwd", "4_0/255", "-4/-255", "nan", "\x00", "|<b>`", "a" * 5000]),
    st.lists(st.integers(-2, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
CUTS = st.one_of(st.none(), st.integers(0, 400))


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what would not end; one sentence or nothing comes out."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"it took more than {LONGEST_S} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        assert str(error) and "\n" not in str(error), error
    finally:
        signal.alarm(0)


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each value of a document stands."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        found += paths_of(part, (*path, key))
    return found


def mutated(document: Any, where: int, value: Any, remove: bool) -> Any:
    """The document with one value another one, or without it."""
    places = paths_of(document)
    *path, last = places[where % len(places)]
    inner = document
    for key in path:
        inner = inner[key]
    if remove:
        del inner[last]
    else:
        inner[last] = value
    return document


def change_file(path: Path, where: int, value: Any, remove: bool, cut: int | None) -> None:
    """A JSON or YAML file, with one value changed and perhaps cut off."""
    load, dump = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    text = dump(mutated(load(path.read_text()), where, value, remove))
    path.write_text(text if cut is None else text[:cut])


def check_encoder(folder: Path) -> None:
    """Loaded, it answers."""
    encoder = load_encoder(str(folder))
    size = encoder.config.image_size
    with torch.no_grad():
        assert encoder(pixel_values=torch.rand(1, 3, size, size)).image_embeds.isfinite().all()


def check_merge(folder: Path) -> None:
    """Merged, no file lies beside the others."""
    merge_vision_tower(folder / "llava", folder / "encoder", folder / "out")


def check_report(folder: Path) -> None:
    """Read, its rows are figures."""
    rows = RobustnessReport.load(folder / "report.json").rows
    assert all(0 <= row.value <= 10 or row.metric.startswith("relative") for row in rows)


def check_state(folder: Path) -> None:
    """An attack that goes on from it stays in the ball."""
    state = load_file(folder / "state.safetensors")
    found = apgd(lambda pixels: pixels.square().sum((1, 2, 3)), CLEAN, BALL, steps=6, resume=state)
    BALL.check(found.pixels, CLEAN)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is changed: folders that are right."""
    place = tmp_path_factory.mktemp("sources")
    save(place / "fare4", report=report(0.5))
    write_vlm(place / "merge" / "llava")
    write_encoder(place / "merge" / "encoder")
    (place / "suite").mkdir()
    (place / "suite" / "suite.yaml").write_text(yaml.safe_dump(SUITE))
    (place / "state").mkdir()
    states: list[dict[str, torch.Tensor]] = []
    apgd(lambda x: x.square().sum((1, 2, 3)), CLEAN, BALL, steps=6, save=states.append, save_every=4)
    save_file({name: value.contiguous() for name, value in states[0].items()}, place / "state" / "state.safetensors")
    return {path.name: path for path in place.iterdir()}


READERS: dict[tuple[str, str], Callable[[Path], Any]] = {
    ("fare4", "config.json"): check_encoder,
    ("fare4", "preprocessor_config.json"): lambda folder: read_folder(folder, "me/fare4"),
    ("fare4", "fare_hf.json"): lambda folder: read_folder(folder, "me/fare4"),
    ("fare4", "report.json"): check_report,
    ("merge", "llava/model.safetensors.index.json"): check_merge,
    ("merge", "llava/config.json"): check_merge,
    ("merge", "encoder/config.json"): check_merge,
    ("suite", "suite.yaml"): lambda folder: load_suite(folder / "suite.yaml"),
}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("source", "name"), READERS)
@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.integers(0, 10_000), value=STRANGE, remove=st.booleans(), cut=CUTS)
def test_a_document_of_a_stranger(
    source: str,
    name: str,
    where: int,
    value: Any,
    remove: bool,
    cut: int | None,
    sources: dict[str, Path],
    tmp_path: Path,
) -> None:
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    (place / "beside").mkdir(parents=True)
    (place / "beside" / "model.safetensors").write_bytes(b"of somebody else")
    shutil.copytree(sources[source], place / "inside")
    change_file(place / "inside" / name, where, value, remove, cut)
    before = tree(place)
    with bounded():
        READERS[source, name](place / "inside")
    after = tree(place)
    assert {path: after.get(path) for path in before} == before
    assert all(path.startswith("inside/out/") for path in after.keys() - before.keys())


@settings(max_examples=4 * CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensor=st.integers(0, 100),
    place=st.integers(0, 10_000),
    value=st.sampled_from([0.0, 1.0, 0.98, -3.0, 1e30, float("nan"), float("inf")]),
    remove=st.booleans(),
)
def test_a_state_of_a_stranger(
    tensor: int, place: int, value: float, remove: bool, sources: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(sources["state"] / "state.safetensors")
    name = sorted(state)[tensor % len(state)]
    flat = state[name].view(-1)
    whole = 7 if value != value else int(max(-100.0, min(100.0, value)))
    flat[place % len(flat)] = value if state[name].is_floating_point() else whole
    if remove:
        del state[name]
    save_file(state, tmp_path / "state.safetensors")
    with bounded():
        check_state(tmp_path)
