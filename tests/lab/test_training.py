"""The scripts that made the lab's models run, resume and learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.in_process import run_main
from transformers import CLIPModel, LlavaForConditionalGeneration

from fare_hf.encoders import load_encoder
from fare_hf.lab import encoder_folder, load_clip, load_llava
from tools.lab import train_clip, train_llava
from tools.lab.conversations import FIRST, SECOND, Conversations


def test_train_clip_trains_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--batch", "8", "--fresh", "2", "--pool", "64", "--every", "1", "--validation", "8"]
    run_main(train_clip.main, ["--out", str(tmp_path), "--steps", "1", *small], monkeypatch)
    assert "step 1 " in capsys.readouterr().out
    run_main(train_clip.main, ["--out", str(tmp_path), "--steps", "2", *small], monkeypatch)
    printed = capsys.readouterr().out
    assert "step 2 " in printed and "step 1 " not in printed
    CLIPModel.from_pretrained(tmp_path / "clip")
    load_encoder(str(tmp_path / "clip"))


def test_train_llava_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--batch", "8", "--fresh", "2", "--pool", "64", "--steps", "1"]
    monkeypatch.setattr(train_llava, "validate_grey", few := partial(train_llava.validate_grey, count=8))
    run_main(train_llava.main, ["--out", str(tmp_path), *small], monkeypatch)
    assert "captions" in capsys.readouterr().out
    first = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava")
    second = ["--start", str(tmp_path / "llava"), "--out", str(tmp_path / "second"), *small]
    with pytest.raises(SystemExit, match="state.pt is of a training with --start None: name another --out"):
        run_main(train_llava.main, [*second, "--out", str(tmp_path)], monkeypatch)
    monkeypatch.setattr(train_llava, "validate", lambda model, processor, style: few(model, processor))
    run_main(train_llava.main, second, monkeypatch)
    assert "yes-no-digits" in capsys.readouterr().out
    after = LlavaForConditionalGeneration.from_pretrained(tmp_path / "second" / "llava")
    words, tower = "model.language_model.embed_tokens.weight", "model.vision_tower.post_layernorm.weight"
    one_step = (after.state_dict()[words] - first.state_dict()[words]).abs().max()
    assert 0 < one_step < 0.01 and torch.equal(after.state_dict()[tower], first.state_dict()[tower])


def test_clothes_and_digits_are_asked_about_in_the_second_stage_alone() -> None:
    llava, processor = load_llava()
    for mixture, kinds in ((FIRST, {"drawings"}), (SECOND, {"drawings", "fashion", "digits"})):
        talks = Conversations(llava.model.vision_tower, processor.image_processor, 0, 8, mixture)
        asked: dict[str, list[str]] = {}
        for _ in range(400):
            shown = talks.draw()[1]
            for question, answer in talks.turns(shown):
                if question.startswith("Is there "):
                    name = question.removeprefix("Is there ").removesuffix(" in the image?")
                    name = name.removeprefix("an ").removeprefix("a ")
                    assert (name in shown.concepts) == (answer == "yes") and name in (*shown.concepts, *shown.absent())
                    asked.setdefault(shown.kind, []).append(answer)
        assert set(asked) == kinds and all({"yes", "no"} == set(answers) for answers in asked.values())


def test_contrastive_loss_is_the_clip_loss_where_no_two_share_a_key() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    ours = train_clip.contrastive_loss(image, text, torch.tensor(3.0), list("abcde"))
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1) * 3
    target = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    assert torch.allclose(ours, (cross(cosines, target) + cross(cosines.T, target)) / 2, atol=1e-6)


def test_the_llava_loss_on_cached_features_is_the_models_own() -> None:
    llava, processor = load_llava()
    tokenizer = processor.tokenizer
    talks = Conversations(llava.model.vision_tower, processor.image_processor, seed=0, capacity=8)
    pixels = torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    hidden = llava.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    ids, labels = talks.encode([("Who?", "a photo of a bus"), ("Why?", "no")], tokenizer, "<image>" * 16)
    row, target = torch.tensor([ids]), torch.tensor([labels])
    with torch.no_grad():
        ours = train_llava.language_loss(llava, row, target, hidden)
        theirs = llava(input_ids=row, pixel_values=pixels, labels=target).loss
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_tokenizers_keep_every_word_and_have_a_token_for_every_byte() -> None:
    tokenizer = train_llava.build_tokenizer()
    text = "a photo of a four-leaf clover, €5 @ example.com"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    clip_tokenizer = load_clip()[1]
    assert (
        clip_tokenizer.decode(clip_tokenizer("a noodle bowl").input_ids, skip_special_tokens=True) == "a noodle bowl"
    )
    assert encoder_folder("clip").name == "clip"
