"""Merging an encoder into a published model: on disk by links, on the Hub by server-side copies."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import online_hub, stop_time
from helpers.loopback_hub import TOKEN, LoopbackHub
from helpers.merge_parents import (
    logits_of,
    publish,
    swapped_logits,
    write_encoder,
    write_vlm,
)
from helpers.open_clip_files import write_open_clip
from helpers.paths import EXAMPLES
from helpers.tiny_vlms import TINY, clip_encoder, siglip_encoder
from helpers.vlm_capabilities import OTHER
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig

from fare_hf.cli import main as cli
from fare_hf.hub import merge_vision_tower
from fare_hf.hub.merge import merge
from fare_hf.hub.merge.shards import read_header
from fare_hf.hub.push.push import PushError
from fare_hf.hub.retry import Retries
from fare_hf.vlm import swap_vision_tower
from fare_hf.vlm.families.table import family_named
from fare_hf.vlm.swap.resolution import scaled_processor

pytestmark = [
    pytest.mark.filterwarnings("ignore:clean images have embeddings"),
    pytest.mark.filterwarnings("ignore:the weights of"),
]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vlm(tmp_path_factory.mktemp("vlm") / "llava")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "fare4")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    stop_time(monkeypatch)
    with online_hub(monkeypatch, tmp_path / "xet") as server:
        yield server


def test_the_result_is_the_swap(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    done = merge_vision_tower(vlm, encoder, tmp_path / "robust")
    assert torch.equal(logits_of(tmp_path / "robust"), swapped_logits(vlm, encoder))
    shards = sorted(path.name for path in vlm.glob("model-*.safetensors"))
    assert len(shards) > 4 and 0 < len(set(done.rewritten) & set(shards)) < len(shards)
    assert done.tensors == len([n for n in weight_names(vlm) if "vision_tower" in n])
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json"):
        assert (tmp_path / "robust" / name).read_bytes() == (vlm / name).read_bytes()
    assert done.left_out == ("pytorch_model.bin",) and not (tmp_path / "robust" / "pytorch_model.bin").exists()
    for name in shards:  # same names, order, types and metadata in every file
        old, new = read_header(vlm / name)[0], read_header(tmp_path / "robust" / name)[0]
        assert list(old) == list(new) and old == new


def weight_names(folder: Path) -> list[str]:
    return list(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def test_the_card_names_both_parents_and_no_folder_of_this_machine(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    merge_vision_tower(vlm, encoder, tmp_path / "robust")
    card = (tmp_path / "robust" / "README.md").read_text()
    assert "license: llama2" in card and "model: llava\n" in card and "encoder: fare4 (" in card
    assert "openai/clip-vit-large-patch14" in card
    assert "base_model" not in card  # the Hub has neither, and would refuse what is no name
    assert str(tmp_path) not in card and str(vlm.parent) not in card
    assert "`pytorch_model.bin`" in card and "LlavaForConditionalGeneration.from_pretrained" in card


@pytest.mark.parametrize(
    ("head", "kept", "told"),
    [
        ("license: mine", {}, "license 'mine' is unknown to the Hub"),
        ("license: [mit, llama2]", {}, "cannot hand its licence on"),
        ("license: 3", {}, "license '3' is unknown"),
        ("license: [mit]\nlanguage: de", {"license": "mit", "language": ["de"]}, None),
        ("license: other\nlicense_name: my own\nlicense_link: LICENSE", {"license": "other"}, None),
        ("language: [en, English, en]", {"language": ["en"]}, "the language 'English', which is no code"),
        ("language: [[en]]", {}, "which is no code of ISO 639"),
        ("pipeline_tag: [a]", {}, None),
        ("pipeline_tag: video-text-to-text", {"pipeline_tag": "video-text-to-text"}, None),
    ],
)
def test_the_card_s_head_takes_what_the_hub_accepts(
    head: str, kept: dict[str, Any], told: str | None, vlm: Path, encoder: Path, tmp_path: Path
) -> None:
    """The parent's card is a stranger's; what is left out of it is said."""
    folder = shutil.copytree(vlm, tmp_path / "vlm")
    (folder / "README.md").write_text(f"---\n{head}\n---\n")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        merge_vision_tower(folder, encoder, tmp_path / "robust")
    said = [str(one.message) for one in found if "the merged model's card leaves it out" in str(one.message)]
    assert (told is None and not said) or (told is not None and len(said) == 1 and told in said[0])
    data = ModelCard.load(tmp_path / "robust" / "README.md").data.to_dict()
    wanted = {"pipeline_tag": "image-text-to-text"} | kept
    assert {name: data.get(name) for name in ("license", "language", "pipeline_tag")} == {
        "license": None, "language": None, **wanted
    }  # fmt: skip


def test_large_files_are_linked_only_where_that_is_asked_for(
    vlm: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "LINKED_FROM", 15_000)
    own = merge_vision_tower(vlm, encoder, tmp_path / "own")
    for name in own.copied:  # a change of the copy is none of the source
        assert not (tmp_path / "own" / name).samefile(vlm / name)
        assert (tmp_path / "own" / name).read_bytes() == (vlm / name).read_bytes()
    assert not own.linked and "hard-linked" not in str(own)
    done = merge_vision_tower(vlm, encoder, tmp_path / "robust", hard_links=True)
    linked = [n for n in done.copied if (tmp_path / "robust" / n).samefile(vlm / n)]
    assert tuple(linked) == done.linked and f"a change here changes the source too: {linked[0]}" in str(done)
    assert linked and all((vlm / name).stat().st_size >= 15_000 for name in linked)
    assert not any((tmp_path / "robust" / name).samefile(vlm / name) for name in done.rewritten)
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another disk")))
    assert not merge_vision_tower(vlm, encoder, tmp_path / "copied", hard_links=True).linked
    assert all((tmp_path / "copied" / n).read_bytes() == (vlm / n).read_bytes() for n in linked)


def test_another_resolution_changes_configuration_and_processor(vlm: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "fare48", OTHER)
    merge_vision_tower(vlm, encoder, tmp_path / "robust")
    config = json.loads((tmp_path / "robust" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == OTHER and config["image_seq_length"] == 36
    assert torch.equal(logits_of(tmp_path / "robust"), swapped_logits(vlm, encoder))
    index = json.loads((tmp_path / "robust" / "model.safetensors.index.json").read_text())
    sizes = [read_header(path)[0] for path in (tmp_path / "robust").glob("*.safetensors")]
    ends = [max(e["data_offsets"][1] for n, e in header.items() if n != "__metadata__") for header in sizes]
    assert index["metadata"]["total_size"] == sum(ends)
    assert f"read at {OTHER} px" in (tmp_path / "robust" / "README.md").read_text()


def test_files_of_processors_that_count_tokens_elsewhere() -> None:
    family, llava = (family_named([f"{name}ForConditionalGeneration"]) for name in ("Cohere2Vision", "Llava"))
    cohere = {"image_processor_type": "Cohere2VisionImageProcessor", "size": {"height": 512, "width": 512}}
    changed = scaled_processor(
        {"image_processor": cohere, "processor_class": "Cohere2VisionProcessor"}, family, 512, 384
    )
    assert changed["image_processor"] == {**cohere, "size": {"height": 384, "width": 384}, "patch_size": 12}
    assert scaled_processor({"num_image_tokens": 576, "patch_size": 16}, llava, 384, 256) == {
        "num_image_tokens": 256,
        "patch_size": 16,
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", ["LlavaNext", "VipLlava", "Idefics", "Llava on SigLIP", "DeepseekVL"])
def test_other_families_and_single_files(family: str, tmp_path: Path) -> None:
    folder = write_vlm(tmp_path / "vlm", family, "5GB")
    kind = siglip_encoder if family in ("Llava on SigLIP", "DeepseekVL") else clip_encoder
    new = write_encoder(tmp_path / "new", OTHER, kind)
    if kind is siglip_encoder:
        (new / "preprocessor_config.json").unlink()
    merge_vision_tower(folder, new, tmp_path / "robust")
    assert torch.equal(logits_of(tmp_path / "robust"), swapped_logits(folder, new))


@pytest.mark.slow
def test_both_towers_of_a_video_model(tmp_path: Path) -> None:
    folder, new = write_vlm_without_processor(tmp_path / "vlm", "VideoLlava"), write_encoder(tmp_path / "new")
    merge_vision_tower(folder, new, tmp_path / "robust")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "robust")
    swapped = AutoModelForImageTextToText.from_pretrained(folder)
    swap_vision_tower(swapped, new)
    assert all(torch.equal(tensor, swapped.state_dict()[name]) for name, tensor in model.state_dict().items())


def write_vlm_without_processor(folder: Path, family: str) -> Path:
    TINY[family].model().save_pretrained(folder, max_shard_size="30KB")
    return folder


def test_names_and_types_of_published_models(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    """`vision_tower.vision_model.*` in bf16, as llava-hf has it."""
    folder = tmp_path / "old"
    model = AutoModelForImageTextToText.from_pretrained(vlm, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(vlm).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    names = {n: n.replace("vision_tower.", "vision_tower.vision_model.") for n in tensors if ".vision_model." not in n}
    names = {name: names.get(name, name) for name in tensors}
    save_file({names[n]: t for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    merge_vision_tower(folder, encoder, tmp_path / "robust")
    with safe_open(tmp_path / "robust" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(names.values())
        name = next(name for name in names.values() if name.endswith("vision_tower.vision_model.pre_layrnorm.weight"))
        assert file.get_tensor(name).dtype == torch.bfloat16 and file.metadata() == {"format": "pt"}
    swap_vision_tower(model, encoder)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "robust", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_an_open_clip_encoder_and_the_command(vlm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_open_clip(tmp_path / "fare")
    cli.main(["merge", str(vlm), str(source), "--output_dir", str(tmp_path / "robust")])
    assert "rewritten: model-" in capsys.readouterr().out
    assert torch.equal(logits_of(tmp_path / "robust"), swapped_logits(vlm, source))


def test_parents_that_do_not_fit(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    wide = tmp_path / "wide"
    clip_encoder(hidden_size=64).save_pretrained(wide)
    siglip = write_encoder(tmp_path / "siglip", 32, siglip_encoder)
    broken = clip_encoder()
    broken.vision_model.post_layernorm.bias.data[3] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    cases = [
        ((vlm, encoder, tmp_path / "full"), ValueError, "is not empty"),
        ((vlm, wide, tmp_path / "out"), ValueError, "has hidden_size 64"),
        ((vlm, siglip, tmp_path / "out"), ValueError, "needs a CLIPVisionModel"),
        ((vlm, tmp_path / "broken", tmp_path / "out"), ValueError, "NaN or infinity"),
        ((encoder, encoder, tmp_path / "out"), TypeError, "CLIPVisionModelWithProjection is not"),
    ]
    for arguments, kind, message in cases:
        with pytest.raises(kind, match=message):
            merge_vision_tower(*arguments)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_models_that_cannot_be_merged(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    weightless = shutil.copytree(vlm, tmp_path / "none", ignore=shutil.ignore_patterns("*.safetensors*", "*.bin"))
    with pytest.raises(ValueError, match="has no safetensors"):
        merge_vision_tower(weightless, encoder, tmp_path / "out")
    cut = shutil.copytree(vlm, tmp_path / "cut")
    for path in cut.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is cut off"):
        merge_vision_tower(cut, encoder, tmp_path / "out")
    quantised = shutil.copytree(vlm, tmp_path / "quantised")
    config = json.loads((quantised / "config.json").read_text()) | {"quantization_config": {"quant_method": "awq"}}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is quantised"):
        merge_vision_tower(quantised, encoder, tmp_path / "out")


def test_an_encoder_from_elsewhere_is_noticed(vlm: Path, encoder: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="fine-tuned from another model"):
        merge_vision_tower(vlm, encoder, tmp_path / "robust")
    again = merge_vision_tower(tmp_path / "robust", encoder, tmp_path / "same")
    assert again.cosine == pytest.approx(1.0)


# On the Hub.


def on_hub(hub: LoopbackHub, encoder: Path, out: str = "me/robust", **options: Any) -> Any:
    """A merge there."""
    access = {"token": TOKEN, "endpoint": hub.url}
    return merge_vision_tower("lab/llava", encoder, push_to_hub=True, hub_model_id=out, **access, **options)


def test_on_the_hub_only_the_towers_files_travel(hub: LoopbackHub, vlm: Path, encoder: Path, tmp_path: Path) -> None:
    contents = publish(hub, vlm, "lab/llava")
    done = on_hub(hub, encoder)
    merge_vision_tower(vlm, encoder, tmp_path / "local")
    tree = hub.repos["me/robust"].tree()
    expected = {path.name: path.read_bytes() for path in (tmp_path / "local").iterdir()}
    assert set(tree) - {".gitattributes"} == set(expected)
    assert all(tree[name].data == data for name, data in expected.items() if name != "README.md")
    assert done.commit == hub.repos["me/robust"].branches["main"]
    moved = [name for request, _ in hub.requests for name in contents if request.endswith(f"/{name}")]
    untouched = {n for n in contents if n.endswith(".safetensors")} - set(done.rewritten)
    assert untouched and not untouched & set(moved) and "pytorch_model.bin" not in moved
    tower = sum(len(contents[name]) for name in done.rewritten)
    small = sum(len(data) for name, data in contents.items() if not name.endswith((".safetensors", ".bin")))
    assert tower <= hub.received <= tower + 2 * small + 20_000
    assert hub.sent <= tower + 2 * small + 60_000
    card = tree["README.md"].data.decode()
    assert "- lab/llava\n" in card and 'from_pretrained("me/robust")' in card and TOKEN not in card


def test_a_repository_in_use_and_rights(hub: LoopbackHub, vlm: Path, encoder: Path) -> None:
    publish(hub, vlm, "lab/llava")
    publish(hub, encoder, "me/robust")
    with pytest.raises(ValueError, match="holds 'config.json' already|already: name a new one"):
        on_hub(hub, encoder)
    with pytest.raises(PushError, match="nothing was committed") as found:
        on_hub(hub, encoder, "you/robust")
    assert TOKEN not in str(found.value) and "you/robust" not in hub.repos


def test_a_hub_that_fails_for_a_while(hub: LoopbackHub, vlm: Path, encoder: Path) -> None:
    publish(hub, vlm, "lab/llava")
    hub.fail("POST .*/lfs-files/duplicate", status=503)
    hub.fail("POST .*/commit/main", status=500)
    assert on_hub(hub, encoder).commit == hub.repos["me/robust"].branches["main"]
    hub.fail("POST .*/commit/main", lose_answer=True)
    done = on_hub(hub, encoder, "me/second")
    repo = hub.repos["me/second"]
    assert done.commit == repo.branches["main"] and len(repo.commits) == 2
    assert Retries().tries == 6


@pytest.mark.slow
def test_bytes_of_a_merge_into_two_gigabytes(hub: LoopbackHub, tmp_path: Path) -> None:
    """The made-up checkpoint of examples/merge_memory.py: 2 GiB in 8 files, a ViT-L/14 tower in 3 of them."""
    made = runpy.run_path(str(EXAMPLES / "merge_memory.py"))
    tower = made["write_encoder"](tmp_path / "encoder", 336, False)
    vision = CLIPVisionConfig.from_pretrained(tmp_path / "encoder")
    made["write_vlm"](tmp_path / "vlm", tower, vision, 2.0, 8)
    contents = publish(hub, tmp_path / "vlm", "lab/llava")
    done = on_hub(hub, tmp_path / "encoder")
    total, changed = sum(map(len, contents.values())), sum(len(contents[name]) for name in done.rewritten)
    print(f"checkpoint {total}, files with the tower {changed}; down {hub.sent}, up {hub.received} bytes")
    assert total > 2 * 2**30 and len(done.rewritten) == 3
    assert hub.sent < changed + 200_000 and changed < hub.received < changed + 200_000
