"""Parents with pickled weights (`pytorch_model.bin`): merged as their safetensors would be, never run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.merge_parents import swapped_logits, write_encoder, write_vlm
from helpers.refused_conversions import Code
from safetensors.torch import load_file

from fare_hf.hub import merge_vision_tower
from fare_hf.hub.merge.shards import read_header
from fare_hf.pretrained.weight_files import INDEX, PICKLE_INDEX

pytestmark = [
    pytest.mark.filterwarnings("ignore:clean images have embeddings"),
    pytest.mark.filterwarnings("ignore:the weights of"),
]


def pickled(folder: Path, target: Path) -> Path:
    """The same model as `transformers` published it before safetensors."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
    for path in folder.glob("*.safetensors"):
        torch.save(load_file(path), target / f"pytorch_{path.stem}.bin")
    if (folder / INDEX).exists():
        content = json.loads((folder / INDEX).read_text())
        names = {name: f"pytorch_{Path(file).stem}.bin" for name, file in content["weight_map"].items()}
        (target / PICKLE_INDEX).write_text(json.dumps({"metadata": content["metadata"], "weight_map": names}))
    return target


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("parents")
    return write_vlm(place / "llava"), write_encoder(place / "fare4")


@pytest.mark.parametrize("shard", ["30KB", "5GB"])
@pytest.mark.parametrize("whose", ["vlm", "encoder", "both"])
def test_the_result_is_that_of_safetensors(whose: str, shard: str, parents: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, encoder = parents
    if shard == "5GB":
        vlm = write_vlm(tmp_path / "one", shard=shard)
        (vlm / "pytorch_model.bin").unlink()
    merge_vision_tower(vlm, encoder, tmp_path / "wanted")
    given_vlm = vlm if whose == "encoder" else pickled(vlm, tmp_path / "vlm")
    given_encoder = encoder if whose == "vlm" else pickled(encoder, tmp_path / "encoder")
    done = merge_vision_tower(given_vlm, given_encoder, tmp_path / "robust")
    wanted, found = (weights(tmp_path / name) for name in ("wanted", "robust"))
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    files = {path.name for path in (tmp_path / "robust").iterdir()}
    assert not any(name.endswith((".bin", ".bin.index.json")) for name in files)
    assert {n for n in files if n.endswith(".safetensors")} == {p.name for p in vlm.glob("*.safetensors")}
    assert (whose == "encoder") == (not done.unpickled) and not done.linked
    assert ("from pickles to safetensors" in str(done)) == bool(done.unpickled)
    assert all(path.stat().st_nlink == 1 for path in (tmp_path / "robust").iterdir())
    assert not list(tmp_path.glob(".*"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) > 1:
        listed = json.loads((folder / INDEX).read_text())["weight_map"]
        assert listed == {n: f.name for f in files for n in read_header(f)[0] if n != "__metadata__"}
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def test_plain_transformers_loads_the_result(parents: tuple[Path, Path], tmp_path: Path) -> None:
    from helpers.merge_parents import logits_of

    merge_vision_tower(pickled(parents[0], tmp_path / "vlm"), parents[1], tmp_path / "robust")
    assert torch.equal(logits_of(tmp_path / "robust"), swapped_logits(*parents))


def test_tied_and_half_precision_weights(parents: tuple[Path, Path], tmp_path: Path) -> None:
    """Tensors that share memory in a pickle are written twice, as safetensors cannot share."""
    encoder = pickled(parents[1], tmp_path / "fare4")
    state = {n: t.bfloat16() for n, t in torch.load(encoder / "pytorch_model.bin", weights_only=True).items()}
    state["text_model.tied"] = state["visual_projection.weight"]
    torch.save(state, encoder / "pytorch_model.bin", _use_new_zipfile_serialization=False)  # as old releases wrote
    done = merge_vision_tower(parents[0], encoder, tmp_path / "robust")
    found = weights(tmp_path / "robust")
    name = next(name for name in found if name.endswith("vision_tower.pre_layrnorm.weight"))
    assert torch.equal(found[name], state["vision_model.pre_layrnorm.weight"].float()) and done.tensors > 40


@pytest.mark.parametrize("whose", [0, 1])
def test_code_in_a_pickle_is_not_run(
    whose: int, parents: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [pickled(parent, tmp_path / parent.name) for parent in parents]
    file = next(given[whose].glob("*.bin"))
    torch.save({**torch.load(file, weights_only=True), "x": Code()}, file)
    with pytest.raises(ValueError, match=r"holds code or objects besides tensors \(pathlib.Path.touch\)|holds code"):
        merge_vision_tower(*given, tmp_path / "out")
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_indexes_of_pickles_that_lie(parents: tuple[Path, Path], tmp_path: Path) -> None:
    vlm = pickled(parents[0], tmp_path / "vlm")
    content = json.loads((vlm / PICKLE_INDEX).read_text())
    first, other = (sorted(set(content["weight_map"].values()))[place] for place in (0, -1))
    name = next(name for name, file in content["weight_map"].items() if file == first)
    cases: list[tuple[Any, str]] = [
        ("../vlm/pytorch_model.bin", "leaves its folder"),
        ("config.json", "which is no .bin file"),
        ("none.bin", "names the file 'none.bin', which is not there"),
        (other, f"does not fit its files .'{name}'"),
    ]
    for lie, sentence in cases:
        (vlm / PICKLE_INDEX).write_text(json.dumps({"weight_map": {**content["weight_map"], name: lie}}))
        with pytest.raises(ValueError, match=sentence) as found:
            merge_vision_tower(vlm, parents[1], tmp_path / "out")
        assert "\n" not in str(found.value) and not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_pipe_instead_of_a_pickle(parents: tuple[Path, Path], tmp_path: Path) -> None:
    encoder = pickled(parents[1], tmp_path / "fare4")
    (encoder / "pytorch_model.bin").unlink()
    os.mkfifo(encoder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has no model.safetensors and no pytorch_model.bin|holds no weights"):
        merge_vision_tower(parents[0], encoder, tmp_path / "out")
