"""`python -m fare_hf.train`: end to end on a folder of images, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.tiny_clip import tiny_clip_config
from helpers.train_command import refusal, run, unlabelled
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    BertConfig,
    BertModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
)

from fare_hf.cli.train import main
from fare_hf.lab import encoder_folder


def test_folder_of_images_to_an_encoder_that_plain_transformers_loads(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    run(clip_folder, images, tmp_path, "--eval_split", "train", "--eval_strategy", "steps", "--eval_steps", "3")
    before = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    after = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder")
    pairs = list(zip(before.parameters(), after.parameters(), strict=True))
    assert all(torch.isfinite(b).all() and not torch.equal(a, b) for a, b in pairs)
    _, info = CLIPVisionModel.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert AutoImageProcessor.from_pretrained(tmp_path / "encoder").do_normalize
    assert "4/255" in (tmp_path / "encoder" / "README.md").read_text()
    assert "use_cache" not in json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert "already; give another output_dir" in refusal(clip_folder, images, tmp_path)


def test_tecoa_takes_class_names_from_folders_and_tokens_train_too(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    """The folders' names are theirs in any order; other names, another sentence and FARE give other weights."""
    tecoa = ("--objective", "tecoa", "--templates", "a photo of a {}.")
    runs = {"folders": tecoa, "named": (*tecoa, "--class_names", "cat", "dog"), "fare": ()}
    runs |= {"swapped": (*tecoa, "--class_names", "dog", "cat"), "others": (*tecoa, "--class_names", "fish", "car")}
    runs |= {"tree": (*tecoa[:3], "this is a {} tree.")}
    found = {}
    for name, words in runs.items():
        run(clip_folder, images, tmp_path / name, *words, "--max_steps", "1")
        found[name] = load_file(tmp_path / name / "encoder" / "model.safetensors")
        assert all(value.isfinite().all() for value in found[name].values())
    same = {
        name: all(torch.equal(value, found["folders"][key]) for key, value in weights.items())
        for name, weights in found.items()
    }
    by_name = dict.fromkeys(("folders", "named", "swapped"), True)
    assert same == by_name | dict.fromkeys(("fare", "others", "tree"), False)
    cards = {name: (tmp_path / name / "encoder" / "README.md").read_text() for name in ("folders", "named", "fare")}
    assert "objective | tecoa" in cards["folders"] and "| prompts | a photo of a {}. |" in cards["folders"]
    assert "| class names | cat, dog |" in cards["named"] and "| prompts" not in cards["fare"]
    assert "same embedding space" in cards["fare"] and "same embedding space" not in cards["folders"]

    run(clip_folder, images, tmp_path / "tokens", "--embedding", "tokens", "--streaming")
    before = CLIPVisionModel.from_pretrained(clip_folder).state_dict()
    after = CLIPVisionModel.from_pretrained(tmp_path / "tokens" / "encoder").state_dict()
    still = {name for name, value in after.items() if torch.equal(value, before[name])}
    unread = ("encoder.layers.2.", "post_layernorm.", "vision_model.encoder.layers.2.", "vision_model.post_layernorm.")
    assert still == {name for name in after if name.startswith(unread)}  # of layer -2 and before all is read
    assert all(value.isfinite().all() for value in after.values())


def test_bad_input_is_one_clear_sentence(
    clip_folder: Path, flat_vision_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bert, empty, flat = tmp_path / "out", tmp_path / "bert", tmp_path / "empty", tmp_path / "flat"
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(bert)
    for folder in (empty, flat, tmp_path / "full"):
        folder.mkdir()
    Image.new("RGB", (32, 32)).save(flat / "0.png")
    (tmp_path / "full" / "notes").write_text("mine")
    assert "not a vision encoder or CLIP" in refusal(bert, images, out)
    assert "visual_projection" in refusal(flat_vision_folder, images, out)
    assert "has no image processor" in refusal(flat_vision_folder, images, out, "--embedding", "pooled")
    assert "has no images" in refusal(clip_folder, empty, out)
    assert "'nowhere' is neither a folder with a model here" in refusal(Path("nowhere"), images, out)
    assert "needs class names" in refusal(clip_folder, flat, out, "--objective", "tecoa")
    assert "attack_steps=0 is no attack" in refusal(clip_folder, images, out, "--attack_steps", "0")
    assert "did you mean 4/255" in refusal(clip_folder, images, out, "--eps", "4")
    assert "eps '-4/255' is negative" in refusal(clip_folder, images, out, "--eps", "-4/255")
    with pytest.raises(SystemExit):
        run(clip_folder, images, out, "--stepz", "3")
    assert "unrecognized arguments: --stepz 3; did you mean --max_steps?" in capsys.readouterr().err
    named = ("--objective", "tecoa", "--class_names", "cat", "dog")
    assert "needs labels and" in refusal(clip_folder, flat, out, *named)
    assert "needs labels and samples hold only pixel_values, index" in refusal(
        encoder_folder("clip"), "lab:images", out, *named
    )
    assert "is not empty" in refusal(clip_folder, images, tmp_path / "full")
    resume = ("--resume_from_checkpoint", str(empty))
    assert "is no complete checkpoint: it has no fare_checkpoint.json" in refusal(clip_folder, images, out, *resume)
    assert not out.exists()
    assert "step 2: the loss is not finite, samples with index [" in refusal(
        clip_folder, images, out, "--learning_rate", "1e38"
    )


def test_an_interrupted_run_goes_on_and_ends_with_the_same_weights(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    often = ("--save_strategy", "steps", "--save_steps", "2")
    run(clip_folder, images, tmp_path / "whole", *often)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    run(clip_folder, images, tmp_path / "cut", *often, "--resume_from_checkpoint", "latest")
    whole, cut = (load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_what_needs_no_weights_is_said_before_they_are_read(images: Path, tmp_path: Path) -> None:
    """The model is a configuration without weights: whatever reads them fails otherwise."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("no image")
    tiny_clip_config().save_pretrained(tmp_path / "clip")
    Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "dinov2")
    out = tmp_path / "out"
    assert "has no images" in refusal(tmp_path / "clip", tmp_path / "texts", out)
    assert "'no/such/folder' is no folder here" in refusal(tmp_path / "clip", "no/such/folder", out)
    assert "'lab:cats' is not in the lab; use one of lab:drawings" in refusal(tmp_path / "clip", "lab:cats", out)
    assert "a 'dinov2' model without a projection" in refusal(tmp_path / "dinov2", images, out)
    assert not out.exists()


def test_a_wrong_option_is_one_line_and_not_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "m", "--dataset", "d", "--output_dir", "o", "--attack_steps", "many"])
    assert capsys.readouterr().err.startswith("fare_hf.train: error: argument --attack_steps")


def test_a_run_killed_before_its_first_checkpoint_starts_again_and_a_foreign_folder_is_refused(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    """The same command line, whenever the kill came: also before anything was written."""
    (tmp_path / "cut" / "checkpoint-2").mkdir(parents=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("mine")
    resume = ("--resume_from_checkpoint", "latest")
    for name in ("cut", "absent"):
        run(clip_folder, images, tmp_path / name, *resume)
    assert "no complete checkpoint, but thesis.tex" in refusal(clip_folder, images, tmp_path / "foreign", *resume)
    weights = [load_file(tmp_path / name / "encoder" / "model.safetensors") for name in ("cut", "absent")]
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_resuming_with_another_recipe_is_refused_with_the_differences(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    run(clip_folder, images, tmp_path, "--save_strategy", "steps", "--save_steps", "2")
    shutil.rmtree(tmp_path / "encoder")
    said = refusal(clip_folder, images, tmp_path, "--resume_from_checkpoint", "latest", "--eps", "2/255")
    assert "is of another run: eps '4/255' there and '2/255' here; give the same options" in said


def test_help_lists_the_attack_and_what_is_used_often(capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for option in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as end:
            main([option])
        assert end.value.code == 0
        pages.append(capsys.readouterr().out)
    often = ("--eps", "--dataset", "--attack_steps", "--learning_rate", "--output_dir", "--bf16")
    assert all(option in page for option in often for page in pages)
    assert "--adam_beta1" in pages[1] and "--adam_beta1" not in pages[0]


def test_what_would_fail_at_the_end_or_be_ignored_is_refused_first(
    clip_folder: Path, flat_vision_folder: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = ("--with_text_encoder",)
    assert "no projection" in refusal(clip_folder, images, out, *text, "--embedding", "pooled")
    assert "no CLIP with a tokenizer" in refusal(clip_folder, images, out, *text, "--text_model", str(images))
    assert "eval_split='x' is not in the lab" in refusal(clip_folder, "lab:drawings", out, "--eval_split", "x")
    assert "makes images of 160 x 160 pixels" in refusal(
        clip_folder, images, out, "--image_processor", str(encoder_folder("clip"))
    )
    names = ("--objective", "tecoa", "--class_names", "a", "b", "c")
    assert "class_names has 3 names, " in refusal(clip_folder, images, out, *names)
    assert not out.exists() or not any(out.iterdir())


def test_a_finished_run_that_is_resumed_makes_no_further_step(clip_folder: Path, images: Path, tmp_path: Path) -> None:
    options = ("--max_steps", "4", "--save_strategy", "steps", "--save_steps", "4", "--lr_scheduler_type", "constant")
    run(clip_folder, images, tmp_path, *options, "--per_device_train_batch_size", "1")
    whole = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder").state_dict()
    (tmp_path / "encoder").rename(tmp_path / "done")
    more = ("--per_device_train_batch_size", "1", "--resume_from_checkpoint", "latest")
    run(clip_folder, images, tmp_path, *options, *more)
    again = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "encoder").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 4
    assert not (tmp_path / "checkpoint-5").exists()


def test_a_run_without_a_batch_is_refused(clip_folder: Path, images: Path, tmp_path: Path) -> None:
    """The Trainer ends at once, and the encoder it leaves was never trained."""
    few = ("--per_device_train_batch_size", "16", "--dataloader_drop_last")
    assert "8 images make no batch of 16" in refusal(clip_folder, images, tmp_path / "out", *few)
    assert not (tmp_path / "out" / "encoder").exists()


def test_a_checkpoint_from_elsewhere_takes_no_others_folder(clip_folder: Path, images: Path, tmp_path: Path) -> None:
    often = ("--save_strategy", "steps", "--save_steps", "2")
    for name in ("one", "two"):
        run(clip_folder, images, tmp_path / name, *often)
        shutil.rmtree(tmp_path / name / "encoder")
    resume = ("--resume_from_checkpoint", str(tmp_path / "one" / "checkpoint-2"), *often)
    assert "is not empty" in refusal(clip_folder, images, tmp_path / "two", *resume)
    run(clip_folder, images, tmp_path / "three", *resume)


def test_options_of_an_evaluation_are_looked_at_first(clip_folder: Path, images: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "out", unlabelled(tmp_path / "data")
    evaluate = ("--eval_split", "validation", "--eval_strategy", "steps", "--eval_steps", "1")
    assert "eval_strategy='epoch' needs images; give --eval_split" in refusal(
        clip_folder, images, out, "--eval_strategy", "epoch"
    )
    best = ("--metric_for_best_model", "acc", "--load_best_model_at_end", "--save_strategy", "steps")
    assert "metric_for_best_model='acc' is not measured; give one of loss, " in refusal(
        clip_folder, data, out, *evaluate, *best
    )
    assert "give --max_steps" in refusal(clip_folder, images, out, "--streaming", "--max_steps", "-1")
    (data / "validation" / "12.png").write_bytes(b"no image")
    assert "12.png) is not a readable image" in refusal(clip_folder, data, out, *evaluate)
    assert not out.exists()
