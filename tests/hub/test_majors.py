"""What is published loads in transformers 4.x and 5.x with equal outputs: the newest 4.x in its own environment."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers.environments import environment, run
from helpers.open_clip_files import write_open_clip
from helpers.tiny_clip import tiny_clip_config, tiny_processor
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from fare_hf.attacks import ThreatModel
from fare_hf.convert import convert_from_open_clip
from fare_hf.hub import save_robust_encoder

pytestmark = pytest.mark.slow

CLASSES = {cls.__name__: cls for cls in (CLIPVisionModelWithProjection, CLIPVisionModel, AutoModel)}
DTYPES = ("float32", "bfloat16", "float16")

# Runs in 4.x: the embeddings of each folder in each class and dtype, and what did not fit.
SCRIPT = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
place, classes, dtypes = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")
inputs = load_file(place + "/inputs.safetensors")
found, missing = {}, {}
for folder in json.load(open(place + "/folders.json")):
    for name in classes:
        for dtype in dtypes:
            cls = getattr(transformers, name)
            model, info = cls.from_pretrained(folder, dtype=getattr(torch, dtype), output_loading_info=True)
            key = folder.rsplit("/", 1)[-1] + "|" + type(model).__name__ + "|" + name + "|" + dtype
            missing[key] = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
            pixels = inputs["pixels"].to(model.dtype)
            with torch.no_grad():
                if isinstance(model, transformers.CLIPModel):
                    output = model(pixel_values=pixels, input_ids=inputs["ids"])
                    found[key + "|text"] = output.text_embeds.contiguous()
                    found[key + "|image"] = output.image_embeds.contiguous()
                else:
                    output = model.eval()(pixel_values=pixels, output_hidden_states=True)
                    found[key] = (output.image_embeds if "Projection" in name else output.pooler_output).contiguous()
                    found[key + "|tokens"] = output.hidden_states[-2].contiguous()
save_file(found, place + "/found.safetensors")
print(json.dumps({"version": transformers.__version__, "missing": missing}))
"""

# The pipeline and the tokenizer of a whole CLIP, in either release.
PIPELINE = """
import json, sys
import torch, transformers
from PIL import Image
names = ["cat", "dog", "car"]
found = transformers.pipeline("zero-shot-image-classification", model=sys.argv[1], use_fast=False)(
    Image.open(sys.argv[2]), candidate_labels=names
)
tokens = transformers.AutoTokenizer.from_pretrained(sys.argv[1])(["a photo of a cat .", "red"], padding=True).input_ids
print(json.dumps({"scores": {row["label"]: row["score"] for row in found}, "tokens": tokens}))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder saved as one file, the same sharded, one stored in half precision, and a converted whole CLIP."""
    place = tmp_path_factory.mktemp("majors")
    torch.manual_seed(0)
    encoder = CLIPVisionModelWithProjection(tiny_clip_config().vision_config)
    options = {"processor": tiny_processor(), "base_model": "a/b", "threat_model": ThreatModel("linf", "4/255")}
    save_robust_encoder(encoder, place / "one", **options)
    CLIPVisionModelWithProjection.from_pretrained(place / "one").save_pretrained(
        place / "sharded", max_shard_size="20KB"
    )
    save_robust_encoder(encoder.half(), place / "half", **options)
    convert_from_open_clip(write_open_clip(place / "open_clip"), place / "visual", visual_only=True)
    convert_from_open_clip(place / "open_clip", place / "clip")
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 22, (3, 8), generator=generator)
    ids[:, 5] = 22
    save_file({"pixels": torch.randn(3, 3, 32, 32, generator=generator), "ids": ids}, place / "inputs.safetensors")
    return place


def in_four(place: Path, folders: list[str], classes: list[str]) -> tuple[dict, dict[str, torch.Tensor]]:
    """Loads and runs in the newest 4.x."""
    python = environment("transformers-4", ["transformers<5", "pillow"], dependencies=True)
    (place / "folders.json").write_text(json.dumps([str(place / name) for name in folders]))
    report = json.loads(run(python, SCRIPT, str(place), ",".join(classes), ",".join(DTYPES)))
    assert report["version"].startswith("4.5")
    assert not any(report["missing"].values())
    return report, load_file(place / "found.safetensors")


def test_vision_classes_are_equal_to_the_bit(published: Path) -> None:
    """fp32, bf16 and fp16 from one file, shards, a half-precision file and a conversion, in three classes each."""
    folders = ["one", "sharded", "half", "visual"]
    report, found = in_four(published, folders, list(CLASSES))
    assert len(list((published / "sharded").glob("model-*.safetensors"))) > 2
    pixels = load_file(published / "inputs.safetensors")["pixels"]
    for folder in folders:
        for name, cls in CLASSES.items():
            for dtype in DTYPES:
                model = cls.from_pretrained(published / folder, dtype=getattr(torch, dtype)).eval()
                with torch.no_grad():
                    output = model(pixel_values=pixels.to(model.dtype), output_hidden_states=True)
                ours = output.image_embeds if "Projection" in name else output.pooler_output
                key = f"{folder}|{type(model).__name__}|{name}|{dtype}"
                assert torch.equal(found[key], ours), key
                assert torch.equal(found[key + "|tokens"], output.hidden_states[-2]), key
    assert len(found) == 2 * len(folders) * len(CLASSES) * len(DTYPES)


def test_a_converted_clip_is_equal_to_the_bit(published: Path) -> None:
    """Images and sentences of a `CLIPModel` that came from open_clip."""
    _, found = in_four(published, ["clip"], ["CLIPModel"])
    inputs = load_file(published / "inputs.safetensors")
    for dtype in DTYPES:
        model = CLIPModel.from_pretrained(published / "clip", dtype=getattr(torch, dtype)).eval()
        with torch.no_grad():
            output = model(pixel_values=inputs["pixels"].to(model.dtype), input_ids=inputs["ids"])
        key = f"clip|CLIPModel|CLIPModel|{dtype}"
        assert torch.equal(found[key + "|image"], output.image_embeds), dtype
        assert torch.equal(found[key + "|text"], output.text_embeds), dtype


def test_a_robust_clip_with_its_text_encoder(clip_folder: Path, tmp_path: Path) -> None:
    """The zero-shot pipeline gives the same scores, the tokenizer the same ids."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(clip_folder)
    options = {"processor": tiny_processor(), "base_model": "a/b", "threat_model": ThreatModel("linf", "4/255")}
    whole = save_robust_encoder(encoder, tmp_path / "whole", license="", text_encoder=str(clip_folder), **options)
    Image.effect_noise((40, 48), 90).convert("RGB").save(tmp_path / "image.png")
    python = environment("transformers-4", ["transformers<5", "pillow"], dependencies=True)
    four, five = (
        json.loads(run(interpreter, PIPELINE, str(whole), str(tmp_path / "image.png")).splitlines()[-1])
        for interpreter in (python, Path(sys.executable))
    )
    assert four == five and set(four["scores"]) == {"cat", "dog", "car"}
    print(four)
