"""Towers out of files that hold a language model too: their tensors alone are asked for, by HTTP ranges."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import online_hub, stop_time
from helpers.loopback_hub import File, LoopbackHub
from helpers.tiny_llava import llava, processor
from safetensors.torch import load_file, save

from fare_hf.pretrained import weight_ranges
from fare_hf.vlm import tower_of
from fare_hf.vlm.tower_files import load_vision_tower

LARGE = 3_000_000
"""Bytes of a language model, which the tiny one has not."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A Hub without repositories."""
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as found:
        yield found


def weights() -> dict[str, torch.Tensor]:
    """Of a LLaVA whose language model is large."""
    own = {name: tensor.contiguous() for name, tensor in llava().state_dict().items()}
    return own | {"model.language_model.layers.7.large": torch.zeros(LARGE, dtype=torch.uint8)}


def publish(hub: LoopbackHub, tmp_path: Path, files: dict[str, bytes]) -> None:
    """A repository "lab/llava" of these files of weights."""
    folder = tmp_path / "small"
    llava().save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    processor().save_pretrained(folder)
    tree = hub.create("lab/llava").tree()
    tree |= {path.name: File(path.read_bytes(), False) for path in folder.iterdir()}
    for name, data in files.items():
        tree[name] = File(data, lfs=name.endswith(".safetensors"))
        hub.stored[tree[name].sha256] = data


def check(hub: LoopbackHub) -> int:
    """The tower is that of the model; the bytes that it took."""
    before = hub.sent
    tower, features = load_vision_tower("lab/llava")
    expected = tower_of(llava()).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
    projector = llava().model.multi_modal_projector.state_dict()
    found = features.around.multi_modal_projector.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in projector.items())
    return hub.sent - before


def needed() -> int:
    """Bytes of the tower and the projector."""
    parts = ("model.vision_tower", "model.multi_modal_projector")
    return sum(tensor.nbytes for name, tensor in llava().state_dict().items() if name.startswith(parts))


def test_of_a_single_file_the_towers_tensors_alone_are_asked_for(hub: LoopbackHub, tmp_path: Path) -> None:
    publish(hub, tmp_path, {"model.safetensors": save(weights())})
    assert needed() < check(hub) < needed() + weight_ranges.FIRST + 50_000 < LARGE / 4
    assert hub.count("GET /lfs/") == 2  # the header, and what stands side by side
    assert not any(path.stat().st_size > 100_000 for path in (tmp_path / "xet").rglob("*") if path.is_file())


@pytest.mark.parametrize("first", [64, 256, 1 << 20])
def test_headers_of_any_length_and_tensors_that_stand_apart(
    first: int, hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_ranges, "FIRST", first)
    monkeypatch.setattr(weight_ranges, "RUN", 20_000)
    publish(hub, tmp_path, {"model.safetensors": save(weights())})
    assert check(hub) < needed() + first + 50_000 and hub.count("GET /lfs/") > 4


def test_of_shards_that_mix_both_parts_too_and_one_of_the_tower_is_downloaded(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    own = weights()
    mixed = {name: own[name] for name in own if "layers.0" in name or "large" in name}
    shards = {"model-1.safetensors": mixed, "model-2.safetensors": {n: own[n] for n in own if n not in mixed}}
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    files = {file: save(part) for file, part in shards.items()}
    publish(hub, tmp_path, files | {"model.safetensors.index.json": json.dumps(index).encode()})
    assert check(hub) < LARGE / 4
    cached = [path.name for path in (tmp_path / "xet").rglob("*.safetensors")]
    assert cached == ["model-2.safetensors"]
    hub.requests.clear()
    check(hub)
    assert hub.count("GET /lfs/") == 2  # of the mixed one alone


def test_what_is_on_this_machine_is_read_from_there(hub: LoopbackHub, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    publish(hub, tmp_path, {"model.safetensors": save(weights())})
    path = hf_hub_download("lab/llava", "model.safetensors")
    hub.requests.clear()
    check(hub)
    assert load_file(path) and hub.count("GET /lfs/") == 0


def test_a_hub_that_gives_no_parts_is_said_and_the_file_downloaded(
    hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(hub, tmp_path, {"model.safetensors": save(weights())})
    hub.gives_ranges = False
    with caplog.at_level(logging.WARNING):
        assert check(hub) > LARGE
    said = [record.getMessage() for record in caplog.records if "parts" in record.getMessage()]
    why = "its Hub gives no parts (HTTP 200 to a request for a part)"
    assert said == [f"model.safetensors of 'lab/llava' is downloaded whole: {why}."]


def test_a_part_that_comes_cut_off_is_said_and_the_file_downloaded(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(hub, tmp_path, {"model.safetensors": save(weights())})
    ask = weight_ranges.http_backoff

    def cut(*words: Any, **options: Any) -> Any:
        response = ask(*words, **options)
        response._content = response.content[:-1]
        return response

    monkeypatch.setattr(weight_ranges, "http_backoff", cut)
    with caplog.at_level(logging.WARNING):
        assert check(hub) > LARGE
    assert f"{weight_ranges.FIRST - 1} bytes of model.safetensors" in caplog.text


def header(changed: dict[str, Any]) -> bytes:
    text = json.dumps(changed).encode()
    return struct.pack("<Q", len(text)) + text + bytes(100)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"abc", "model.safetensors of 'lab/llava' is cut off or no safetensors file: take another revision"),
        (struct.pack("<Q", 1 << 40) + bytes(50), "is cut off or no safetensors file"),
        (struct.pack("<Q", 51) + bytes(50), "is cut off or no safetensors file"),
        (struct.pack("<Q", 4) + b"{{{{" + bytes(50), "is not valid JSON"),
        (struct.pack("<Q", 2) + b"[]" + bytes(50), "has a header that no safetensors file has"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}), "has a header that no"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [True, 4]}}), "has a header that no"),
        (header({"a": [0, 1]}), "has a header that no"),
        (header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}), "has no weights for "),
    ],
    ids=[
        "short",
        "long header",
        "header beyond the end",
        "no JSON",
        "a list",
        "beyond the end",
        "a flag",
        "no entry",
        "another model",
    ],
)
def test_files_that_are_none_of_safetensors_are_refused_in_a_sentence(
    data: bytes, sentence: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    publish(hub, tmp_path, {"model.safetensors": data})
    with pytest.raises(ValueError) as caught:
        load_vision_tower("lab/llava")
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_type_that_does_not_fit_its_bytes_is_refused(hub: LoopbackHub, tmp_path: Path) -> None:
    data = bytearray(save(weights()))
    length = struct.unpack("<Q", data[:8])[0]
    text = json.loads(data[8 : 8 + length])
    name = next(name for name in text if "vision_tower" in name)
    text[name]["shape"] = [*text[name]["shape"], 2]
    changed = json.dumps(text).encode()
    publish(hub, tmp_path, {"model.safetensors": struct.pack("<Q", len(changed)) + changed + data[8 + length :]})
    with pytest.raises(ValueError, match="of 'lab/llava' is no safetensors file .*: take another revision"):
        load_vision_tower("lab/llava")


def test_a_repository_without_weights_is_told_so(hub: LoopbackHub, tmp_path: Path) -> None:
    publish(hub, tmp_path, {})
    with pytest.raises(ValueError, match="'lab/llava' has no model.safetensors: only safetensors are read"):
        load_vision_tower("lab/llava")
