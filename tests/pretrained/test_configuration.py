"""A configuration or image processor of a stranger: used, or refused in one sentence, before a model is built."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.hub import save
from helpers.tiny_clip import tiny_clip_config, tiny_processor, tiny_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import CLIPModel

from fare_hf.cli import main as cli
from fare_hf.convert import convert_to_open_clip
from fare_hf.encoders import check_encoder_type, load_encoder, text_classifier
from fare_hf.hub.push.folder import check_loads, read_folder
from fare_hf.pretrained.configuration import (
    check_image_processor,
    configuration_from,
    load_image_processor,
    read_configuration,
    read_json_object,
)
from fare_hf.pretrained.loading import load_vlm
from fare_hf.training.estimate import encoder_config

NAN = float("nan")
DEEP = '{"vision_config":' * 20_000 + "1" + "}" * 20_000
BAD: list[tuple[str, Any]] = [
    *(("hidden_size", value) for value in (0, -1, "a", [32], 3.5, None, True, 10**9, NAN)),
    *(("num_attention_heads", value) for value in (0, 3, -4, "4", 2.0)),
    *(("num_hidden_layers", value) for value in (0, -1, [3], "x", 10**7)),
    *(("patch_size", value) for value in (0, -8, 64, [8, 8], "8", [8, 8, 8])),
    *(("image_size", value) for value in (0, -1, "q", [32, 32], 1.5, {}, 10**9)),
    *(("intermediate_size", value) for value in (0, -3, 65, 10**9)),
    *(("num_channels", value) for value in (0, 1, "x")),
    *(("projection_dim", value) for value in (0, -1, None, "x")),
    *(("hidden_act", value) for value in ("nope", 3, None, [])),
    *(("dtype", value) for value in ("nope", 3, "int8", "nn", [])),
    *(("layer_norm_eps", value) for value in ("a", None, -1.0, NAN, 0)),
    *(("attention_dropout", value) for value in ("a", 5.0, NAN)),
    *(("initializer_range", value) for value in ("x", -1.0)),
    *(("model_type", value) for value in (None, 3, [], {}, "nope", "bert")),
    *(("architectures", value) for value in (3, "x", [3])),
    *(("attn_implementation", value) for value in ("user/kernels", "nope")),
    ("id2label", 3),
    ("vision_config", 3),
    ("configuration_files", ["config.4.0.0.json"]),
    ("output_hidden_states", "x"),
    ("return_dict", False),
]
TEXTS = {"empty": "", "list": "[]", "number": "NaN", "no utf-8": "\udcff", "deep": DEEP, "deep list": "[" * 100_000}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as it is published."""
    return save(tmp_path_factory.mktemp("encoder") / "fare4")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def edit(folder: Path, field: str, value: Any, file: str = "config.json") -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, field: value}))


def refusal(run: Callable[[], object], limit: float = 5.0) -> str:
    """The one sentence, given in time; whatever else is raised is a traceback for a user."""
    begin = time.perf_counter()
    with pytest.raises((ValueError, OSError)) as found:
        run()
    assert time.perf_counter() - begin < limit
    text = " ".join(str(found.value).split())
    assert len(text) < 900, text
    return text


@pytest.mark.parametrize(("field", "value"), BAD, ids=lambda part: str(part)[:20])
def test_a_field_that_no_encoder_has(folder: Path, field: str, value: Any) -> None:
    edit(folder, field, value)
    text = refusal(lambda: load_encoder(str(folder)))
    told = {  # the library's words, or what the weights say
        "intermediate_size": "asks for (65, 32)",
        "num_channels": "asks for (32, 1, 8, 8)",
        "id2label": "config.json",
        "model_type": "is a 'bert' model",
        "return_dict": "cannot answer an image",
        "output_hidden_states": "cannot answer an image",
    }
    assert field in text or told[field] in text, text
    refusal(lambda: (read_folder(folder, "me/x"), check_loads(folder)))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_configuration(folder: Path, text: str) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        path = folder / name
        before = path.read_bytes()
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        loaders = {
            "config.json": lambda: load_encoder(str(folder)),
            "preprocessor_config.json": lambda: load_image_processor(str(folder)),
        }
        refusal(loaders[name])
        assert name in refusal(lambda path=path: read_json_object(path))  # type: ignore[misc]
        path.write_bytes(before)


def test_a_file_beyond_any_models_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert "is larger than 16 MiB" in refusal(lambda: read_json_object(path), 1.0)


@pytest.mark.parametrize(
    "size",
    [
        {"num_hidden_layers": 1000, "hidden_size": 2**17, "intermediate_size": 2**20},  # 3.2e14 parameters
        {"num_hidden_layers": 900, "hidden_size": 1024},  # a gigabyte, which would be made at random
        {"image_size": 2**14, "patch_size": 1},
    ],
)
def test_a_model_beyond_its_weights_is_not_built(folder: Path, size: dict[str, int]) -> None:
    (folder / "fare_hf.json").unlink()
    for field, value in size.items():
        edit(folder, field, value)
    text = refusal(lambda: load_encoder(str(folder)), 1.0)
    assert "parameters" in text or "does not divide" in text


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 0), ("num_hidden_layers", 10**7), ("patch_size", -8)])
@pytest.mark.parametrize("command", ["push", "swap", "convert", "train", "estimate", "merge", "attack", "evaluate"])
def test_every_command_line_refuses_it(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any, command: str, field: str, value: Any
) -> None:
    edit(folder, field, value)
    out, here = str(tmp_path_factory.mktemp("out") / "new"), str(folder)
    words = {
        "push": [here, "me/x"],
        "swap": [here, here, "--output_dir", out],
        "convert": [here, "--output_dir", out, "--to", "open_clip"],
        "train": ["--model", here, "--dataset", "lab:drawings", "--output_dir", out, "--eps", "4/255", "--use_cpu"],
        "estimate": ["--model", here],
        "merge": [here, here, "--output_dir", out],
        "attack": [here, "--dataset", "lab:twemoji", "--output_dir", out],
        "evaluate": [here, "--output_dir", out],
    }[command]
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(SystemExit) as found:
        cli.main([command, *words])
    assert field in str(found.value) and len(str(found.value).splitlines()) == 1, found.value


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from([10**7, 2**31, 10**30, -(10**12)]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["gelu", "float16", "clip", "siglip", "bert", "sdpa", "a/b"]),
    st.lists(st.integers(-2, 40), max_size=3),
    st.dictionaries(st.sampled_from(["hidden_size", "model_type", "a"]), st.integers(-2, 40), max_size=2),
)
CASES = int(os.environ.get("FARE_HF_FUZZ", "40"))  # 1,000 of each were tried
FIELDS = [*tiny_clip_config().vision_config.to_dict(), "vision_config", "text_config", "torch_dtype", "auto_map"]


@settings(max_examples=CASES, deadline=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=4))
def test_no_configuration_ends_in_a_traceback(folder: Path, saved: Path, changes: dict[str, Any]) -> None:
    content = {**json.loads((saved / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps(content))
    try:
        model = load_encoder(str(folder))
    except (ValueError, OSError, TypeError) as error:
        assert len(" ".join(str(error).split())) < 900
    else:
        with torch.no_grad():
            answer = model(pixel_values=torch.rand(1, 3, 32, 32)).image_embeds
        assert bool(answer.isfinite().all()) and sum(p.numel() for p in model.parameters()) < 100_000


@settings(max_examples=CASES, deadline=5_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from([*tiny_processor().to_dict()]), values, min_size=1, max_size=3))
def test_no_image_processor_ends_in_a_traceback(folder: Path, saved: Path, changes: dict[str, Any]) -> None:
    content = {**json.loads((saved / "preprocessor_config.json").read_text()), **changes}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    try:
        found = load_image_processor(str(folder), tiny_clip_config())
    except (ValueError, OSError, TypeError) as error:
        assert len(" ".join(str(error).split())) < 900
    else:
        check_image_processor(found, "it", tiny_clip_config())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_std", value) for value in ([0, 0, 0], [-1, 1, 1], [NAN, 1, 1], [1, 1], 0, "x", [[1], 1, 1])),
        *(("image_std", [value] * 3) for value in (1e-300, 1e30)),
        ("image_mean", [1e30, 0, 0]),
        *(("rescale_factor", value) for value in (0, 1e8)),
        *(("image_mean", value) for value in ([NAN, 0, 0], [float("inf"), 0, 0], [0, 0], [True, 0, 0])),
        ("crop_size", {"height": 224, "width": 224}),
        ("crop_size", {"height": 0, "width": 32}),
        ("crop_size", {"height": -32, "width": 32}),
        ("size", {"shortest_edge": 0}),
        ("rescale_factor", NAN),
    ],
)
def test_an_image_processor_that_no_encoder_can_use(folder: Path, field: str, value: Any) -> None:
    edit(folder, field, value, "preprocessor_config.json")
    config = read_configuration(str(folder))
    text = refusal(lambda: load_image_processor(str(folder), config))
    assert (field if value != {"height": 224, "width": 224} else "224 x 224") in text
    assert "preprocessor_config.json" in refusal(lambda: read_folder(folder, "me/x"))


def test_no_dinov2_is_refused_for_two_sides() -> None:
    sides = {
        "model_type": "dinov2",
        "image_size": [32, 48],
        "patch_size": 8,
        "hidden_size": 32,
        "num_attention_heads": 4,
    }
    assert configuration_from(sides, "it").image_size == [32, 48]


def test_a_tokenizer_of_another_text_encoder(clip_folder: Path) -> None:
    clip, tokenizer = CLIPModel.from_pretrained(clip_folder).eval(), tiny_tokenizer()
    text_classifier(clip, tokenizer, ["cat"], ["a photo of a {}"])
    more = tiny_tokenizer()
    more.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="gives the id 23, and the text encoder of .* has vocab_size 23"):
        text_classifier(clip, more, ["zebra"], ["a photo of a {}"])
    clip.config.text_config.eos_token_id = 7
    with pytest.raises(ValueError, match="ends no text with the id 7"):
        text_classifier(clip, tokenizer, ["cat"], ["cat {}"])


def test_what_checks_the_type_and_what_loads_a_vlm_refuse_it_too(folder: Path, tmp_path_factory: Any) -> None:
    edit(folder, "num_hidden_layers", -1)
    for run in (check_encoder_type, load_vlm, encoder_config):
        assert "num_hidden_layers -1" in refusal(lambda run=run: run(str(folder)))  # type: ignore[misc]
    out = tmp_path_factory.mktemp("out") / "new"
    assert "num_hidden_layers -1" in refusal(lambda: convert_to_open_clip(str(folder), out))
