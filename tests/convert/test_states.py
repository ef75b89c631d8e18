"""Weights as the field released them: training dictionaries, prefixes, configurations that no CLIP can hold."""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.open_clip_files import CONFIG, PREPROCESS, open_clip_state, write_open_clip
from helpers.refused_conversions import refused
from helpers.tiny_clip import tiny_clip_config
from helpers.tiny_llava import vision_config
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPModel, CLIPVisionModelWithProjection

from fare_hf.convert import convert_from_open_clip, convert_to_open_clip, proof
from fare_hf.convert.names import open_clip_shapes
from fare_hf.convert.open_clip_config import read_open_clip_config
from fare_hf.convert.states import read_state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_open_clip(tmp_path / "open_clip")


def visual() -> dict[str, torch.Tensor]:
    """The vision tower's own names."""
    return {n.removeprefix("visual."): t for n, t in open_clip_state().items() if n.startswith("visual.")}


def optimizer_state() -> dict[str, Any]:
    """As torch saves it after a step."""
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def training(**parts: Any) -> dict[str, Any]:
    """What TeCoA's and QT-AFT's training saves beside the weights."""
    return {"epoch": 10, "best_acc1": np.mean([47.1]), "optimizer": optimizer_state(), **parts}


CHECKPOINTS: dict[str, Any] = {
    "QT-AFT": lambda: training(vision_encoder_state_dict=visual()),
    "TeCoA": lambda: training(
        state_dict={"pad_up": torch.zeros(1)}, add_prompter={}, vision_encoder_state_dict=visual()
    ),
    "state_dict": lambda: training(state_dict=visual()),
    "model": lambda: training(model={f"module.{name}": tensor for name, tensor in visual().items()}),
    "model_state_dict": lambda: training(model_state_dict=visual()),
    **{
        prefix: lambda prefix=prefix: {prefix + name: tensor for name, tensor in visual().items()}
        for prefix in (
            "model.",
            "module.",
            "module.model.",
            "visual.",
            "module.visual.",
            "_orig_mod.module.model.visual.",
        )
    },
    "OpenAI's numbers": lambda: {"module.input_resolution": 32, **{f"module.{n}": t for n, t in visual().items()}},
    "parameters": lambda: {name: torch.nn.Parameter(tensor) for name, tensor in visual().items()},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_trainings_convert(name: str, folder: Path, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[name](), tmp_path / "model_best.pth.tar")
    done = convert_from_open_clip(tmp_path / "model_best.pth.tar", tmp_path / "out", base=folder)
    model = CLIPVisionModelWithProjection.from_pretrained(done.folder)
    assert torch.equal(model.visual_projection.weight, open_clip_state()["visual.proj"].t())
    assert done.format == "CLIPVisionModelWithProjection"


def test_prefixes_in_safetensors(folder: Path, tmp_path: Path) -> None:
    save_file({f"module.model.{n}": t for n, t in visual().items()}, tmp_path / "x.safetensors")
    assert read_state(tmp_path / "x.safetensors").keys() == visual().keys()


def test_a_training_s_checkpoint_swaps(tmp_path: Path) -> None:
    """The tower says what the file does not."""
    from fare_hf.convert.names import to_open_clip
    from fare_hf.convert.transformers_config import read_transformers_config
    from fare_hf.vlm.swap.encoder_files import read_encoder

    torch.manual_seed(0)
    config = vision_config()
    model: Any = CLIPVisionModelWithProjection(config)
    state = to_open_clip(dict(model.state_dict()), read_transformers_config(config, "test", text=False))
    torch.save(
        training(vision_encoder_state_dict={f"module.{n}": t for n, t in state.items()}), tmp_path / "a.pth.tar"
    )
    found = read_encoder(tmp_path / "a.pth.tar", config)
    assert found.converted and torch.equal(
        found.module.state_dict()["post_layernorm.weight"], model.vision_model.post_layernorm.weight
    )


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (argparse.Namespace(lr=1e-5), r"\(argparse.Namespace\)"),
        (torch.optim.SGD([torch.zeros(1)], lr=0.1), r"\(torch.optim.sgd.SGD\)|\("),
        (np.array([47.1]), r"\(numpy"),
    ],
)
def test_objects_in_a_training_dictionary(part: Any, named: str, folder: Path, tmp_path: Path) -> None:
    torch.save(training(vision_encoder_state_dict=visual(), args=part), tmp_path / "a.pt")
    refused(
        f"holds code or objects besides tensors {named}.*is not loaded: where you trust it",
        tmp_path / "a.pt",
        tmp_path / "out",
        base=folder,
    )


def test_a_number_of_numpy_is_no_weight_and_changes_nothing_of_numpy(folder: Path, tmp_path: Path) -> None:
    """`numpy.dtype` and `scalar` of a pickle are stand-ins: a pickle cannot change numpy's own float64."""

    class Changed:
        def __reduce__(self) -> tuple[Any, ...]:
            return np.dtype, ("f8", False, False), (3, ">", None, None, None, -1, -1, 0)

    torch.save(training(vision_encoder_state_dict=visual(), best=Changed()), tmp_path / "a.pt")
    convert_from_open_clip(tmp_path / "a.pt", tmp_path / "out", base=folder)
    assert np.dtype("f8").isnative and np.float64(1.5).tobytes() == struct.pack("=d", 1.5)
    torch.save(visual() | {"ln_pre.bias": np.float64(1)}, tmp_path / "b.pt")
    refused("holds NumpyNumber under 'ln_pre.bias', not a tensor", tmp_path / "b.pt", tmp_path / "b", base=folder)


def test_tensors_that_are_no_plain_weights(folder: Path, tmp_path: Path) -> None:
    """A few bytes that stand for gigabytes, a sparse one, whole numbers."""
    cases = [
        (torch.zeros(1).expand(32), "'ln_pre.bias' that repeat fewer stored ones"),
        (torch.zeros(1).expand(1 << 40), "'ln_pre.bias' that repeat fewer stored ones"),
        (torch.zeros(32).to_sparse(), "sparse, quantised or empty tensor under 'ln_pre.bias'"),
        (torch.empty(32, device="meta"), "sparse, quantised or empty tensor under 'ln_pre.bias'"),
        (torch.ones(32, dtype=torch.int8), r"'visual.ln_pre.bias' is quantised \(torch.int8\)"),
    ]
    for tensor, sentence in cases:
        torch.save(visual() | {"ln_pre.bias": tensor}, tmp_path / "a.pt")
        refused(sentence, tmp_path / "a.pt", tmp_path / "out", base=folder)


def test_files_that_are_no_files(folder: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    refused("there is no file", tmp_path / "pipe.pt", tmp_path / "out", base=folder)
    torch.save(visual(), tmp_path / "a.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    refused("b.pt' is compressed", tmp_path / "b.pt", tmp_path / "out", base=folder)
    (folder / "open_clip_config.json").unlink()
    os.mkfifo(folder / "open_clip_config.json")
    refused("holds no open_clip_config.json", folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"])
def test_links_that_leave_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused("a link to .* outside of it", folder, tmp_path / "out")


DELTA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}


@pytest.mark.parametrize("names", [("no_ln_pre",), ("pool_type",), tuple(DELTA)])
def test_configurations_of_delta_clip_say_that_no_clip_can_hold_them(
    names: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"] |= {name: DELTA[name] for name in names}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    refused(f"{names[0]} is .*no CLIPVisionModel can hold this model", folder, tmp_path / "out")


def test_a_last_norm_behind_the_pooling_of_the_class_token_is_held_exactly(folder: Path, tmp_path: Path) -> None:
    """Written out as open_clip has it with `final_ln_after_pool`: first pooled, then normalised."""
    config = copy.deepcopy(CONFIG)
    config["vision_cfg"]["final_ln_after_pool"] = True
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    done = convert_from_open_clip(folder, tmp_path / "out")
    model: Any = CLIPModel.from_pretrained(done.folder).eval()
    state, pixels = open_clip_state(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = model.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
        pooled = F.layer_norm(tokens[:, 0], (32,), state["visual.ln_post.weight"], state["visual.ln_post.bias"])
        found = model.get_image_features(pixels).pooler_output
    assert torch.allclose(found, pooled @ state["visual.proj"], atol=1e-5)


def test_a_folder_without_an_image_processor_takes_that_of_its_base(clip_folder: Path, tmp_path: Path) -> None:
    """As LEAF publishes its encoders."""
    CLIPModel.from_pretrained(clip_folder).save_pretrained(tmp_path / "leaf")
    with pytest.raises(ValueError, match="name the CLIP it was fine-tuned from as base") as found:
        convert_to_open_clip(tmp_path / "leaf", tmp_path / "out")
    assert "\n" not in str(found.value)
    convert_to_open_clip(tmp_path / "leaf", tmp_path / "out", base=clip_folder)
    content = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert content["preprocess_cfg"]["mean"] == pytest.approx(PREPROCESS["mean"])
    assert load_file(tmp_path / "out" / "open_clip_model.safetensors")["visual.proj"].shape == (32, 16)


@pytest.mark.parametrize("part", ["image", "hidden", "text"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_proof_fails_on_what_is_no_number(
    part: str, value: float, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where other layers are equal: Python's max(0.0, nan) is 0.0."""
    done = convert_from_open_clip(folder, tmp_path / "out")
    model: Any = CLIPModel.from_pretrained(done.folder).eval()
    spec = read_open_clip_config(CONFIG, "test")
    inside = {
        "image": model.visual_projection,
        "hidden": model.vision_model.encoder.layers[1],
        "text": model.text_projection,
    }

    def spoil(_: Any, __: Any, output: Any) -> Any:
        return output.index_fill(0, torch.tensor([0]), value)

    if part == "hidden":  # one layer alone, the last in the list: what follows it is restored
        honest = proof.image_features
        monkeypatch.setattr(
            proof, "image_features", lambda *a: (honest(*a)[0], [*honest(*a)[1][:-1], honest(*a)[1][-1] * value])
        )
    else:
        inside[part].register_forward_hook(spoil)
    with pytest.raises(ValueError, match=f"differ by (nan|inf) .* in the {part} output"):
        proof.prove(model, open_clip_state(), spec)


def test_a_folder_whose_weights_do_not_fit_its_configuration(clip_folder: Path, tmp_path: Path) -> None:
    config = tiny_clip_config()
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    content = json.loads((tmp_path / "clip" / "config.json").read_text())
    content["vision_config"]["intermediate_size"] = 128
    (tmp_path / "clip" / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="mlp.fc1") as found:
        convert_to_open_clip(tmp_path / "clip", tmp_path / "out", base=clip_folder)
    assert "\n" not in str(found.value) and len(str(found.value)) < 400


SECTIONS: dict[str, Any] = {"vision_cfg": CONFIG["vision_cfg"], "text_cfg": CONFIG["text_cfg"]}


@pytest.mark.parametrize(
    ("section", "change", "sentence"),
    [
        ("vision_cfg", {"layers": 10_000_000}, "layers is 10000000, more than any model has"),
        ("vision_cfg", {"width": 1 << 60, "head_width": 1 << 60}, "width is .* more than any"),
        ("vision_cfg", {"head_width": 12}, "2 heads of 12 do not make the width 32"),
        ("vision_cfg", {"head_width": 64}, "0 heads of 64"),
        ("vision_cfg", {"mlp_ratio": "4"}, "mlp_ratio is '4'; it must be one positive number"),
        ("vision_cfg", {"mlp_ratio": math.nan}, "mlp_ratio is nan"),
        ("vision_cfg", {"mlp_ratio": 1e-9}, "mlp_ratio is 1e-09 of a width of 32"),
        ("vision_cfg", {"norm_kwargs": [1]}, "norm_kwargs"),
        ("vision_cfg", {"norm_kwargs": {"eps": "small"}}, "eps of norm_kwargs is 'small'"),
        ("vision_cfg", {"layers": "x" * 100_000}, "layers is 'xxxx"),
        ("text_cfg", {"layers": 10_000_000}, "layers is 10000000, more than any model has"),
        ("text_cfg", {"heads": 7}, "7 heads of 4 do not make the width 32"),
    ],
)
def test_sizes_that_no_model_has(section: str, change: dict[str, Any], sentence: str) -> None:
    model = CONFIG | {section: SECTIONS[section] | change}
    with pytest.raises(ValueError, match=sentence) as found:
        read_open_clip_config({"model_cfg": model}, "the file")
    assert len(str(found.value)) < 300 and "\n" not in str(found.value)


@pytest.mark.parametrize("change", [{"std": [0.0, 0.2, 0.2]}, {"mean": ["a", 0, 0]}, {"mean": [math.nan, 0, 0]}])
def test_pixels_that_no_model_reads(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(change))} is .*; it must be one"):
        read_open_clip_config({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS | change}, "the file")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([1 << 40, -1, 0, 32]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [*CONFIG["vision_cfg"], *CONFIG["text_cfg"], "norm_kwargs", "pool_type", "eos_id", "no_ln_pre", "quick_gelu"]
CHANGES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=2)


@settings(max_examples=200, deadline=2_000)
@given(CHANGES, CHANGES, CHANGES, st.dictionaries(st.sampled_from([*PREPROCESS]), VALUES, max_size=2) | VALUES)
def test_a_configuration_is_read_or_refused(top: Any, seen: Any, text: Any, images: Any) -> None:
    """Whatever stands there; of what is read, the tensors can be counted."""
    model = CONFIG | {"vision_cfg": CONFIG["vision_cfg"] | seen, "text_cfg": CONFIG["text_cfg"] | text} | top
    content = {"model_cfg": model, "preprocess_cfg": PREPROCESS | images if isinstance(images, dict) else images}
    try:
        spec = read_open_clip_config(content, "the file")
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return
    assert all(math.prod(shape) >= 1 for shape in open_clip_shapes(spec).values())
