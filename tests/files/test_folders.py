"""Names that come from outside stay in their folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fare_hf.files.folders import LOCK, check_new_folder, locked_folder, path_inside, relative_name

OUTSIDE = ["../a", "a/../../b", "/etc/passwd", "..", "a/..", "C:/x", "a\\..\\b", "", ".", None, 3, "a\x00b", "a\nb"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_leave_their_folder_are_refused(name: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the index names the file"):
        relative_name(name, "the index")
    with pytest.raises(ValueError, match="names the file"):
        path_inside(tmp_path, name)


@given(st.text(max_size=30))
def test_a_name_that_is_taken_lies_in_its_folder(name: str) -> None:
    folder = Path("/somewhere/folder")
    try:
        path = path_inside(folder, name)
    except ValueError:
        return
    assert path.resolve().is_relative_to(folder) and path.resolve() != folder


def test_links_may_stay_inside_or_lead_to_the_blobs_of_the_hub_s_cache(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("secret")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "own").write_text("own")
    (folder / "inner").symlink_to("own")
    (folder / "leaves").symlink_to(outside)
    assert path_inside(folder, "inner").read_text() == "own"
    with pytest.raises(ValueError, match="a link to .* outside"):
        path_inside(folder, "leaves")
    snapshot = tmp_path / "models--user--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "blobs").mkdir()
    (snapshot.parents[1] / "blobs" / "1234").write_text("content")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    assert path_inside(snapshot, "model.safetensors").read_text() == "content"
    (snapshot / "config.json").symlink_to(outside)
    with pytest.raises(ValueError, match="a link to .* outside"):
        path_inside(snapshot, "config.json")


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    """Another process is refused in one sentence; whatever ends the run, the lock goes, and what was not used."""
    folder = tmp_path / "out"
    code = "from pathlib import Path; from fare_hf.files.folders import locked_folder as hold\n"
    code += f"with hold(Path({str(folder)!r}), 'x'): pass"
    with locked_folder(folder, "a training"):
        with pytest.raises(ValueError, match="a suite that is still running writes to '.*out': wait for its end"):
            with locked_folder(folder, "a suite"):
                pass
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "x that is still running writes to" in found.stderr
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), locked_folder(folder, "a training"):
        (folder / "rows").mkdir()
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["rows"]
    with locked_folder(folder, "a training"):  # the folder is free again
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: name a folder"), locked_folder(tmp_path / "file", "a training"):
        pass


def test_the_lock_of_a_killed_run_is_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    check_new_folder(tmp_path)
    with locked_folder(tmp_path, "a training"):
        pass
    assert not (tmp_path / LOCK).exists()
