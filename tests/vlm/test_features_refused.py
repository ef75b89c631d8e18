"""What no tower of a vision-language model can be trained on, or put into: a sentence before weights are fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import Refusal, table
from helpers.tiny_vlms import TINY, images
from transformers import AutoConfig, Qwen2VLImageProcessor

from fare_hf.data.pixel_datasets import PixelDataset
from fare_hf.data.pixels import StoredPixels, to_pil
from fare_hf.evaluation.attack_loop import gather
from fare_hf.training.config import FareConfig
from fare_hf.training.estimate import estimate
from fare_hf.vlm.processors import attacked_pixels
from fare_hf.vlm.swap.before_loading import check_swap
from fare_hf.vlm.tower_files import load_vision_tower


@pytest.fixture
def no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of configurations and image processors alone; whoever looks for weights fails."""
    for name, tiny in {"qwen2.5": TINY["Qwen2_5_VL"], "llava": TINY["Llava (1.5, BakLlava)"]}.items():
        model = tiny.model()
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(tmp_path / name)
        tiny.processor().image_processor.save_pretrained(tmp_path / name)
    tower = TINY["Qwen2VL"].encoder()
    tower.config.architectures = [type(tower).__name__]
    tower.config.save_pretrained(tmp_path / "qwen2 tower")
    monkeypatch.setattr("fare_hf.vlm.tower_files.StoredWeights", pytest.fail)
    return tmp_path


def of_type(kind: str, folder: Path) -> str:
    """A folder with the configuration of another model."""
    config = AutoConfig.for_model(kind)
    config.save_pretrained(folder / kind)
    return str(folder / kind)


def with_resample(folder: Path, resample: int) -> str:
    """The Qwen2.5-VL whose image processor has another filter."""
    path = folder / "qwen2.5" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resample": resample}))
    return str(folder / "qwen2.5")


def several_sizes() -> Any:
    pictures = [{"image": to_pil(images(1, height, 40))[0]} for height in (40, 56)]
    return gather(PixelDataset(pictures, StoredPixels()), [0, 1], torch.device("cpu"))


def qwen_with(**settings: Any) -> Any:
    processor = TINY["Qwen2_5_VL"].processor()
    processor.image_processor = Qwen2VLImageProcessor(**settings)
    return processor


ROWS = [
    Refusal(
        "no vision tower",
        lambda no_weights: load_vision_tower(of_type("fuyu", no_weights)),
        ValueError,
        "fuyu' reads are not known: …it has no vision tower: the language model reads patches of pixels itself.",
    ),
    Refusal(
        "no vision-language model",
        lambda no_weights: load_vision_tower(of_type("llama", no_weights)),
        ValueError,
        "--model has to be a vision-language model (…is a 'llama' model, not a vision-language model: name one.)",
    ),
    Refusal(
        "no row",
        lambda no_weights: load_vision_tower(of_type("glm4v", no_weights)),
        ValueError,
        "glm4v' reads are not known: the tower of a Glm4v…its tower is a 'glm4v_vision', no CLIPVisionModel and no",
    ),
    Refusal(
        "no row, and no features to ask for",
        lambda no_weights: load_vision_tower(of_type("git", no_weights)),
        ValueError,
        "git' reads are not known: …which is not mapped. Its model has no get_image_features either.",
    ),
    Refusal(
        "a bare encoder",
        lambda no_weights, clip_folder: load_vision_tower(str(clip_folder)),
        ValueError,
        "embedding='features' is what a language model reads, so --model has to be a vision-language model (…); for "
        "an encoder alone give projected, pooled or tokens.",
    ),
    Refusal(
        "the cost of a bare encoder",
        lambda no_weights, clip_folder: estimate(
            str(clip_folder), FareConfig("none", embedding="features", max_steps=1, use_cpu=True)
        ),
        ValueError,
        "so --model has to be a vision-language model",
    ),
    Refusal(
        "a tower of another model",
        lambda no_weights: check_swap(str(no_weights / "qwen2.5"), str(no_weights / "qwen2 tower")),
        ValueError,
        "qwen2 tower' is a Qwen2VisionTransformerPretrainedModel, the vision tower of …qwen2.5' needs a Qwen2_5_",
    ),
    Refusal(
        "a tower in the place of a CLIP",
        lambda no_weights: check_swap(str(no_weights / "llava"), str(no_weights / "qwen2 tower")),
        ValueError,
        "qwen2 tower' is a Qwen2VisionTransformerPretrainedModel, the vision tower of …llava' needs a CLIPVisionModel",
    ),
    Refusal(
        "images that make no batch",
        several_sizes,
        ValueError,
        "images of 2 sizes (40 x 40, 56 x 40, height x width) make no batch: resize them to one, or take them one at "
        "a time (batch_size=1).",
    ),
    Refusal(
        "the image processor of another family",
        lambda no_weights, clip_folder: load_vision_tower(str(no_weights / "qwen2.5"), processor=str(clip_folder)),
        ValueError,
        "the image processor CLIPImageProcessor…is not made for …qwen2.5' (…patch_size'): give one of the class that",
    ),
    Refusal(
        "an image processor that is nowhere",
        lambda no_weights: load_vision_tower(str(no_weights / "qwen2.5"), processor="nothere"),
        ValueError,
        "'nothere' is neither a folder with a model here nor a name of the Hub",
    ),
    Refusal(
        "a filter that is not mirrored, before a training",
        lambda no_weights: load_vision_tower(with_resample(no_weights, 4)),
        ValueError,
        "the filter 4 of the Qwen2VLImageProcessorPil is unknown: use lanczos, bicubic or bilinear.",
    ),
    Refusal(
        "a filter that is not mirrored, before an evaluation",
        lambda: attacked_pixels(qwen_with(resample=0)),
        ValueError,
        "the filter 0 of the Qwen2VLImageProcessorPil is unknown",
    ),
    Refusal(
        "bytes that are not rescaled",
        lambda: attacked_pixels(qwen_with(do_rescale=False)),
        ValueError,
        "the Qwen2VLImageProcessorPil does not rescale bytes by 1/255: set do_rescale and rescale_factor.",
    ),
]


@table(*ROWS)
def test_it_is_one_sentence_before_weights_are_looked_for(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
