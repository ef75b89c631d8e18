"""What a conversion refuses: one clear sentence, and nothing written."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.open_clip_files import CONFIG, open_clip_state, write_open_clip
from helpers.refused_conversions import Code, refused
from helpers.tiny_clip import tiny_clip_config
from safetensors.torch import save_file
from transformers import BertConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from fare_hf.cli import main as cli
from fare_hf.convert import convert_from_open_clip, convert_to_open_clip
from fare_hf.convert.open_clip_config import read_open_clip_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_open_clip(tmp_path / "open_clip")


def test_files_that_hold_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"class_embedding": torch.zeros(2), "x": Code()}, "code.pt")
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), "script.pt")
    for name, sentence in (("code", "holds code"), ("module", "holds code"), ("script", "TorchScript archive")):
        refused(sentence, f"{name}.pt", tmp_path / "out", base=folder)
    assert not Path("it-ran").exists()


def test_files_that_are_no_vision_tower(folder: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "file.pt", tmp_path / "out"
    contents = [
        (open_clip_state(), "state dict of a whole CLIP"),
        ({"fc.weight": torch.zeros(2)}, "not the state dict of an open_clip ViT.*'fc.weight'"),
        ({"vision_model.x": torch.zeros(2)}, "names of transformers already"),
        (torch.zeros(2), "holds Tensor, not a state dict"),
        ({"class_embedding": 3, "conv1.weight": torch.zeros(2)}, "holds int under 'class_embedding'"),
        ({}, "not a state dict"),
    ]
    for content, sentence in contents:
        torch.save(content, file)
        refused(sentence, file, out, base=folder)
    file.write_bytes(file.read_bytes()[:100])
    refused("not a readable checkpoint", file, out, base=folder)
    file.write_bytes(b"")
    refused("not a readable checkpoint", file, out, base=folder)
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    refused("not a readable safetensors", tmp_path / "cut.safetensors", out, base=folder)
    refused("there is no file", tmp_path / "absent.pt", out, base=folder)


def test_another_shape(folder: Path, tmp_path: Path) -> None:
    names = {n.removeprefix("visual."): t for n, t in open_clip_state().items() if n.startswith("visual.")}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"proj": torch.zeros(32, 20)}, r"'visual.proj' has shape \(32, 20\) .* \(32, 16\) in the configuration"),
        ({"attnpool.weight": torch.zeros(2)}, "holds 'visual.attnpool.weight'"),
        ({"ln_pre.bias": torch.full((32,), float("nan"))}, "'visual.ln_pre.bias' holds NaN"),
    ]
    for change, sentence in changes:
        torch.save(names | change, tmp_path / "file.pt")
        refused(sentence, tmp_path / "file.pt", tmp_path / "out", base=folder)
    del names["ln_post.bias"]
    torch.save(names, tmp_path / "file.pt")
    refused("has no 'visual.ln_post.bias'", tmp_path / "file.pt", tmp_path / "out", base=folder)


def test_what_weights_do_not_say(folder: Path, tmp_path: Path) -> None:
    names = {n.removeprefix("visual."): t for n, t in open_clip_state().items() if n.startswith("visual.")}
    save_file(names, tmp_path / "visual.safetensors")
    refused("do not say the activation", tmp_path / "visual.safetensors", tmp_path / "out")
    config = json.loads((folder / "open_clip_config.json").read_text())
    del config["preprocess_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused("has no preprocess_cfg", folder, tmp_path / "out")
    (folder / "open_clip_config.json").write_text("{")
    refused("not valid JSON", folder, tmp_path / "out")
    (folder / "open_clip_config.json").unlink()
    refused("holds no open_clip_config.json", folder, tmp_path / "out")
    write_open_clip(folder)
    (folder / "open_clip_model.safetensors").unlink()
    refused("holds no weights", folder, tmp_path / "out")


def test_a_text_tower_is_never_dropped_in_silence(folder: Path, tmp_path: Path) -> None:
    """Of a CLIP with another library's text tower only the visual converts, and only when that is asked for."""
    state = {n: t for n, t in open_clip_state().items() if n.startswith(("visual.", "logit"))}
    save_file(state | {"text.transformer.embeddings.weight": torch.zeros(2)}, folder / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "roberta-base"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused("hf_model_name is 'roberta-base'.*convert the visual only", folder, tmp_path / "out")
    assert convert_from_open_clip(folder, tmp_path / "out", visual_only=True).format == "CLIPVisionModelWithProjection"


def test_activations(folder: Path, tmp_path: Path) -> None:
    refused("activation 'relu' is unknown", folder, tmp_path / "out", activation="relu")
    refused("'gelu' was given, but .* has quick_gelu true", folder, tmp_path / "out", activation="gelu")


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "timm_model_name is 'convnext_base'"),
        ("vision_cfg", {"pool_type": "avg"}, "pool_type is 'avg'"),
        ("vision_cfg", {"ls_init_value": 0.1}, "ls_init_value is 0.1"),
        ("vision_cfg", {"no_ln_pre": True}, "no_ln_pre is True"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"layers is \[3, 4, 6, 3\]"),
        ("vision_cfg", {"image_size": [32, 48]}, "image_size is"),
        ("vision_cfg", {"new_field": 1}, "'new_field' is unknown"),
        ("vision_cfg", {"norm_kwargs": {"bias": False}}, "norm_kwargs"),
        ("vision_cfg", {"act_kwargs": {"approximate": "tanh"}}, "act_kwargs is"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "hf_model_name is 'roberta-base'"),
        ("text_cfg", {"pool_type": "last"}, "pool_type 'last'"),
        ("text_cfg", {"no_causal_mask": True}, "no_causal_mask is True"),
        (None, {"quick_gelu": "yes"}, "quick_gelu is 'yes'"),
        (None, {"init_logit_bias": -10}, "init_logit_bias is -10"),
        (None, {"embed_dim": None}, "embed_dim is None"),
        (None, {"vision_cfg": None}, "has no vision_cfg"),
    ],
)
def test_configurations_without_counterpart(part: str | None, change: dict[str, Any], sentence: str) -> None:
    model = CONFIG | change if part is None else CONFIG | {part: CONFIG[part] | change}
    with pytest.raises(ValueError, match=sentence):
        read_open_clip_config({"model_cfg": model}, "the file")


def test_inference_neutral_fields_pass() -> None:
    vision = CONFIG["vision_cfg"] | {
        "patch_dropout": 0.5,
        "timm_model_name": "",
        "pool_type": "tok",
        "ls_init_value": None,
    }
    text = CONFIG["text_cfg"] | {"hf_tokenizer_name": "x/y", "pad_id": 1, "norm_kwargs": {"eps": 1e-6}}
    spec = read_open_clip_config({"model_cfg": CONFIG | {"vision_cfg": vision, "text_cfg": text}}, "the file")
    assert spec.vision == read_open_clip_config(CONFIG, "x").vision
    assert spec.text is not None and spec.text.eps == 1e-6


def test_what_open_clip_cannot_hold(clip_folder: Path, flat_vision_folder: Path, tmp_path: Path) -> None:
    config = tiny_clip_config().vision_config.to_dict()
    CLIPVisionModelWithProjection(CLIPVisionConfig(**config | {"hidden_act": "gelu_new"})).save_pretrained(
        tmp_path / "a"
    )
    CLIPVisionModelWithProjection(CLIPVisionConfig(**config | {"projection_dim": 8})).save_pretrained(tmp_path / "p")
    BertConfig().save_pretrained(tmp_path / "bert")
    (tmp_path / "empty").mkdir()
    cases = [
        (tmp_path / "a", None, "hidden_act is 'gelu_new'"),
        (tmp_path / "p", clip_folder, "embed_dim 8 and the base .* 16"),
        (flat_vision_folder, None, "has no visual projection"),
        (tmp_path / "bert", None, "is a 'bert' model"),
        (tmp_path / "empty", None, "holds no config.json"),
    ]
    for source, base, sentence in cases:
        with pytest.raises(ValueError, match=sentence) as error:
            convert_to_open_clip(source, tmp_path / "out", base=base)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_folders_in_use(folder: Path, clip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    refused("is not empty", folder, tmp_path / "full")
    refused("is a file", folder, tmp_path / "full" / "mine")
    with pytest.raises(ValueError, match="is not empty"):
        convert_to_open_clip(clip_folder, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    convert_from_open_clip(folder, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_disk_full(folder: Path, tmp_path: Path) -> None:
    """This process may write 10 kB a file for a moment: the operating system refuses, and nothing is left behind."""
    (tmp_path / "place").mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(SystemExit, match="fare-hf: error: .*could not be written") as error:
            cli.main(["convert", str(folder), "--output_dir", str(tmp_path / "place" / "out"), "--to", "transformers"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and not list((tmp_path / "place").iterdir())


def test_command_both_ways(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["convert", str(folder), "--output_dir", str(tmp_path / "hf"), "--to", "transformers"])
    cli.main(
        ["convert", str(tmp_path / "hf"), "--output_dir", str(tmp_path / "back"), "--to", "open_clip", "--visual_only"]
    )
    out = capsys.readouterr().out
    assert "(CLIPModel)" in out and "(open_clip visual)" in out and "activation: quick_gelu" in out
    with pytest.raises(SystemExit, match="fare-hf: error: .* is not empty"):
        cli.main(["convert", str(folder), "--output_dir", str(tmp_path / "hf"), "--to", "transformers"])
    with pytest.raises(SystemExit, match="activation"):
        cli.main(
            ["convert", str(folder), "--output_dir", str(tmp_path / "x"), "--to", "open_clip", "--activation", "gelu"]
        )
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
