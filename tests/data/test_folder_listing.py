"""Folders are walked once, by one process; what it finds is what a walk of each would find."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers.launched_runs import SCRIPT, TWO, noise, start, write_images
from helpers.train_command import TINY

from fare_hf.data import folder_listing
from fare_hf.data.folder_listing import list_folder, listed_once
from fare_hf.data.opening import looked_at_once

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
    """By all of its names; another folder is walked as ever, and after the block this one is too."""
    asked: list[str] = []
    inner = os.scandir
    before = list_folder(folder.resolve())
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(str(path)) or inner(path))
    monkeypatch.chdir(tmp_path)
    with listed_once("data", lambda listing: None):
        assert len(asked) == 3
        assert list_folder(folder) == list_folder(Path("data")) == before and len(asked) == 3
        assert len(list_folder(folder / "dog").files) == 4 and len(asked) == 4
    assert list_folder(folder).files and len(asked) == 7
    with listed_once("user/on-the-hub", lambda listing: pytest.fail("no folder")):
        pass


def test_what_is_sent_is_what_was_found(folder: Path) -> None:
    """To a machine, too, where the folder is another by its links."""
    found = list_folder(folder.resolve())
    assert folder_listing._unpacked(folder.resolve(), *folder_listing._packed(found)) == found
    elsewhere = folder_listing._unpacked(Path("/elsewhere"), *folder_listing._packed(found))
    assert elsewhere.files[0] == Path("/elsewhere/cat/0.png") and elsewhere.others == found.others


def test_a_broken_archive_is_said_to_all(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"not whole")
    with pytest.raises(ValueError, match="no end of archive"), looked_at_once(str(tmp_path)):
        pass


def test_only_the_first_process_walks_the_images(clip_folder: Path, tmp_path: Path) -> None:
    """Two processes of the real launcher on class folders; both train on all images."""
    for name in ("cat", "dog", "bird"):
        (tmp_path / "images").mkdir(exist_ok=True)
        write_images(tmp_path / "images" / name)
    words = ["--model", str(clip_folder), "--dataset", str(tmp_path / "images"), *TINY, "--max_steps", "1"]
    options = {"data": str(tmp_path / "images"), "output_dir": str(tmp_path), "words": words}
    result = start(options, *TWO.split(), script=COUNTED)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"listings-{rank}.json").read_text()) for rank in range(2))
    assert sorted(map(os.path.basename, first["listed"])) == ["bird", "cat", "dog", "images"]
    assert second["listed"] == [] and first["images"] == second["images"] == 60
    assert max(first["files"], second["files"]) <= 12  # the few that are read before the first step
