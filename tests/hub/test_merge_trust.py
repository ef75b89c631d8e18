"""Parents of a merge that lie: indexes, headers and links lead nowhere, nothing is written outside or half."""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import online_hub
from helpers.loopback_hub import TOKEN
from helpers.merge_parents import publish, write_encoder, write_vlm
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from fare_hf.cli import main as cli
from fare_hf.hub import merge_vision_tower
from fare_hf.hub.merge.shards import copy_file, read_header, read_tensor, rewrite
from fare_hf.pretrained.weight_files import INDEX, read_index

pytestmark = pytest.mark.filterwarnings("ignore:the weights of")
NORM = "vision_tower.pre_layrnorm.weight"


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("parents")
    return write_vlm(place / "llava"), write_encoder(place / "fare4")


def contents(place: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def refused(sentence: str, place: Path, vlm: Path, encoder: Path, **options: Any) -> None:
    """One sentence, and nothing on the disk has changed."""
    before = contents(place)
    with pytest.raises((ValueError, OSError), match=sentence) as found:
        merge_vision_tower(vlm, encoder, place / "out", **options)
    assert "\n" not in str(found.value)
    assert contents(place) == before and not (place / "out").exists()


def edited(folder: Path, change: Callable[[dict[str, str]], Any], index: str = INDEX) -> Path:
    """An index whose weight_map was changed."""
    content = json.loads((folder / index).read_text())
    found = change(content["weight_map"])
    content["weight_map"] = content["weight_map"] if found is None else found
    (folder / index).write_text(json.dumps(content))
    return folder


def tower_files(folder: Path) -> dict[str, str]:
    return {n: f for n, f in json.loads((folder / INDEX).read_text())["weight_map"].items() if "vision_tower" in n}


ELSEWHERE = [
    ("../secret/model.safetensors", "leaves its folder"),
    ("../llava/model.safetensors", "leaves its folder"),
    ("/etc/x.safetensors", "leaves its folder"),
    ("a\\..\\x.safetensors", "leaves its folder"),
    ("config.json", r"'config.json', which is no .safetensors file"),
    ("none.safetensors", "none.safetensors.*, which"),
    (7, "names the file 7, which is no file name"),
]


@pytest.mark.parametrize(("name", "sentence"), [*ELSEWHERE, ("./model-00001-of-{}", "which is not there")])
def test_an_index_whose_files_lie_elsewhere(
    name: Any, sentence: str, parents: tuple[Path, Path], tmp_path: Path
) -> None:
    """`../llava/...` destroyed the source; `./...` would copy the old file over the new one."""
    vlm = Path(shutil.copytree(parents[0], tmp_path / "llava"))
    first = min(path.name for path in vlm.glob("model-*"))
    (tmp_path / "secret").mkdir()
    shutil.copyfile(vlm / first, tmp_path / "secret" / "model.safetensors")
    name = name.format(first.rpartition("-")[2]) if isinstance(name, str) else name
    edited(vlm, lambda listed: listed.update({NORM: name}))
    refused(sentence, tmp_path, vlm, parents[1])


@pytest.mark.parametrize(("name", "sentence"), ELSEWHERE)
def test_an_encoder_s_index_whose_files_lie_elsewhere(
    name: Any, sentence: str, parents: tuple[Path, Path], tmp_path: Path
) -> None:
    encoder = Path(shutil.copytree(parents[1], tmp_path / "fare4"))
    names = load_file(encoder / "model.safetensors")
    (encoder / "model.safetensors").rename(encoder / "one.safetensors")
    (encoder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "one.safetensors")}))
    edited(encoder, lambda listed: listed.update({"vision_model.pre_layrnorm.weight": name}))
    refused(sentence, tmp_path, parents[0], encoder)


def test_an_index_that_its_files_do_not_fit(parents: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, encoder = parents
    files = sorted(set(tower_files(vlm).values()))
    listed = json.loads((vlm / INDEX).read_text())["weight_map"]
    other = next(file for file in sorted(set(listed.values())) if file not in files)
    moved = edited(Path(shutil.copytree(vlm, tmp_path / "moved")), lambda m: m.update({NORM: other}))
    refused(f"has '{NORM}' in '{other}' by its {INDEX}, but not there", tmp_path, moved, encoder)

    twice = Path(shutil.copytree(vlm, tmp_path / "twice"))
    tensors = load_file(twice / other)
    save_file({**tensors, NORM: torch.ones(32)}, twice / other, {"format": "pt"})
    refused(f"'{NORM}' in '{other}' and, by its {INDEX}, in", tmp_path, twice, encoder)

    unlisted = Path(shutil.copytree(vlm, tmp_path / "unlisted"))
    save_file({**tensors, f"{NORM}_old": torch.ones(32)}, unlisted / other, {"format": "pt"})
    refused(f"holds '{NORM}_old' of the tower, which", tmp_path, unlisted, encoder)

    missing = Path(shutil.copytree(vlm, tmp_path / "missing"))
    (missing / other).unlink()
    refused(f"names the file '{other}', which is not there", tmp_path, missing, encoder)

    many = edited(
        Path(shutil.copytree(vlm, tmp_path / "many")), lambda _: {str(n): f"{n}.safetensors" for n in range(2000)}
    )
    refused("names 2,000 files, more than any checkpoint has", tmp_path, many, encoder)

    double = Path(shutil.copytree(vlm, tmp_path / "double"))
    text = (
        (double / INDEX)
        .read_text()
        .replace('"weight_map": {', '"weight_map": {"a": "x.safetensors", "a": "y.safetensors",')
    )
    (double / INDEX).write_text(text)
    refused("lists 'a' twice", tmp_path, double, encoder)

    for number, content in enumerate(("[" * 100_000, '{"weight_map": 3}', "{}", '{"weight_map": {}}')):
        broken = Path(shutil.copytree(vlm, tmp_path / f"broken{number}"))
        (broken / INDEX).write_text(content)
        refused("nested deeper|has no weight_map", tmp_path, broken, encoder)


def test_the_command_says_it_in_one_sentence(
    parents: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = edited(Path(shutil.copytree(parents[0], tmp_path / "llava")), lambda m: m.update({NORM: "../x.safetensors"}))
    with pytest.raises(SystemExit, match="fare-hf: error: .*'../x.safetensors', which leaves its folder") as found:
        cli.main(["merge", str(vlm), str(parents[1]), "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(found.value)


def test_links_that_leave_the_folder(parents: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, encoder = (Path(shutil.copytree(parent, tmp_path / parent.name)) for parent in parents)
    (tmp_path / "id_rsa").write_text("a private key")
    for name in ("LICENSE", "model-extra.safetensors", "config.json"):
        kept = (vlm / name).read_bytes() if (vlm / name).exists() else None
        (vlm / name).unlink(missing_ok=True)
        (vlm / name).symlink_to(tmp_path / "id_rsa")
        if name != "config.json" or kept is None:
            refused("a link to .* outside", tmp_path, vlm, encoder)
        (vlm / name).unlink()
        if kept is not None:
            (vlm / name).write_bytes(kept)
    (vlm / "notes").symlink_to(tmp_path)
    refused("a link to .* outside", tmp_path, vlm, encoder)
    (vlm / "notes").unlink()
    (tmp_path / "weights").write_bytes((encoder / "model.safetensors").read_bytes())
    (encoder / "model.safetensors").unlink()
    (encoder / "model.safetensors").symlink_to(tmp_path / "weights")
    refused("a link to .* outside", tmp_path, vlm, encoder)


def test_links_of_the_hub_s_cache_are_followed_and_never_linked_back(
    parents: tuple[Path, Path], tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--lab--llava" / "snapshots" / "abc"
    blobs = tmp_path / "models--lab--llava" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(parents[0].iterdir())):
        shutil.copyfile(path, blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    before = contents(blobs)
    done = merge_vision_tower(snapshot, parents[1], tmp_path / "robust")
    assert not any(path.is_symlink() for path in (tmp_path / "robust").iterdir())
    for path in (tmp_path / "robust").iterdir():
        path.write_bytes(b"edited")
    assert contents(blobs) == before and done.copied


def test_a_pipe_for_weights(parents: tuple[Path, Path], tmp_path: Path) -> None:
    """Opened, it would keep the merge waiting for ever."""
    vlm, encoder = (Path(shutil.copytree(parent, tmp_path / parent.name)) for parent in parents)
    file = tower_files(vlm)[NORM]
    (vlm / file).unlink()
    os.mkfifo(vlm / file)
    refused("which is no file \\(a pipe", tmp_path, vlm, encoder)
    (encoder / "model.safetensors").unlink()
    os.mkfifo(encoder / "model.safetensors")
    refused("has no model.safetensors", tmp_path, parents[0], encoder)
    with pytest.raises(ValueError, match="there is no file"):
        read_header(vlm / file)


def write_file(path: Path, header: bytes, body: bytes = b"", length: int | None = None) -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES: dict[str, tuple[Any, int | None]] = {
    "length of 2^60": ({"a": ENTRY}, 1 << 60),
    "length beyond the file": ({"a": ENTRY}, 4096),
    "shape beyond the offsets": ({"a": {**ENTRY, "shape": [1 << 60]}}, None),
    "offsets beyond the file": ({"a": {**ENTRY, "shape": [4], "data_offsets": [0, 16]}}, None),
    "offsets that overlap": ({"a": ENTRY, "b": ENTRY}, None),
    "offsets that begin later": ({"a": {**ENTRY, "data_offsets": [8, 16]}}, None),
    "negative offsets": ({"a": {**ENTRY, "data_offsets": [-8, 0]}}, None),
    "negative shape": ({"a": {**ENTRY, "shape": [-2]}}, None),
    "unknown type": ({"a": {**ENTRY, "dtype": "Q4_K"}}, None),
    "no type": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, None),
    "no object": ([ENTRY], None),
    "bytes that nothing names": ({}, None),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str, tmp_path: Path) -> None:
    header, length = LIES[lie]
    path = write_file(tmp_path / "x.safetensors", json.dumps(header).encode(), bytes(8), length)
    for use in (lambda: read_header(path), lambda: rewrite(path, tmp_path / "new", {}, {})):
        with pytest.raises(ValueError, match="x.safetensors' is (not a|cut off or no) safetensors file") as found:
            use()
        assert "\n" not in str(found.value) and not (tmp_path / "new").exists()


def test_headers_nested_without_end(tmp_path: Path) -> None:
    for text in (b"[" * 500_000, b'{"a":' * 500_000, b'{"__metadata__":' + b"[" * 500_000):
        with pytest.raises(ValueError, match="cut off or no safetensors"):
            read_header(write_file(tmp_path / "x.safetensors", text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.integers(-4, 40) | st.sampled_from([1 << 31, 1 << 60, 1 << 64, -(1 << 70)])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F4", "F8_E4M3", "Q4", "", 3]),
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=150, deadline=2_000)
@given(
    st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRIES | JSON, max_size=4) | JSON,
    st.binary(max_size=40),
    NUMBERS.filter(lambda n: n >= 0) | st.none(),
)
def test_a_header_is_right_or_refused(header: Any, body: bytes, length: int | None) -> None:
    """Whatever stands there; what is taken can be read and copied, byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(header).encode()
        path = write_file(Path(folder) / "x", text, body, None if length is None else min(length, (1 << 64) - 1))
        try:
            found, begin = read_header(path)
        except ValueError as error:
            assert "\n" not in str(error)
            return
        rewrite(path, Path(folder) / "y", {}, {})
        again, other = read_header(Path(folder) / "y")
        assert again == found and (Path(folder) / "y").read_bytes()[other:] == path.read_bytes()[begin:]


@settings(max_examples=150, deadline=2_000)
@given(
    JSON
    | st.fixed_dictionaries({"weight_map": JSON | st.dictionaries(st.text(max_size=4), st.text(max_size=12) | JSON)})
)
def test_an_index_is_right_or_refused(content: Any) -> None:
    """What is taken names files of its own folder alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / INDEX
        path.write_text(json.dumps(content))
        try:
            found = read_index(path)
        except ValueError:
            return
        for name in found.values():
            assert (path.parent / name).resolve().is_relative_to(path.parent.resolve()) and name.endswith(
                ".safetensors"
            )


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short read ends the copy: before, it went on for ever."""
    from fare_hf.hub.merge import shards

    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(64), "b": torch.ones(64)}, path)
    read = read_header(path)
    path.write_bytes(path.read_bytes()[:-256])
    monkeypatch.setattr(shards, "read_header", lambda _: read)
    with pytest.raises(ValueError, match="has become shorter"):
        rewrite(path, tmp_path / "new", {}, {})
    with pytest.raises(ValueError, match="is cut off in 'b'"):
        read_tensor(path, *read, "b")


def test_tensors_without_values(tmp_path: Path) -> None:
    save_file({"a": torch.empty(0, 4), "b": torch.ones(2)}, tmp_path / "x.safetensors")
    header, begin = read_header(tmp_path / "x.safetensors")
    assert read_tensor(tmp_path / "x.safetensors", header, begin, "a").shape == (0, 4)
    rewrite(tmp_path / "x.safetensors", tmp_path / "y.safetensors", {"a": lambda: torch.empty(0, 4)}, {})
    assert load_file(tmp_path / "y.safetensors")["a"].shape == (0, 4)


def test_copies_share_blocks_or_not_but_never_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(3_000_000))
    copy_file(tmp_path / "a", tmp_path / "b")
    content = (tmp_path / "a").read_bytes()
    assert (tmp_path / "b").read_bytes() == content
    with (tmp_path / "b").open("r+b") as file:
        file.write(b"edited")
    assert (tmp_path / "a").read_bytes() == content and (tmp_path / "a").stat().st_nlink == 1


# On the Hub.


def test_on_the_hub_nothing_is_committed_for_an_index_that_lies(
    parents: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm, encoder = parents
    listed = json.loads((vlm / INDEX).read_text())["weight_map"]
    other = next(file for file in sorted(set(listed.values())) if file not in tower_files(vlm).values())
    lies = {
        "leaves its folder": f"../../{other}",
        "which is not there": "none.safetensors",
        f"'{NORM}' in ": other,
    }
    with online_hub(monkeypatch, tmp_path / "xet") as hub:
        access = {"token": TOKEN, "endpoint": hub.url, "push_to_hub": True, "hub_model_id": "me/robust"}
        for number, (sentence, name) in enumerate(lies.items()):
            copy = edited(Path(shutil.copytree(vlm, tmp_path / str(number))), lambda m, n=name: m.update({NORM: n}))
            publish(hub, copy, f"lab/llava{number}")
            with pytest.raises(ValueError, match=sentence) as found:
                merge_vision_tower(f"lab/llava{number}", encoder, **access)
            assert "\n" not in str(found.value) and "me/robust" not in hub.repos
        with pytest.raises(ValueError, match="hard_links is for a merge into a folder"):
            merge_vision_tower("lab/llava0", encoder, hard_links=True, **access)
        pickled = shutil.copytree(vlm, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors*"))
        publish(hub, pickled, "lab/pickled")
        with pytest.raises(ValueError, match="has pickled weights alone .*: merge into a folder"):
            merge_vision_tower("lab/pickled", encoder, **access)
