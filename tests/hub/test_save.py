"""Saving a robust encoder: what plain transformers loads, the card and its snippets, what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_llava import encoder, images, llava, processor
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import to_pil, unnormalized
from fare_hf.evaluation import RobustnessReport, Row
from fare_hf.evaluation.report.plots import draw_summary
from fare_hf.hub import regenerate_card, rewrite_card, save_robust_encoder
from fare_hf.hub.base_model import base_name, inherited_license
from fare_hf.vlm import swap_vision_tower, tower_of

FOUR = ThreatModel("linf", "4/255")
RECIPE = {"objective": "fare", "max_steps": 20000, "learning_rate": 1e-5, "torch": "2.13.0", "note": "a | b"}


def report(*models: str) -> RobustnessReport:
    names = {"task": "zero-shot", "dataset": "Fashion-MNIST", "metric": "accuracy"}
    attack = {"name": "apgd-ce+apgd-t9", "steps": 100, "restarts": 1, "seed": 0}
    rows = []
    for model in models:
        rows.append(Row(model=model, **names, value=0.75, ci=(0.7, 0.8), n=500))
        rows.append(Row(model=model, **names, value=0.5, ci=(0.4, 0.6), n=500, threat_model=FOUR, attack=attack))
    return RobustnessReport(rows, {"versions": {"torch": "2.13.0"}})


def save(folder: Path, vision=None, **changes) -> Path:
    options = {"processor": processor(), "base_model": "openai/clip", "threat_model": FOUR, "training": RECIPE}
    return save_robust_encoder(encoder() if vision is None else vision, folder, **options | changes)


def test_weights_are_equal_to_the_bit_in_every_class(tmp_path: Path) -> None:
    vision, folder = encoder(), save(tmp_path / "fare4", report=report("FARE"))
    expected = vision.state_dict()
    whole = CLIPVisionModelWithProjection.from_pretrained(folder)
    assert whole.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in whole.state_dict().items())
    for plain in (CLIPVisionModel.from_pretrained(folder), AutoModel.from_pretrained(folder)):
        assert type(plain) is CLIPVisionModel
        assert plain.state_dict().keys() == vision.vision_model.state_dict().keys()
        assert all(torch.equal(tensor, expected[f"vision_model.{n}"]) for n, tensor in plain.state_dict().items())
    _, info = CLIPVisionModelWithProjection.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]


def test_what_the_folder_holds(tmp_path: Path) -> None:
    vision = encoder()
    vision.config.use_cache = False
    folder = save(tmp_path / "fare4", vision, report=report("FARE"))
    names = {
        "README.md",
        "config.json",
        "fare_hf.json",
        "model.safetensors",
        "preprocessor_config.json",
        "report.json",
        "results.png",
    }
    assert {path.name for path in folder.iterdir()} == names
    stored = load_file(folder / "model.safetensors")
    assert all(name.startswith(("vision_model.", "visual_projection.")) for name in stored)
    config = json.loads((folder / "config.json").read_text())
    assert "use_cache" not in config and vision.config.use_cache is False
    assert config["architectures"] == ["CLIPVisionModelWithProjection"] and config["dtype"] == "float32"
    assert RobustnessReport.load(folder) == report("FARE")
    again = AutoImageProcessor.from_pretrained(folder)
    picture = to_pil(images(1))[0]
    expected = processor().image_processor(picture, return_tensors="pt")["pixel_values"]
    assert torch.equal(again(picture, return_tensors="pt")["pixel_values"], expected)


def test_half_precision_stays(tmp_path: Path) -> None:
    folder = save(tmp_path / "half", encoder().bfloat16())
    again = CLIPVisionModelWithProjection.from_pretrained(folder)
    assert again.dtype == torch.bfloat16
    assert all(torch.equal(t, encoder().bfloat16().state_dict()[n]) for n, t in again.state_dict().items())


def test_an_encoder_without_projection(tmp_path: Path) -> None:
    vision = encoder().vision_model
    folder = save(tmp_path / "tokens", vision)
    assert all(name.startswith("vision_model.") for name in load_file(folder / "model.safetensors"))
    again, info = CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert all(torch.equal(tensor, vision.state_dict()[name]) for name, tensor in again.state_dict().items())
    card = (folder / "README.md").read_text()
    assert "Zero-shot" not in card and "pooler_output" in card


def test_a_whole_clip_takes_the_weights(tmp_path: Path, clip_folder: Path) -> None:
    vision = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    with torch.no_grad():
        vision.vision_model.post_layernorm.weight.mul_(2)
    clip = CLIPModel.from_pretrained(clip_folder)
    found = clip.load_state_dict(load_file(save(tmp_path / "new", vision) / "model.safetensors"), strict=False)
    assert not found.unexpected_keys
    assert torch.equal(clip.vision_model.post_layernorm.weight, vision.vision_model.post_layernorm.weight)


def test_card_metadata(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "fare4", report=report("CLIP", "FARE"), report_model="FARE", license="mit", repo_id="me/fare4"
    )
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "openai/clip" and card.data.license == "mit"
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "image-feature-extraction"
    assert {"robust-clip", "adversarial-robustness"} <= set(card.data.tags)
    names = [result.metric_name for result in card.data.eval_results]
    assert names == ["accuracy (clean)", "accuracy (linf 4/255, apgd-ce+apgd-t9, 100 steps, restarts 1, seed 0)"]
    assert [result.metric_value for result in card.data.eval_results] == [0.75, 0.5]
    assert card.data.model_name == "fare4"


def test_card_text(tmp_path: Path) -> None:
    text = (save(tmp_path / "fare4", report=report("CLIP", "FARE")) / "README.md").read_text()
    for part in (
        "at most 4/255 of its range",
        "FARE:",
        "| max_steps | 20000 |",
        r"a \| b",
        "| threat model | linf 4/255 |",
    ):
        assert part in text
    assert report("CLIP", "FARE").to_markdown().strip() in text and "pip install fare_hf" not in text
    assert "Which row is this encoder was not said: no figure here counts as its own." in text
    assert '"path/to/a/llava-with-this-vision-encoder"' in text and "[openai/clip](https://huggingface.co/" in text
    assert "schlarmann2024robustclip" in text and "## Limits" in text and "](results.png)" in text
    assert "No licence was found for openai/clip or given" in text
    for part in ("More information", "{{", "{%", "None", "license:", "model-index", "TODO"):
        assert part not in text
    plain = (
        save(
            tmp_path / "bare",
            training={"objective": "tecoa", "threat model": "l2 1.5"},
            threat_model=ThreatModel("l2", 1.5),
        )
        / "README.md"
    ).read_text()
    assert plain.count("| threat model | l2 1.5 |") == 1
    assert "croce2020reliable" in text and "radford2021learning" in text and "croce2020reliable" not in plain
    assert "No figures were measured" in plain and "mao2023understanding" in plain and "Euclidean length 1.5" in plain


def test_template_is_short() -> None:
    template = Path(save_robust_encoder.__code__.co_filename).parent / "card" / "template.md"
    assert len(template.read_text().splitlines()) < 80


def snippets(folder: Path) -> list[dict[str, Any]]:
    """Runs the card's snippets as they stand there; what each leaves behind."""
    found = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    spaces: list[dict[str, Any]] = [{} for _ in found]
    for snippet, space in zip(found, spaces, strict=True):
        exec(compile(snippet, "README.md", "exec"), space)
    return spaces


def test_the_cards_snippets_run(tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llava().save_pretrained("llava")
    (tmp_path / "clip").symlink_to(clip_folder)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "clip").symlink_to(clip_folder)  # where the reader's copy lies
    vision = encoder()
    picture = to_pil(images(1))[0]
    picture.save("image.png")
    values = processor().image_processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = vision(pixel_values=values).image_embeds
    for name in ("alone", "whole"):
        options = {"base_model": "clip", "vlm": "llava", "text_encoder": "clip" if name == "whole" else None}
        plain, swapped, zero_shot = snippets(save(Path(name), vision, **options))
        # The weights are equal to the bit (above); where they lie in memory picks the kernel on some processors.
        torch.testing.assert_close(plain["embedding"], expected, rtol=0, atol=1e-5)
        tower = tower_of(swapped["llava"]).state_dict()
        assert all(torch.equal(tensor, vision.vision_model.state_dict()[name]) for name, tensor in tower.items())
        if name == "alone":
            probabilities = zero_shot["probabilities"]
        else:  # the pipeline's own prompt differs
            assert {row["label"] for row in zero_shot["scores"]} == {"cat", "dog", "car"}
            probabilities = torch.tensor([[row["score"] for row in zero_shot["scores"]]])
        assert probabilities.shape == (1, 3) and abs(float(probabilities.sum()) - 1) < 1e-5


def test_a_whole_clip_tells_nothing_of_this_machine(tmp_path: Path, clip_folder: Path) -> None:
    """Not in the configuration of its vision part, nor how its tokenizer was loaded."""
    loaded = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    folder = save(tmp_path / "whole", loaded, base_model=str(clip_folder), text_encoder=str(clip_folder))
    for path in folder.glob("*.[jm]*"):
        text = path.read_text("utf-8")
        assert str(clip_folder) not in text and "local_files_only" not in text, path
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a cat").input_ids == AutoTokenizer.from_pretrained(clip_folder)("a cat").input_ids


def test_the_picture_shows_the_report(tmp_path: Path) -> None:
    rows = report("CLIP", "FARE").rows
    names = {"model": "$FARE$_4", "task": "captions", "dataset": "d", "metric": "accuracy"}
    first = draw_summary(rows)
    assert first is not None and first == draw_summary(rows) != draw_summary(rows[:3])
    more = draw_summary([*rows, Row(**names, value=1.0, ci=(1, 1), n=1)])
    sizes = [Image.open(io.BytesIO(drawn or b"")).size for drawn in (first, more)]
    assert sizes[1][1] > sizes[0][1] and draw_summary([]) is None


def test_without_matplotlib_the_card_does_without_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = save(tmp_path / "fare4", report=report("FARE"))
    assert not (folder / "results.png").exists() and "results.png" not in (folder / "README.md").read_text()


def test_a_card_gets_new_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(tmp_path / "fare4", report=report("FARE"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rewrite_card(folder, report=report("CLIP", "FARE"), report_model="FARE", license="mit")
    assert RobustnessReport.load(folder).rows == report("FARE", "CLIP").rows
    assert (folder / "results.png").read_bytes() == draw_summary(report("FARE", "CLIP").rows)
    assert regenerate_card(folder) == (folder / "README.md").read_text() != before["README.md"].decode()
    with pytest.raises(ValueError, match="license 'mine' is unknown"):
        rewrite_card(folder, license="mine")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    rewrite_card(folder, report=report("FARE"))
    assert not (folder / "results.png").exists() and "results.png" not in (folder / "README.md").read_text()
    (folder / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="was edited by hand: move it away"):
        rewrite_card(folder)
    (folder / "README.md").unlink()
    rewrite_card(folder, license=None)
    assert {path.name for path in folder.iterdir()} == before.keys() - {"results.png"}


def test_the_licence_is_the_base_models_unless_given(tmp_path: Path, clip_folder: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\nA CLIP.\n")
    data = ModelCard.load(save(tmp_path / "a", base_model=str(base)) / "README.md").data
    assert (data.license, data["license_name"], data.get("license_link")) == ("other", "own", None)
    text = (tmp_path / "a" / "README.md").read_text()
    assert "base_model" not in text and "vision encoder of ./base, fine-tuned" in text and str(tmp_path) not in text
    assert regenerate_card(tmp_path / "a") == (tmp_path / "a" / "README.md").read_text()
    assert (
        ModelCard.load(save(tmp_path / "b", base_model=str(base), license="mit") / "README.md").data.license == "mit"
    )
    (base / "README.md").write_text("---\nlicense:\n- apache-2.0\n---\n")
    assert inherited_license(str(base)) == {"license": "apache-2.0"}
    (base / "README.md").write_text("---\nlicense: mine\n---\n")
    with pytest.raises(ValueError, match="cannot hand its licence on: license 'mine' is unknown to the Hub"):
        save(tmp_path / "c", base_model=str(base))
    for silent in (str(clip_folder), "openai/clip", "no name at all"):
        assert inherited_license(silent) == {}
    assert "license:" not in (save(tmp_path / "d", base_model="openai/clip", license="") / "README.md").read_text()


def test_names_of_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is told from a repository of the same name, wherever the card is rendered again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "clip").mkdir(parents=True)
    for folder in ("models/clip", "./models/clip/", str(tmp_path / "models" / "clip"), "./clip"):
        assert base_name(folder) == "./clip"
    monkeypatch.chdir(tmp_path / "models" / "clip")
    assert base_name(".") == "./clip"
    assert base_name("openai/clip") == "openai/clip"
    for wrong in ("my clip", "a/b/c", "/gone/clip", ""):
        with pytest.raises(ValueError, match=r"base_model .*(is empty|neither a folder here nor a name)"):
            base_name(wrong)
    card = ModelCard.load(save(Path("out"), base_model=str(tmp_path / "models" / "clip")) / "README.md")
    assert card.data.base_model is None and "base_model_relation" not in card.data.to_dict()
    assert "](https://huggingface.co" not in card.text and 'from_pretrained("path/to/clip")' in card.text


def test_saved_encoder_swaps(tmp_path: Path) -> None:
    assert swap_vision_tower(llava(), save(tmp_path / "fare4")).probe_difference == 0.0


def test_refusals_write_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    broken = encoder()
    broken.visual_projection.weight.data[0, 0] = float("nan")
    with torch.device("meta"):
        hollow = encoder()
    wrong: list[tuple[type[Exception], str, dict]] = [
        (ValueError, "'visual_projection.weight' holds NaN", {"vision": broken}),
        (ValueError, "meta device", {"vision": hollow}),
        (TypeError, "LlavaForConditionalGeneration cannot be published", {"vision": llava()}),
        (ValueError, "do_normalize off", {"processor": unnormalized(processor().image_processor)}),
        (ValueError, "base_model is empty", {"base_model": " "}),
        (ValueError, "base_model 'my clip' is neither a folder here nor", {"base_model": "my clip"}),
        (ValueError, r"datasets has 'Image Net', no name", {"datasets": ["imagenet-1k", "Image Net"]}),
        (ValueError, "'hub_token' looks like a secret", {"training": {"hub_token": "x"}}),
        (ValueError, "'command' looks like a secret", {"training": {"command": "--x hf_abcdefgh12345"}}),
        (ValueError, "objective 'sim' is unknown", {"training": {"objective": "sim"}}),
        (ValueError, "report_model 'F' is not in the report", {"report": report("FARE"), "report_model": "F"}),
    ]
    for kind, message, changes in wrong:
        with pytest.raises(kind, match=message):
            save(folder, **changes)
        assert not folder.exists()


def test_folders_in_use(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        save(tmp_path / "full")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    with pytest.raises(ValueError, match="is not empty"):
        save(tmp_path / "empty")
