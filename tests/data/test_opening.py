"""Data sets as users have them: each image used or counted, what cannot be opened one sentence, nothing endless."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
from helpers.hub import online_hub
from helpers.loopback_hub import LoopbackHub
from PIL import Image
from transformers import CLIPImageProcessor

from fare_hf.data.columns import class_names_of, find_columns
from fare_hf.data.opening import check_folder, load_images, open_split, whole_split
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream


def put(folder: Path, *names: str) -> Path:
    """Small images under these names; other files where the ending is none of an image."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg", ".PNG"):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
        else:
            path.write_text("no image")
    return folder


LAYOUTS = {
    "a class called train": (["train/1.png", "bus/2.png", "car/3.png"], {"train": 3}, ["bus", "car", "train"]),
    "a class called test": (["test/1.png", "bus/2.png"], {"train": 2}, ["bus", "test"]),
    "names with validation_": (["a/validation_1.png", "a/2.png", "b/test-3.png"], {"train": 3}, ["a", "b"]),
    "flat, with names of splits": (["train_1.png", "test_2.png", "3.png"], {"train": 3}, None),
    "splits of classes": (["train/a/1.png", "train/b/2.png", "val/a/3.png"], {"train": 2, "val": 1}, ["a", "b"]),
    "flat splits": (["train/1.png", "validation/2.png", "validation/3.png"], {"train": 1, "validation": 2}, None),
    "splits in capitals": (["Train/a/1.png", "Test/a/2.png", "Test/b/3.png"], {"train": 1, "test": 2}, ["a", "b"]),
    "splits below a folder": (["data/train/a/1.png", "data/test/b/2.png"], {"train": 1, "test": 1}, ["a", "b"]),
    "splits below classes": (["cat/train/1.png", "cat/test/2.png", "dog/train/3.png"], {"train": 3}, None),
    "texts beside": (["a/1.png", "a/1.txt", "b/2.png", "b/2.txt", "b/3.json"], {"train": 2}, ["a", "b"]),
    "a path to escape": (["[x]*/a [1]/1.png", "[x]*/b/2.png"], {"train": 2}, ["a [1]", "b"]),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_image_of_a_folder_is_used(kind: str, streaming: bool, tmp_path: Path) -> None:
    names, counts, classes = LAYOUTS[kind]
    put(tmp_path / "photos", *names)
    for split, count in counts.items():
        dataset = load_images(str(tmp_path / "photos"), split, streaming=streaming)
        _, label_column = find_columns(dataset)
        rows = list(dataset)
        assert len(rows) == count
        assert class_names_of(dataset, label_column) == classes
        if classes:
            places = [Path(row["image"].filename).parent.name for row in rows]
            assert [classes[row["label"]] for row in rows] == places
    with pytest.raises(ValueError, match="has no split 'holdout'"):
        load_images(str(tmp_path / "photos"), "holdout", streaming=streaming)


def test_slices_of_splits_and_relative_paths_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "photos", *(f"{name}/{n}.png" for name in ("train", "test") for n in range(4)))
    monkeypatch.chdir(tmp_path)
    assert [len(load_images("photos", split)) for split in ("train[:50%]", "train+test", "test[1:]")] == [2, 8, 3]


@pytest.mark.parametrize(("split", "called"), [(None, "train"), ("validation", "validation"), ("test[:2]", "test")])
def test_a_saved_data_set_has_one_split(split: str | None, called: str, tmp_path: Path) -> None:
    """Another is not there: an evaluation would be of the images that were trained on."""
    rows = datasets.Dataset.from_dict({"image": [{"path": "1.png", "bytes": b""}]}, split=split)
    rows.cast_column("image", datasets.Image()).save_to_disk(tmp_path)
    assert whole_split(str(tmp_path)) == called
    for streaming in (False, True):
        assert load_images(str(tmp_path), called, streaming=streaming)
        with pytest.raises(ValueError, match=f"is one saved data set and has no split 'night'; give '{called}'"):
            load_images(str(tmp_path), "night", streaming=streaming)


def test_what_is_passed_over_is_said_by_kind(tmp_path: Path) -> None:
    said: list[str] = []
    put(tmp_path / "a", "train/x/1.png", "train/y/2.png", "test/x/3.png", "train/x/1.txt", "docs/4.png", ".h/5.png")
    os.mkfifo(tmp_path / "a" / "train" / "x" / "6.png")
    load_images(str(tmp_path / "a"), report=said.append)
    assert said[0].endswith(
        "(train): 2 images in 2 classes; splits: test 1, train 2; passed over: 1 .png, 1 .txt, 1 hidden, "
        "1 no regular files"
    )
    put(tmp_path / "b", *(f"{n}.png" for n in range(8)))
    (tmp_path / "b" / "metadata.csv").write_text("file_name,text\n3.png,a cat\n")
    load_images(str(tmp_path / "b"), report=said.append)
    assert said[1].endswith("(train): 1 images without classes; passed over: 7 .png")
    datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))]}).to_parquet(tmp_path / "c" / "train-0.parquet")
    (tmp_path / "c" / "more.parquet").write_bytes((tmp_path / "c" / "train-0.parquet").read_bytes())
    load_images(str(tmp_path / "c"), report=said.append)
    assert said[2].endswith("(train): 1 images without classes; passed over: 1 .parquet")


def test_linked_class_folders_are_read_and_circles_end(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.png", "photos/dog/2.png")
    (tmp_path / "photos" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "dog" / "again").symlink_to(tmp_path / "photos")
    assert class_names_of(load_images(str(tmp_path / "photos")), "label") == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_not_opened(kind: str, tmp_path: Path, processor: CLIPImageProcessor) -> None:
    put(tmp_path, "1.png")
    for name in ("shard.tar", "picture.png"):
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
    check_folder(str(tmp_path))
    assert len(load_images(str(tmp_path))) == 1
    rows = [{"image": {"bytes": None, "path": str(tmp_path / "picture.png")}}]
    with pytest.raises(ValueError, match=r"picture.png\) is not a readable image: it is no regular file"):
        PixelDataset(rows, processor)[0]


def write_configured(folder: Path, colours: list[int], card: str) -> str:
    """A folder whose card, or what takes its place, has one configuration with one file: an image for each grey."""
    pictures = [Image.new("L", (4, 4), colour) for colour in colours]
    features = datasets.Features({"image": datasets.Image()})
    (folder / "whole").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"image": pictures}, features).to_parquet(folder / "whole" / "rows.parquet")
    files = "[{split: test, path: whole/rows.parquet}]"
    configured = f"configs:\n- config_name: whole\n  data_files: {files}\n"
    (folder / card).write_text(f"---\n{configured}---\n" if card.endswith(".md") else configured)
    return str(folder)


GREYS = (("a", [10, 20]), ("b", [30]))


@pytest.mark.parametrize("config", [None, "whole"])
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_one_name_and_changed_files_are_not_taken_for_what_was_read_before(
    config: str | None, streaming: bool, card: str, tmp_path: Path
) -> None:
    """`datasets` finds what it prepared of a configuration by the folder's last name and its card alone."""
    place = f"{config} {streaming} {card}"  # not in the cache yet

    def greys_in(folder: str) -> list[int]:
        rows, _ = open_split(folder, "test", streaming=streaming, config=config)
        return [row["image"].getpixel((0, 0)) for row in rows]

    first, second = (write_configured(tmp_path / one / place, greys, card) for one, greys in GREYS)
    assert greys_in(first) == [10, 20] and greys_in(second) == [30] and greys_in(first) == [10, 20]
    write_configured(Path(first), [40, 50, 60], card)
    assert greys_in(first) == [40, 50, 60]


def test_a_folder_with_configurations_lists_them(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png", "b/3.png")
    lines = [f"- config_name: {name}\n  data_files: {name}/*.png\n" for name in ("a", "b")]
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{''.join(lines)}---\n")
    for config in (None, "c"):
        with pytest.raises(ValueError, match="has the configurations a, b; give one with --dataset_config"):
            load_images(str(tmp_path), config=config)
    assert len(load_images(str(tmp_path), config="b")) == 2
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="dataset_config='b': .* is a saved data set and has none"):
        load_images(str(tmp_path / "saved"), config="b")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """The loopback Hub, for `datasets` too."""
    with online_hub(monkeypatch, tmp_path) as hub:
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_data_set_is_said_to_be_gated(status: int, hub: LoopbackHub) -> None:
    hub.fail("datasets/them/gated", times=9, status=status, headers={"X-Error-Code": "GatedRepo"})
    with pytest.raises(ValueError, match="'them/gated' is gated: ask for access at .*/them/gated and log in"):
        load_images("them/gated")
    with pytest.raises(ValueError, match="'them/absent' is neither a folder here nor found on the Hub; check the nam"):
        load_images("them/absent")


def test_a_loading_script_is_named(hub: LoopbackHub) -> None:
    repo, headers = "/datasets/them/old/resolve", {"X-Repo-Commit": "a" * 40, "ETag": '"b"'}
    hub.fail(f"{repo}/main/README.md", times=9, status=200, body="# old", headers=headers)
    hub.fail(f"{repo}/{'a' * 40}/old.py", times=9, status=200, body="print('run')", headers=headers)
    with pytest.raises(ValueError, match="'them/old' has a loading script, and datasets .* runs none; give a copy in"):
        load_images("them/old")


def shard(path: Path, *endings: str) -> None:
    """A webdataset shard with an image of each ending, in that order."""
    with tarfile.open(path, "w") as archive:
        for number, ending in enumerate(endings):
            file = io.BytesIO()
            Image.new("RGB", (8, 8)).save(file, "PNG")
            member = tarfile.TarInfo(f"{path.stem}{number:04d}.{ending}")
            member.size = file.tell()
            archive.addfile(member, io.BytesIO(file.getvalue()))


def test_shards_whose_images_would_be_lost_are_refused(tmp_path: Path) -> None:
    for name, ending in (("0.tar", "jpg"), ("1.tar", "png")):
        shard(tmp_path / name, ending)
    with pytest.raises(ValueError, match=r"1.tar' holds images named .png, .*0.tar' .jpg: one kind becomes the col"):
        load_images(str(tmp_path))
    with pytest.raises(ValueError, match="one kind becomes the column"):
        check_folder(str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_large_share_of_replaced_images_is_an_error(
    streaming: bool, tmp_path: Path, processor: CLIPImageProcessor
) -> None:
    """Every other image of the shard has another ending, past those that `datasets` looks at."""
    shard(tmp_path / "0.tar", *["png"] * 5, *["jpg", "png"] * 20)
    dataset = load_images(str(tmp_path), streaming=streaming)
    kind = PixelStream if streaming else PixelDataset
    with pytest.raises(ValueError, match="sample 5 is not a readable image: there is none"):
        list(kind(dataset, processor, "png"))
    with pytest.raises(ValueError, match=r"\d+ of \d+ images that were read had to be replaced, more than a third"):
        list(kind(dataset, processor, "png", replace_corrupt=True))
