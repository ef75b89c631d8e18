"""Models, encoders, processors and texts that a swap or a loss refuses, and the sentence that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import Refusal, changing, table
from helpers.tiny_llava import PROMPT, SIZE, encoder, images, llava, processor
from helpers.tiny_vlms import TINY, clip_encoder, siglip_encoder
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
    MllamaForConditionalGeneration,
    PixtralVisionConfig,
)

from fare_hf.vlm import VlmLoss, generate_text, swap_vision_tower, tower_of
from fare_hf.vlm.families.table import family_named

pytestmark = pytest.mark.filterwarnings("ignore:clean images have embeddings")
LLAVA = family_named(["LlavaForConditionalGeneration"])


def swapped(change: Any = lambda vlm: None, new: Any = None, proc: Any = None) -> Any:
    """A swap into a LLaVA that was changed first."""
    vlm = llava()
    change(vlm)
    return swap_vision_tower(vlm, encoder() if new is None else new, proc)


class OwnForConditionalGeneration:
    """A class that nobody knows."""

    def __init__(self, config: Any) -> None:
        self.config = config


def blip2() -> Any:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"model_type": "opt", "ffn_dim": 8, "word_embed_proj_dim": 8, "vocab_size": 8, **sizes}
    vision, qformer = {**sizes, "image_size": 8, "patch_size": 4}, {**sizes, "encoder_hidden_size": 8}
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text)
    return Blip2ForConditionalGeneration(config)


def without_tower(tower: Any) -> Any:
    """A LlavaNextVideo with something else in its tower's place."""
    model = TINY["LlavaNextVideo"].model()
    model.model.vision_tower = tower
    if tower is None:
        del model.model.vision_tower
    return model


MODELS = [
    Refusal(
        "a name",
        lambda: swap_vision_tower("llava-hf/llava-1.5-7b-hf", encoder()),
        TypeError,
        "str is not a vision-language model that fare_hf knows",
    ),
    Refusal(
        "an encoder",
        lambda: swap_vision_tower(encoder(), encoder()),
        TypeError,
        "CLIPVisionModelWithProjection is not a vision-language model that fare_hf knows",
    ),
    Refusal("the inner model", lambda: swap_vision_tower(llava().model, encoder()), TypeError, "LlavaModel"),
    Refusal(
        "an unknown class with a CLIP",
        lambda: swap_vision_tower(OwnForConditionalGeneration(LlavaConfig()), encoder()),
        TypeError,
        "its tower is a 'clip_vision_model', but which features are read of it is not known here.",
    ),
    Refusal(
        "an unknown class with another tower",
        lambda: swap_vision_tower(
            OwnForConditionalGeneration(LlavaConfig(vision_config=PixtralVisionConfig())), encoder()
        ),
        TypeError,
        "its tower is a 'pixtral', no CLIPVisionModel and no SiglipVisionModel.",
    ),
    Refusal(
        "a family that cannot work",
        lambda: swap_vision_tower(blip2(), encoder()),
        TypeError,
        "Blip2ForConditionalGeneration cannot be swapped: … Q-Former",
    ),
    Refusal(
        "InstructBLIP by its name",
        lambda: family_named(["InstructBlipForConditionalGeneration"]),
        TypeError,
        "the tower of a InstructBlipForConditionalGeneration cannot be swapped",
    ),
    Refusal(
        "Mllama by its name",
        lambda: family_named([MllamaForConditionalGeneration.__name__]),
        TypeError,
        "the tower of a MllamaForConditionalGeneration cannot be swapped",
    ),
    Refusal(
        "a language model by its name",
        lambda: family_named(["Qwen2ForCausalLM"]),
        TypeError,
        "Qwen2ForCausalLM is not a vision-language model that fare_hf knows",
    ),
    Refusal(
        "LLaVA with a layer for a tower",
        lambda: swapped(lambda vlm: setattr(vlm.model, "vision_tower", torch.nn.Linear(2, 2))),
        TypeError,
        "the vision tower of this LlavaForConditionalGeneration is a Linear",
    ),
    Refusal(
        "a video model with a layer for a tower",
        lambda: swap_vision_tower(without_tower(torch.nn.Linear(2, 2)), encoder()),
        TypeError,
        "is a Linear: only a tower of class CLIPVisionModel or SiglipVisionModel",
    ),
    Refusal(
        "a video model without a tower",
        lambda: swap_vision_tower(without_tower(None), encoder()),
        TypeError,
        "has no vision tower at 'model.vision_tower': load the whole model",
    ),
]


class Int8Params(torch.nn.Parameter):
    """What bitsandbytes puts in a weight's place, before it has moved."""


def quantised(vlm: Any) -> None:
    tower_of(vlm).post_layernorm.weight = torch.nn.Parameter(torch.ones(32, dtype=torch.int8), requires_grad=False)


def waiting(vlm: Any) -> None:
    layer = tower_of(vlm).encoder.layers[0].mlp.fc1
    layer.weight = torch.Tensor._make_subclass(Int8Params, layer.weight.data, True)


def partitioned(vlm: Any) -> None:
    tower_of(vlm).post_layernorm.weight.data = torch.empty(0)


def tied(vlm: Any) -> None:
    vlm.model.multi_modal_projector.linear_2.bias = tower_of(vlm).post_layernorm.bias


TOWERS = [
    Refusal(
        "offloaded", lambda: swapped(lambda vlm: vlm.model.vision_tower.to("meta")), ValueError, "without offloading"
    ),
    Refusal("quantised", lambda: swapped(quantised), ValueError, "quantised"),
    Refusal(
        "about to be quantised", lambda: swapped(waiting), ValueError, "a Int8Params…quantise or shard afterwards"
    ),
    Refusal("partitioned", lambda: swapped(partitioned), ValueError, "empty in this process (partitioned"),
    Refusal(
        "tied", lambda: swapped(tied), ValueError, "'post_layernorm.bias' is also the model's '…linear_2.bias' (tied)"
    ),
]


def biased(value: float) -> Any:
    new = encoder()
    new.vision_model.post_layernorm.bias.data[3] = value
    return new


def hollow() -> Any:
    with torch.device("meta"):
        return encoder()


def read_beyond() -> Any:
    vlm = TINY["VipLlava"].model()
    vlm.config.vision_feature_layer = [-2, 7]
    return swap_vision_tower(vlm, clip_encoder())


@pytest.fixture
def no_weights(tmp_path: Path) -> Path:
    encoder().config.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def text(clip_folder: Path) -> Any:
    return CLIPTextModelWithProjection.from_pretrained(clip_folder)


@pytest.fixture
def text_folder(text: Any, tmp_path: Path) -> Path:
    CLIPTextModel(text.config).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def other_mean(tmp_path: Path) -> Path:
    """An encoder with a processor of another normalisation."""
    encoder().save_pretrained(tmp_path)
    made = processor().image_processor
    made.image_mean = [0.5, 0.5, 0.5]
    made.save_pretrained(tmp_path)
    return tmp_path


ENCODERS = [
    Refusal("a layer", lambda: swapped(new=torch.nn.Linear(2, 2)), TypeError, "Linear is not a CLIP vision encoder"),
    Refusal("NaN", lambda: swapped(new=biased(float("nan"))), ValueError, "'post_layernorm.bias' … NaN or infinity"),
    Refusal(
        "too large for half precision",
        lambda: swap_vision_tower(llava().half(), biased(1e6)),
        ValueError,
        "hold 1e+06, which float16 cannot hold: use bfloat16 or float32",
    ),
    Refusal("a folder without weights", lambda no_weights: swapped(new=no_weights), ValueError, "holds no weights"),
    Refusal("an empty folder", lambda tmp_path: swapped(new=tmp_path), ValueError, "neither a config.json nor"),
    Refusal("on the meta device", lambda: swapped(new=hollow()), ValueError, "meta device"),
    Refusal(
        "a text encoder", lambda text: swapped(new=text), TypeError, "CLIPTextModelWithProjection is a text encoder"
    ),
    Refusal(
        "a folder with a text encoder", lambda text_folder: swapped(new=text_folder), ValueError, "is a text encoder"
    ),
    Refusal(
        "a SigLIP for a CLIP",
        lambda: swapped(new=siglip_encoder()),
        ValueError,
        "the encoder 'SiglipVisionModel' is a SiglipVisionModel, the vision tower needs a CLIPVisionModel",
    ),
    Refusal(
        "too few layers",
        lambda: swap_vision_tower(TINY["VipLlava"].model(), clip_encoder(num_hidden_layers=2)),
        ValueError,
        "has num_hidden_layers 2, … has 3 (its layers 1, 1, 2 are read)",
    ),
    Refusal(
        "layers that are read beyond",
        read_beyond,
        ValueError,
        "the configuration's vision_feature_layer 7 is not among the hidden states of a tower with 3 layers",
    ),
    Refusal(
        "a block more than is read",
        lambda: swap_vision_tower(TINY["PaliGemma"].model(), siglip_encoder(num_hidden_layers=4)),
        ValueError,
        "the encoder 'SiglipVisionModel' has num_hidden_layers 4, the vision tower has 3 (its layers 3 are read)",
    ),
    Refusal(
        "another normalisation",
        lambda other_mean: swapped(new=other_mean, proc=processor()),
        ValueError,
        "expects image_mean [0.5, 0.5, 0.5]",
    ),
]


def altered(**changes: Any) -> LlavaProcessor:
    made = processor()
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def larger() -> LlavaProcessor:
    made = processor()
    made.image_processor.size["shortest_edge"] = 64
    made.image_processor.crop_size = {"height": 64, "width": 64}
    return made


def another_token(call: Any) -> Any:
    """A Gemma 3 whose configuration names another token for images than its processor."""
    model, made = TINY["Gemma3"].model(), TINY["Gemma3"].processor()
    model.config.image_token_id = 30
    return call(model, made)


ALTERED = [
    ({"patch_size": 16}, "has patch_size 16, the model 8"),
    ({"vision_feature_select_strategy": "full"}, "the model 'default'"),
    ({"image_token": "<unk>"}, "has id 1"),
]
PROCESSORS = [
    *changing("processor", lambda **changes: swapped(proc=altered(**changes)), ALTERED),
    Refusal(
        "a tokenizer",
        lambda: swapped(proc=processor().tokenizer),
        TypeError,
        "TokenizersBackend is not the processor of a vision-language model",
    ),
    Refusal("another size", lambda: swapped(proc=larger()), ValueError, "does not take what its processor makes"),
    Refusal(
        "an unknown filter",
        lambda: LLAVA.inputs(LlavaImageProcessor(resample=4), images(1)),
        ValueError,
        "the filter 4 of the LlavaImageProcessorPil is unknown: use lanczos, bicubic or bilinear.",
    ),
    Refusal(
        "an unknown range",
        lambda: LLAVA.inputs(LlavaImageProcessor(rescale_factor=1 / 127.5), images(1)),
        ValueError,
        "the LlavaImageProcessorPil does not rescale bytes by 1/255: set do_rescale and rescale_factor.",
    ),
    Refusal(
        "Gemma 3: another token",
        lambda: another_token(lambda model, made: swap_vision_tower(model, siglip_encoder(), made)),
        ValueError,
        "the processor's image token '<image_soft_token>' has id 31, the model expects 30",
    ),
    Refusal(
        "Gemma 3: the tokens themselves",
        lambda: VlmLoss(TINY["Gemma3"].model(), TINY["Gemma3"].processor(), "user : <image> a", ["a"]),
        ValueError,
        "the prompt 'user : <image> a' must hold '<start_of_image>' exactly once, and its text must not.",
    ),
]


class Merging:
    """A processor whose tokenizer changes the prompt's last token once text follows."""

    def __init__(self, proc: LlavaProcessor) -> None:
        self.proc = proc

    def __getattr__(self, name: str) -> Any:
        return getattr(self.proc, name)

    def __call__(self, text: str, **options: Any) -> Any:
        inputs = self.proc(text=text, **options)
        if not text.endswith(":"):
            inputs["input_ids"][0, -2:] = 1
        return inputs


def loss_of(vlm: Any, proc: Any, prompt: Any = PROMPT, texts: Any = ("a",)) -> VlmLoss:
    return VlmLoss(vlm, proc, prompt, texts)


TEXTS = [
    ({"prompt": "no picture :"}, "'<image>' exactly once"),
    ({"prompt": "<image> <image> :"}, "exactly once"),
    ({"texts": []}, "0 texts"),
    ({"texts": [""]}, "has no tokens"),
    ({"prompt": [PROMPT, PROMPT]}, "2 prompts for 1 texts"),
]
LOSSES = [
    Refusal(
        "a prompt that merges with the text",
        lambda vlm, proc: VlmLoss(vlm, Merging(proc), PROMPT, ["a"]),
        ValueError,
        "the prompt's last token merges with the text 'a'",
    ),
    Refusal(
        "an image without a batch",
        lambda vlm, proc: VlmLoss(vlm, proc, PROMPT, ["a"])(torch.rand(3, 40, 40)),
        ValueError,
        "pixels have shape (3, 40, 40), images are (B, 3, H, W): reshape them.",
    ),
    Refusal(
        "two images for a text",
        lambda vlm, proc: VlmLoss(vlm, proc, PROMPT, ["a"])(images(2)),
        ValueError,
        "2 images for 1 texts: give one image per text.",
    ),
    Refusal(
        "a loss with another token",
        lambda vlm: VlmLoss(vlm, altered(image_token="<unk>"), "<unk> :", ["a"]),
        ValueError,
        "the processor's image token '<unk>' has id 1, the model expects 4: load both from the same repository.",
    ),
    Refusal(
        "a question for two images",
        lambda vlm, proc: generate_text(vlm, proc, images(2), [PROMPT]),
        ValueError,
        "1 prompts for 2 images: give one prompt, or one per image.",
    ),
    Refusal(
        "a question about no batch",
        lambda vlm, proc: generate_text(vlm, proc, torch.rand(3, SIZE, SIZE), PROMPT),
        ValueError,
        "pixels have shape (3, 32, 32), images are (B, 3, H, W): reshape them.",
    ),
]


@table(*MODELS, *TOWERS, *ENCODERS, *PROCESSORS, *changing("a loss", loss_of, TEXTS), *LOSSES)
def test_what_does_not_fit_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
