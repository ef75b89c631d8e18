"""Conversion between open_clip and transformers: values, formats, configurations, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers.hub import online_hub
from helpers.loopback_repos import File
from helpers.open_clip_files import CONFIG, PREPROCESS, open_clip_state, tokenizer_files, write_open_clip
from helpers.tiny_clip import tiny_clip_config, tiny_processor
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from fare_hf.convert import checkpoints, convert_from_open_clip, convert_to_open_clip, converters, proof
from fare_hf.convert.open_clip_config import read_open_clip_config, write_open_clip_config
from fare_hf.convert.reference import image_features, text_features
from fare_hf.convert.spec import ClipSpec, TextSpec, VisionSpec

# (name, vision width, layers, heads, mlp, pixels, patch, embedding, text width, layers, heads), as published.
SHAPES = [
    ("ViT-B-32", 768, 12, 12, 3072, 224, 32, 512, 512, 12, 8),
    ("ViT-B-16", 768, 12, 12, 3072, 224, 16, 512, 512, 12, 8),
    ("ViT-L-14", 1024, 24, 16, 4096, 224, 14, 768, 768, 12, 12),
    ("ViT-L-14-336", 1024, 24, 16, 4096, 336, 14, 768, 768, 12, 12),
    ("ViT-H-14", 1280, 32, 16, 5120, 224, 14, 1024, 1024, 24, 16),
    ("ViT-g-14", 1408, 40, 16, 6144, 224, 14, 1024, 1024, 24, 16),
    ("ViT-bigG-14", 1664, 48, 16, 8192, 224, 14, 1280, 1280, 32, 20),
]
RATIOS = {"ViT-H-14": {"head_width": 80}, "ViT-g-14": {"head_width": 88, "mlp_ratio": 4.3637}}
RATIOS["ViT-bigG-14"] = {"head_width": 104, "mlp_ratio": 4.9231}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole tiny CLIP as open_clip publishes it, with tokenizer."""
    return write_open_clip(tmp_path / "open_clip")


def published_config(shape: tuple[Any, ...]) -> dict[str, Any]:
    """The configuration as the field publishes it (no quick_gelu, no default spelled out)."""
    name, width, layers, _, _, pixels, patch, embedding, text, text_layers, heads = shape
    vision = {"image_size": pixels, "layers": layers, "width": width, "patch_size": patch} | RATIOS.get(name, {})
    tower = {"context_length": 77, "vocab_size": 49408, "width": text, "heads": heads, "layers": text_layers}
    return {"embed_dim": embedding, "vision_cfg": vision, "text_cfg": tower}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[0])
def test_published_shapes_are_read_and_written(shape: tuple[Any, ...]) -> None:
    _, width, layers, heads, mlp, pixels, patch, embedding, text, text_layers, text_heads = shape
    spec = read_open_clip_config({"model_cfg": published_config(shape)}, "test")
    assert spec.vision == VisionSpec(width, layers, heads, mlp, pixels, patch)
    assert spec.text == TextSpec(text, text_layers, text_heads, 4 * text, 77, 49408)
    assert (spec.embed_dim, spec.activation) == (embedding, "gelu")
    assert "no quick_gelu" in spec.evidence
    again = read_open_clip_config(write_open_clip_config(spec), "again")
    assert (again.vision, again.text, again.embed_dim) == (spec.vision, spec.text, embedding)


@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_clip_becomes_a_clip_model(folder: Path, tmp_path: Path, quick: bool) -> None:
    write_open_clip(folder, quick_gelu=quick)
    done = convert_from_open_clip(folder, tmp_path / "out")
    assert done.format == "CLIPModel" and done.tokenizer and set(done.differences) == {"image", "hidden", "text"}
    assert done.activation == ("quick_gelu" if quick else "gelu")
    model = CLIPModel.from_pretrained(done.folder)
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == done.activation
    spec = read_open_clip_config(CONFIG | {"quick_gelu": quick}, "test")
    pixels, ids = torch.randn(3, 3, 32, 32), torch.tensor([[5, 7, 22, 0, 0], [4, 22, 1, 1, 1]])
    expected, _ = image_features(open_clip_state(), spec, pixels)
    with torch.no_grad():
        assert torch.allclose(model.get_image_features(pixels).pooler_output, expected, atol=1e-5)
        found = model.get_text_features(ids).pooler_output
    assert torch.allclose(found, text_features(open_clip_state(), spec, ids), atol=1e-5)


def test_vision_classes_load_from_a_converted_clip(folder: Path, tmp_path: Path) -> None:
    done = convert_from_open_clip(folder, tmp_path / "out")
    for cls in (CLIPVisionModelWithProjection, CLIPVisionModel):
        model, info = cls.from_pretrained(done.folder, output_loading_info=True)
        assert not info["missing_keys"]
    names = {path.name for path in done.folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    processor = AutoImageProcessor.from_pretrained(done.folder)
    assert list(processor.image_mean) == PREPROCESS["mean"] and processor.crop_size["height"] == 32


def test_there_and_back_is_equal_to_the_bit(folder: Path, tmp_path: Path) -> None:
    convert_from_open_clip(folder, tmp_path / "hf")
    done = convert_to_open_clip(tmp_path / "hf", tmp_path / "back")
    assert done.format == "open_clip" and done.tokenizer
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert back.keys() == open_clip_state().keys()
    assert all(torch.equal(tensor, open_clip_state()[name]) for name, tensor in back.items())
    content = json.loads((tmp_path / "back" / "open_clip_config.json").read_text())
    before, after = (read_open_clip_config(config, "x") for config in ({"model_cfg": CONFIG}, content))
    assert (before.vision, before.text) == (after.vision, after.text)
    assert content["preprocess_cfg"] == PREPROCESS
    assert content["model_cfg"]["quick_gelu"] is True
    assert content["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "hf"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_stay(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    write_open_clip(folder, dtype=dtype)
    convert_from_open_clip(folder, tmp_path / "hf")
    assert CLIPModel.from_pretrained(tmp_path / "hf").dtype == dtype
    convert_to_open_clip(tmp_path / "hf", tmp_path / "back")
    back = load_file(tmp_path / "back" / "open_clip_model.safetensors")
    assert all(torch.equal(tensor, open_clip_state()[name].to(dtype)) for name, tensor in back.items())


def test_sharded_weights_load(folder: Path, tmp_path: Path) -> None:
    convert_from_open_clip(folder, tmp_path / "one")
    convert_from_open_clip(folder, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) > 2
    one, many = (CLIPModel.from_pretrained(tmp_path / name).state_dict() for name in ("one", "many"))
    assert all(torch.equal(tensor, many[name]) for name, tensor in one.items())


def visual_file(path: Path, **changes: torch.Tensor) -> Path:
    """A vision tower alone, as RobustVLM saves it."""
    names = {n.removeprefix("visual."): t for n, t in open_clip_state().items() if n.startswith("visual.")}
    torch.save(names | changes, path)
    return path


def test_a_bare_visual_file_takes_the_rest_from_its_base(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    file = visual_file(tmp_path / "fare4.pt")
    for number, base in enumerate((folder, folder / "open_clip_config.json", clip_folder)):
        done = convert_from_open_clip(file, tmp_path / f"out{number}", base=base)
        assert done.format == "CLIPVisionModelWithProjection" and done.activation == "quick_gelu"
        assert str(base) in done.evidence and set(done.differences) == {"image", "hidden"}
        model, info = CLIPVisionModelWithProjection.from_pretrained(done.folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(model.visual_projection.weight, open_clip_state()["visual.proj"].t())


def test_visual_only(folder: Path, tmp_path: Path) -> None:
    done = convert_from_open_clip(folder, tmp_path / "hf", visual_only=True)
    assert done.format == "CLIPVisionModelWithProjection" and not (done.folder / "tokenizer.json").exists()
    back = convert_to_open_clip(done.folder, tmp_path / "back")
    assert back.format == "open_clip visual"
    found = load_file(tmp_path / "back" / "visual.safetensors")
    assert all(torch.equal(tensor, open_clip_state()["visual." + name]) for name, tensor in found.items())
    again = convert_from_open_clip(tmp_path / "back", tmp_path / "again")
    assert again.format == "CLIPVisionModelWithProjection"


def test_an_encoder_gets_the_text_tower_of_its_base(clip_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    CLIPVisionModelWithProjection(tiny_clip_config().vision_config).save_pretrained(tmp_path / "robust")
    done = convert_to_open_clip(tmp_path / "robust", tmp_path / "out", base=clip_folder)
    assert done.format == "open_clip" and done.tokenizer and "text" in done.differences
    state = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    robust = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "robust")
    base = CLIPModel.from_pretrained(clip_folder)
    assert torch.equal(state["visual.proj"], robust.visual_projection.weight.t())
    assert torch.equal(state["token_embedding.weight"], base.text_model.embeddings.token_embedding.weight)
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["text_cfg"]["pool_type"] == "eos" and config["model_cfg"]["text_cfg"]["eos_id"] == 3


def test_custom_text_and_older_layouts(folder: Path, tmp_path: Path) -> None:
    renamed = {n if n.startswith(("visual.", "logit")) else f"text.{n}": t for n, t in open_clip_state().items()}
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": {f"module.{n}": t for n, t in renamed.items()}}, folder / "open_clip_pytorch_model.bin")
    assert convert_from_open_clip(folder, tmp_path / "out").format == "CLIPModel"
    assert torch.equal(
        CLIPModel.from_pretrained(tmp_path / "out").text_projection.weight, open_clip_state()["text_projection"].t()
    )


def test_mixed_dtypes_are_widened(folder: Path, tmp_path: Path) -> None:
    mixed = {n: t if "ln_" in n else t.half() for n, t in open_clip_state().items()}
    save_file(mixed, folder / "open_clip_model.safetensors")
    convert_from_open_clip(folder, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["visual_projection.weight"], mixed["visual.proj"].float().t())


def test_a_repository_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, offline, over a cache laid out as a download leaves it."""
    # The client binds the cache's place at import: hand it over.
    for name in ("hf_hub_download", "try_to_load_from_cache"):
        monkeypatch.setattr(checkpoints, name, partial(getattr(huggingface_hub, name), cache_dir=tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "cache" / "models--chs20--fare4-clip"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / ("a" * 40))
    done = convert_from_open_clip("chs20/fare4-clip", tmp_path / "out")
    assert done.format == "CLIPModel" and done.tokenizer
    with pytest.raises(OSError, match="'nobody/nothing' is not a folder here"):
        convert_from_open_clip("nobody/nothing", tmp_path / "none")


def test_repositories_over_http(
    folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unmodified client against a Hub on this machine: sources and bases, a missing repository and revision."""
    file, name = visual_file(tmp_path / "fare4.pt"), "chs20/fare4-clip"
    with online_hub(monkeypatch, tmp_path / "cache") as hub:
        for repo_id, source in ((name, folder), ("openai/clip", clip_folder)):
            files = {path.name: File(path.read_bytes(), path.suffix == ".safetensors") for path in source.iterdir()}
            hub.stored |= {file.sha256: file.data for file in files.values() if file.lfs}
            repo = hub.create(repo_id)
            repo.branches["main"] = repo.add(files, None)
        assert convert_from_open_clip(name, tmp_path / "clip").format == "CLIPModel"
        visual = convert_from_open_clip(file, tmp_path / "visual", base=name)
        assert visual.format == "CLIPVisionModelWithProjection"
        assert convert_from_open_clip(file, tmp_path / "other", base="openai/clip").activation == "quick_gelu"
        assert convert_to_open_clip("openai/clip", tmp_path / "back").tokenizer
        with pytest.raises(OSError, match=rf"not give '{name}' \(HTTP 404\): check the name, the revision"):
            convert_from_open_clip(name, tmp_path / "x", revision="none")
        with pytest.raises(OSError, match=r"does not give 'me/none' \(HTTP 40"):
            convert_from_open_clip("me/none", tmp_path / "x", base="me/none")
    assert not (tmp_path / "x").exists()


def test_nothing_is_written_when_the_models_differ(
    folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One block's norm is off by 1e-3 after the renaming: both directions notice and leave nothing behind."""
    honest = {name: getattr(converters, name) for name in ("from_open_clip", "to_open_clip")}

    def spoiled(name: str) -> Callable[[Any, ClipSpec], dict[str, torch.Tensor]]:
        def rename(state: Any, spec: ClipSpec) -> dict[str, torch.Tensor]:
            found = honest[name](state, spec)
            key = next(key for key in found if key.endswith(("0.layer_norm1.weight", "resblocks.0.ln_1.weight")))
            return found | {key: found[key] * 1.001}

        return rename

    for name in honest:
        monkeypatch.setattr(converters, name, spoiled(name))
    for convert, source in ((convert_from_open_clip, folder), (convert_to_open_clip, clip_folder)):
        with pytest.raises(ValueError, match="differ by .* nothing was written"):
            convert(source, tmp_path / "place" / "out")
        assert not list((tmp_path / "place").iterdir())


def test_a_wrong_activation_is_seen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The yardstick knows gelu from quick_gelu."""
    done = convert_from_open_clip(folder, tmp_path / "out")
    other = read_open_clip_config(CONFIG | {"quick_gelu": False}, "test")
    with pytest.raises(ValueError, match="differ"):
        proof.prove(CLIPModel.from_pretrained(done.folder), open_clip_state(), other)


def test_an_absent_quick_gelu_is_said_and_can_be_given(folder: Path, tmp_path: Path) -> None:
    write_open_clip(folder, quick_gelu=None)
    done = convert_from_open_clip(folder, tmp_path / "default")
    assert done.activation == "gelu" and "no quick_gelu" in str(done)
    done = convert_from_open_clip(folder, tmp_path / "given", activation="quick_gelu")
    assert done.activation == "quick_gelu" and "given by the caller" in str(done)


def test_squash_and_bilinear_survive_the_round(folder: Path, tmp_path: Path) -> None:
    images = PREPROCESS | {"interpolation": "bilinear", "resize_mode": "squash", "mean": [0.5, 0.5, 0.5]}
    write_open_clip(folder, preprocess=images)
    convert_from_open_clip(folder, tmp_path / "hf")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hf")
    assert processor.do_center_crop is False and dict(processor.size)["height"] == 32
    convert_to_open_clip(tmp_path / "hf", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "open_clip_config.json").read_text())["preprocess_cfg"] == images


def test_an_absent_tokenizer_is_said(folder: Path, tmp_path: Path) -> None:
    for name in tokenizer_files(folder):
        (folder / name).unlink()
    done = convert_from_open_clip(folder, tmp_path / "out")
    assert not done.tokenizer and "tokenizer: none" in str(done)


def test_processors_do_the_same(folder: Path, tmp_path: Path) -> None:
    """Resize of the shortest side, centre crop, normalise: against the transform's definition on a wide picture."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    convert_from_open_clip(folder, tmp_path / "out")
    found = AutoImageProcessor.from_pretrained(tmp_path / "out")(picture, return_tensors="pt")["pixel_values"][0]
    resized = picture.resize((53, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32))
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(PREPROCESS[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(found, (expected - mean) / std, atol=1e-5)


def test_processor_that_open_clip_lacks(clip_folder: Path, tmp_path: Path) -> None:
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "hf")
    with pytest.raises(ValueError, match="has no preprocessor_config.json"):
        convert_to_open_clip(tmp_path / "hf", tmp_path / "out")
    processor = tiny_processor()
    processor.size = {"shortest_edge": 40}
    processor.save_pretrained(tmp_path / "hf")
    with pytest.raises(ValueError, match="no counterpart in open_clip at 32 px"):
        convert_to_open_clip(tmp_path / "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
