"""Folders are walked once, by one process; what it finds is what a walk of each would find."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest
from helpers.launched_runs import SCRIPT, TWO, noise, start, write_images
from helpers.train_command import TINY
from helpers.vlm_folders import TEMPLATE, command, write_captions, write_llava

from fare_hf.data.folder_listing import FolderListing, list_folder, listed_once

COUNTED = SCRIPT.with_name("counted_listings.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, and what is left out: hidden, a broken link, links in a circle, a pipe."""
    data = tmp_path / "data"
    for name in ("cat", "dog", ".hidden"):
        (data / name).mkdir(parents=True)
        for number in range(3):
            (data / name / f"{number}.png").write_bytes(noise(number))
    (data / "cat" / ".note").touch()
    (data / "cat" / "up").symlink_to(data)
    (data / "cat" / "gone.png").symlink_to(data / "nowhere.png")
    (data / "dog" / "linked.png").symlink_to(data / "cat" / "0.png")
    os.mkfifo(data / "dog" / "pipe.png")
    return data


def test_a_walk_asks_each_folder_and_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    inner = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(str(path)) or inner(path))
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"{path} was asked for its kind"))
    found = list_folder(folder)
    names = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]
    assert [path.relative_to(folder).as_posix() for path in found.files] == [*names, "dog/linked.png"]
    assert found.others == {"hidden": 2, "folders linked twice": 1, "no regular files": 2}
    assert asked == [str(folder / name) for name in ("", "cat", "dog")]


def test_a_folder_that_may_not_be_read_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "dog":
            raise PermissionError("no")
        return inner(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = list_folder(folder)
    assert len(found.files) == 3 and found.others["unreadable folders"] == 1


def test_inside_a_folder_is_walked_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By all of its names; another folder is walked as well, and after the block this one is again."""
    asked: list[str] = []
    inner = os.scandir
    before = list_folder(folder)
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(str(path)) or inner(path))
    monkeypatch.chdir(tmp_path)
    with listed_once():
        assert list_folder(folder) == list_folder(Path("data")) == before and len(asked) == 3
        assert len(list_folder(folder / "dog").files) == 4 and len(asked) == 4
        with listed_once():
            assert list_folder(folder) == before and len(asked) == 4
    assert list_folder(folder).files and len(asked) == 7


def test_what_is_sent_is_what_was_found(folder: Path) -> None:
    """To a machine, too, where the folder is another by its links."""
    found = list_folder(folder)
    sent = pickle.loads(pickle.dumps(found))
    assert sent == found and sent.images == found.images
    elsewhere = sent.as_of(Path("/elsewhere"))
    assert elsewhere.files[0] == Path("/elsewhere/cat/0.png") and elsewhere.others == found.others
    assert pickle.loads(pickle.dumps(FolderListing(folder))) == FolderListing(folder)


def runs(clip: Path, place: Path) -> dict[str, dict[str, Any]]:
    """Trainings and evaluations of each kind of folder, and what cannot be opened: data and words by name."""
    datasets.disable_progress_bars()
    classes, shards = place / "classes", place / "shards"
    for name in ("cat", "dog", "bird"):
        write_images(classes / name)
    shards.mkdir()
    whole = datasets.load_dataset(str(classes), split="train")
    for number in range(3):
        whole.shard(3, number).to_parquet(shards / f"test-{number}.parquet")
    captions = write_captions(place / "captions", 4)
    (place / "targets").write_text("face\n")
    broken = write_captions(place / "broken", 4)
    (broken / "metadata.jsonl").write_text('{"file_name": "photo0.png", "caption": "a cat"}\n{"file_name": 1}\n')
    (place / "tar").mkdir()
    (place / "tar" / "0.tar").write_bytes(b"not whole")
    (place / "split").mkdir()
    (place / "split" / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: no.parquet}\n---\n")
    train = ["train", "--model", str(clip), *TINY, "--max_steps", "1", "--dataset"]
    encoder = ["evaluate", str(clip), "--steps", "1", "--samples", "4", "--dataset"]
    llava = write_llava(place / "llava")
    force = ["attack", str(llava), "--template", TEMPLATE, *"--steps 1 --samples 2 --max_new_tokens 40".split()]
    job = f"kind: zero-shot, set: {shards}, samples: 4, text: {clip}"
    (place / "suite.yaml").write_text(f"name: s\nmodels: {{A: {clip}, B: {clip}}}\njobs: [{{{job}}}]\n")
    return {
        "train on classes": {"data": classes, "words": [*train, classes]},
        "train on shards": {"data": shards, "words": [*train, shards, "--train_split", "test"]},
        "train on a stream": {"data": shards, "words": [*train, shards, "--train_split", "test", "--streaming"]},
        "train on metadata": {"data": captions, "words": [*train, captions]},
        "evaluate on classes": {"data": classes, "words": [*encoder, classes]},
        "evaluate on shards": {"data": shards, "words": [*encoder, shards]},
        "evaluate a VLM": {"data": captions, "words": command(llava, captions, "captions")},
        "a suite": {"data": shards, "words": ["evaluate", "--suite", place / "suite.yaml"]},
        "force strings": {"data": captions, "words": [*force, "--dataset", captions, "--targets", place / "targets"]},
        "bad metadata": {"data": broken, "words": command(llava, broken, "captions")},
        "a broken archive": {"data": place / "tar", "words": [*encoder, place / "tar"]},
        "no such file": {"data": place / "split", "words": [*train, place / "split"]},
    }


FAULTS = {
    "bad metadata": "fare-hf: error: dataset ",
    "a broken archive": "0.tar' is damaged: it has no end of archive; replace that file.",
    "no such file": "has no images",
}


def test_only_the_first_process_lists_a_folder(clip_folder: Path, tmp_path: Path) -> None:
    """Two processes of the real launcher: both read all images, one walks; what it cannot open both say."""
    planned = {
        name: {"data": str(run["data"]), "words": [str(word) for word in run["words"]]}
        for name, run in runs(clip_folder, tmp_path).items()
    }
    result = start({"output_dir": str(tmp_path), "runs": planned}, *TWO.split(), script=COUNTED)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"listings-{rank}.json").read_text()) for rank in range(2))
    for name, found in first.items():
        also = second[name]
        assert also["listed"] == [], f"{name}: the second process listed {also['listed']}"
        assert found["said"] == also["said"] and FAULTS.get(name, "") in found["said"], (name, found["said"])
        assert bool(found["said"]) is (name in FAULTS), (name, found["said"])
        assert found["images"] == also["images"] and max(found["files"], also["files"]) <= 12
    assert first["train on classes"]["listed"] == ["bird", "cat", "classes", "dog"]
    tables = [found["train on metadata"]["tables"] for found in (first, second)]
    assert sum(map(bool, tables)) == 1  # read by whichever process is the first to need it
