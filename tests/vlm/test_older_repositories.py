"""Repositories as older releases wrote them: processors that do not count tokens, LLaVA's own format, videos."""

from __future__ import annotations

import gc
import json
import warnings
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.in_process import run_command
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from helpers.tiny_vlms import TINY, onevision, onevision_processor, siglip_encoder
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaNextForConditionalGeneration

from fare_hf.hub import merge_vision_tower
from fare_hf.pretrained.configuration import configuration_from
from fare_hf.vlm import VlmLoss, family_of, generate_text, robust_pipeline, swap_vision_tower
from fare_hf.vlm.processors import complete_processor, missing_fields

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings", "ignore:'.*' has cosine")
COUNTS = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
LACKING = [
    {"patch_size": None, "vision_feature_select_strategy": None, "num_additional_image_tokens": 0},
    {"patch_size": None},
    {"vision_feature_select_strategy": None},
    {"num_additional_image_tokens": 0},  # the default of transformers, where the file says nothing
]


def lacking(fields: dict[str, Any], proc: Any | None = None) -> Any:
    proc = proc or processor()
    for name, value in fields.items():
        setattr(proc, name, value)
    return proc


@pytest.mark.parametrize("fields", LACKING)
def test_swaps_losses_and_answers_fill_what_an_older_processor_lacks(fields: dict[str, Any]) -> None:
    vlm, pixels = llava(), images(1)
    with torch.no_grad():
        expected = VlmLoss(vlm, processor(), PROMPT, ["a red cat"])(pixels)
    answer = generate_text(vlm, processor(), pixels, PROMPT)
    with pytest.warns(UserWarning, match="does not say how many tokens stand for an image: .* was taken from the"):
        with torch.no_grad():
            assert torch.equal(VlmLoss(vlm, lacking(fields), PROMPT, ["a red cat"])(pixels), expected)
    with pytest.warns(UserWarning, match="how many tokens"):
        proc = lacking(fields)
        assert generate_text(vlm, proc, pixels, PROMPT) == answer
    assert {name: getattr(proc, name) for name in COUNTS} == COUNTS
    with pytest.warns(UserWarning, match="how many tokens"):
        report = swap_vision_tower(vlm, encoder(image_size=48), lacking(fields))
    assert report.image_tokens == (16, 36)


@pytest.mark.parametrize("family", ["LlavaNext", "LlavaOnevision"])
def test_the_other_families_count_by_their_own_fields(family: str) -> None:
    vlm, proc = TINY[family].model(), TINY[family].processor()
    names = ("num_image_tokens",) if family == "LlavaOnevision" else ("patch_size", "num_additional_image_tokens")
    before = {name: getattr(proc, name) for name in names}
    with pytest.warns(UserWarning, match=f"{names[0]} {before[names[0]]}"):
        answer = generate_text(vlm, lacking(dict.fromkeys(names), proc), images(1), PROMPT)
    assert {name: getattr(proc, name) for name in names} == before
    assert answer == generate_text(vlm, TINY[family].processor(), images(1), PROMPT)


@pytest.mark.parametrize("family", sorted(TINY))
def test_complete_processors_stay_as_they_are(family: str) -> None:
    model = TINY[family].model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert complete_processor(family_of(model), model.config, TINY[family].processor()) == {}
    assert missing_fields(model.config, {}) == {}


def older_folder(folder: Path, family: str = "Llava") -> Path:
    """A LLaVA whose files name the processor's class and no counts, as those of the first releases."""
    vlm, proc = (llava(), processor()) if family == "Llava" else (TINY[family].model(), TINY[family].processor())
    vlm.save_pretrained(folder)
    proc.save_pretrained(folder)
    file = folder / "processor_config.json"
    content = json.loads(file.read_text())
    own = content.get("image_processor")
    if own is not None:  # releases of today write one file
        kind = {"processor_class": content["processor_class"]}
        (folder / "preprocessor_config.json").write_text(json.dumps({**own, **kind}))
    file.unlink()
    return folder


@pytest.mark.parametrize("family", ["Llava", "LlavaNext"])
@pytest.mark.parametrize("size", [32, 48])
def test_a_merge_writes_what_the_processor_lacked(family: str, size: int, tmp_path: Path) -> None:
    vlm = older_folder(tmp_path / "vlm", family)
    encoder(image_size=size).save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="processor_config.json is written with"):
        merged = merge_vision_tower(vlm, tmp_path / "encoder", tmp_path / "out")
    assert "processor_config.json" in merged.rewritten and not (vlm / "processor_config.json").exists()
    cls: Any = LlavaForConditionalGeneration if family == "Llava" else LlavaNextForConditionalGeneration
    model, proc = cls.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {name: getattr(proc, name) for name in COUNTS} == COUNTS
        assert generate_text(model, proc, images(1), PROMPT)


def swap_words(folder: Path) -> list[str]:
    names = {name: str(folder / name) for name in ("vlm", "encoder", "out")}
    return ["fare-hf", "swap", names["vlm"], names["encoder"], "--output_dir", names["out"]]


def test_the_command_line_saves_a_processor_that_counts(tmp_path: Path) -> None:
    older_folder(tmp_path / "vlm")
    encoder().save_pretrained(tmp_path / "encoder")
    with pytest.warns(UserWarning, match="how many tokens"):
        run_command(swap_words(tmp_path))
    assert AutoProcessor.from_pretrained(tmp_path / "out").patch_size == 8
    with pytest.warns(UserWarning, match="how many tokens"):
        made = robust_pipeline(tmp_path / "vlm", tmp_path / "encoder")
    assert made.processor.patch_size == 8


ORIGINAL = {"architectures": ["LlavaLlamaForCausalLM"], "hidden_size": 4096, "mm_vision_tower": "openai/clip"}


@pytest.mark.parametrize("kind", ["llava", "llava_llama", "llava_mistral", "llava_qwen", None])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("llava-v1.5-7b", "take 'llava-hf/llava-1.5-7b-hf', which has the same weights"),
        ("llava-v1.6-mistral-7b", "take 'llava-hf/llava-v1.6-mistral-7b-hf'"),
        ("mine", "under 'llava-hf/' .'llava-hf/llava-1.5-7b-hf' for llava-v1.5-7b., or convert weights of your own"),
    ],
)
def test_repositories_of_llavas_own_code_name_the_one_to_take(
    kind: str | None, name: str, advice: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**ORIGINAL, "model_type": kind}))
    (tmp_path / "encoder").mkdir()
    words = [str(folder), str(tmp_path / "encoder"), "--output_dir", str(tmp_path / "out")]
    for command in ("swap", "merge"):
        with pytest.raises(SystemExit) as end:
            run_command(["fare-hf", command, *words])
        message = str(end.value)
        assert message.startswith("fare-hf: error: '") and message.count("\n") == 0
        with pytest.raises(ValueError, match=f"has the format of LLaVA's own code.*{advice}"):
            raise ValueError(message)
    with pytest.raises(ValueError, match=advice):
        robust_pipeline(folder, encoder())
    assert not (tmp_path / "out").exists()


def test_the_name_that_a_copy_had_counts_too() -> None:
    with pytest.raises(ValueError, match="llava-hf/llava-1.5-13b-hf"):
        configuration_from({**ORIGINAL, "_name_or_path": "liuhaotian/llava-v1.5-13b"}, "here", "copy")


def test_a_processor_of_videos_asks_for_torchvision_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("torchvision") is not None:
        pytest.skip("torchvision is here")
    onevision().save_pretrained(tmp_path / "vlm")
    proc = onevision_processor()
    proc.tokenizer.save_pretrained(tmp_path / "vlm")
    proc.image_processor.save_pretrained(tmp_path / "vlm")
    own = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16}
    (tmp_path / "vlm" / "processor_config.json").write_text(json.dumps(own))
    siglip_encoder().save_pretrained(tmp_path / "encoder")
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", pytest.fail)
    with pytest.raises(SystemExit, match=r"reads videos too, .* needs torchvision: install .* \(pip install"):
        run_command(swap_words(tmp_path))
    with pytest.raises(ImportError, match="needs torchvision"):
        robust_pipeline(tmp_path / "vlm", tmp_path / "encoder")


def test_an_encoder_without_an_image_processor_is_normalised_as_the_model_and_says_so(tmp_path: Path) -> None:
    """As LEAF's folders are: weights and a configuration."""
    encoder().save_pretrained(tmp_path / "leaf")
    encoder().save_pretrained(tmp_path / "whole")
    processor().image_processor.save_pretrained(tmp_path / "whole")
    for proc, words in ((processor(), "normalised as by the model's own"), (None, "normalised as CLIP's usually are")):
        report = swap_vision_tower(llava(), tmp_path / "leaf", proc)
        assert f"brings no image processor: its pixels are {words}" in str(report)
    assert "image processor" not in str(swap_vision_tower(llava(), tmp_path / "whole", processor()))


def test_a_swap_that_nobody_keeps_keeps_nothing_in_memory() -> None:
    vlm = llava()
    swap_vision_tower(vlm, encoder())
    tower = weakref.ref(vlm.model.vision_tower)
    del vlm
    gc.collect()
    assert tower() is None


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        (
            "tokenizer.json",
            lambda text: text[: len(text) // 2],
            "'.*vlm' has no processor that can be read .JSONDecode",
        ),
        ("tokenizer_config.json", lambda text: "", "'.*vlm' has no processor that can be read"),
        ("processor_config.json", lambda text: text.replace("0.00392156862745098", "0"), "rescale_factor 0, which"),
        ("processor_config.json", lambda text: text[:40], "is not (a )?valid JSON"),
    ],
)
def test_damaged_files_of_a_model_are_one_sentence(file: str, change: Any, sentence: str, tmp_path: Path) -> None:
    llava().save_pretrained(tmp_path / "vlm")
    processor().save_pretrained(tmp_path / "vlm")
    encoder().save_pretrained(tmp_path / "encoder")
    path = tmp_path / "vlm" / file
    assert change(path.read_text()) != path.read_text()
    path.write_text(change(path.read_text()))
    with pytest.raises(SystemExit, match=f"^fare-hf: error: .*{sentence}") as end:
        run_command(swap_words(tmp_path))
    assert "\n" not in str(end.value) and not (tmp_path / "out").exists()


def test_a_configuration_that_names_no_layer_is_refused() -> None:
    vlm = llava()
    vlm.config.vision_feature_layer = []
    with pytest.raises(ValueError, match="vision_feature_layer is empty: name the layers"):
        swap_vision_tower(vlm, encoder())
