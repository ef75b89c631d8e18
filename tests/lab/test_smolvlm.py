"""The lab's SmolVLM: it loads, sees, shares a language model, and its own tower is trained and measured."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.in_process import run_command, run_main
from helpers.paths import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, SmolVLMForConditionalGeneration, SmolVLMVisionTransformer

from fare_hf import RobustnessReport, ThreatModel
from fare_hf.data.pixels import to_pil
from fare_hf.lab import encoder_folder, load_llava, load_smolvlm, load_test_set, measure
from fare_hf.lab.names import MODELS, TOWERS, trained_path
from fare_hf.vlm import generate_text, swap_vision_tower
from fare_hf.vlm.tower_files import load_vision_tower
from tools.lab import train_llava, train_smolvlm
from tools.lab.store import store_smolvlm


def test_it_describes_drawings_through_its_own_processor() -> None:
    model, processor = load_smolvlm()
    assert isinstance(model, SmolVLMForConditionalGeneration) and not model.training and model.dtype == torch.float32
    test = load_test_set("twemoji").first(24)
    said = generate_text(model, processor, test.pixels, measure.PROMPT, max_new_tokens=14)
    assert sum(test.class_names[label] in text for label, text in zip(test.labels.tolist(), said, strict=True)) >= 10
    for image, text in zip(to_pil(test.pixels[:4]), said, strict=False):
        inputs = processor(images=image, text=measure.PROMPT, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=14, do_sample=False)
        assert processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip() == text


def test_its_language_model_is_the_llavas_and_its_tower_is_not() -> None:
    model, llava = load_smolvlm()[0], load_llava()[0]
    ours, theirs = model.model.text_model.state_dict(), llava.model.language_model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name][: len(tensor)], tensor), name
    words = ours["embed_tokens.weight"][len(theirs["embed_tokens.weight"]) :]
    assert len(words) == len(train_smolvlm.AROUND) and words.std() > 0
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.config.vision_config.hidden_size != llava.config.vision_config.hidden_size


def test_its_file_alone_is_no_model_that_answers_at_random() -> None:
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForImageTextToText.from_pretrained(MODELS / "smolvlm")


def test_its_robust_tower_is_put_in_to_the_bit_and_nothing_else_moves() -> None:
    model, processor = load_smolvlm()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folder = encoder_folder(TOWERS[0])
    swap_vision_tower(model, str(folder), processor)
    tower, changed = SmolVLMVisionTransformer.from_pretrained(folder, dtype=torch.float32).state_dict(), 0
    for name, tensor in model.state_dict().items():
        own = name.removeprefix("model.vision_model.")
        assert torch.equal(tensor, tower[own] if own != name else before[name]), name
        changed += not torch.equal(tensor, before[name])
    assert changed == len(tower)


def test_a_training_reads_of_its_tower_what_the_model_reads() -> None:
    tower, features = load_vision_tower(trained_path("lab:smolvlm"))
    model = load_smolvlm()[0]
    stored = load_file(MODELS / "smolvlm" / "model.safetensors")
    for name, tensor in tower.state_dict().items():
        assert torch.equal(tensor, stored[f"model.vision_model.{name}"].float()), name
    pixels = load_test_set("twemoji").pixels[:3]
    inputs = features.family.inputs(features.settings, pixels)
    read = torch.stack(list(model.model.get_image_features(**inputs).pooler_output))
    torch.testing.assert_close(features.embed(tower, pixels), read)


def test_it_is_measured_by_name_on_the_labs_sets(tmp_path: Path) -> None:
    words = ["fare-hf", "evaluate", f"lab:{TOWERS[0]}", "--vlm", "lab:smolvlm", "--steps", "2", "--samples", "3"]
    for task, dataset in {"captions": "lab:captions", "targeted": "lab:twemoji"}.items():
        asked = ["--task", task, "--dataset", dataset, "--eps", "4/255", "--output_dir", str(tmp_path / task)]
        run_command([*words, *asked])
        rows = RobustnessReport.load(tmp_path / task).rows
        assert [row.model for row in rows] == ["SmolVLM + its own tower"] * 2 + [f"SmolVLM + {TOWERS[0]}"] * 2, task
        assert [row.threat_model is None for row in rows] == [True, False] * 2


@pytest.mark.slow
def test_the_report_gives_what_the_model_does_with_either_tower() -> None:
    stated = RobustnessReport.load(ROOT / "model_cards" / "lab" / "smolvlm.json").rows
    attacked = {}
    for name in (None, *TOWERS):
        model, processor = load_smolvlm()
        if name is not None:
            swap_vision_tower(model, str(encoder_folder(name)), processor)
        shown = f"SmolVLM + {name or 'its own tower'}"
        clean = next(row for row in stated if (row.model, row.task, row.threat_model) == (shown, "captions", None))
        (found,) = measure.measure_captions("x", (model, processor), measure.Budget(captions=clean.n), []).rows
        assert found.value == pytest.approx(clean.value, abs=2 / clean.n)
        few = measure.Budget(captions=32, caption_steps=50)
        attacked[name] = measure.measure_captions("x", (model, processor), few, [ThreatModel("linf", "2/255")]).rows[1]
    assert attacked[TOWERS[0]].value >= attacked[None].value + 0.1


def test_train_smolvlm_trains_and_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(tmp_path), "--batch", "8", "--fresh", "2", "--pool", "64", "--answered", "4"]
    monkeypatch.setattr(train_llava, "validate_grey", partial(train_llava.validate_grey, count=8))
    run_main(train_smolvlm.main, [*words, "--feature_steps", "1", "--answer_steps", "1"], monkeypatch)
    assert "answers" in capsys.readouterr().out
    trained = SmolVLMForConditionalGeneration.from_pretrained(tmp_path / "smolvlm").state_dict()
    llava = load_llava()[0].model.language_model.state_dict()
    old = len(llava["embed_tokens.weight"])
    assert torch.equal(trained["model.text_model.embed_tokens.weight"][:old], llava["embed_tokens.weight"])
    store_smolvlm(tmp_path / "smolvlm", tmp_path / "stored")
    kept = load_file(tmp_path / "stored" / "model.safetensors")
    assert all(torch.equal(kept[name], trained[name].bfloat16()) for name in kept if "text_model" not in name)
    words_kept = kept["model.text_model.embed_tokens.weight"]
    assert torch.equal(words_kept, trained["model.text_model.embed_tokens.weight"][old:].bfloat16())
    assert not [name for name in trained if name not in kept and "text_model" not in name and name != "lm_head.weight"]
