"""The families whose real processors need torchvision, with those; run as a program, every capability of all families.

`test_vlm_torchvision.py` runs this in an environment of its own; it prints a line of JSON for each family.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from helpers.tiny_llava import SIZE
from helpers.tiny_parts import CHAT, PINPOINTS, words
from helpers.tiny_vlms import TINY
from helpers.tiny_vlms_further import COHERE, named_words, next_images
from helpers.vlm_capabilities import CAPABILITIES, NotClaimed
from transformers import (
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from fare_hf.vlm import swap_vision_tower

SQUARE = {"height": SIZE, "width": SIZE}
CROPPED: dict[str, Any] = {"size": {"shortest_edge": SIZE}, "crop_size": SQUARE}
COUNTS: dict[str, Any] = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "chat_template": CHAT,
}


def next_video() -> Any:
    """Tiles for images, frames for videos."""
    return LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**CROPPED), next_images(), words(), **COUNTS)


def video_llava() -> Any:
    """Images and videos."""
    images, videos = VideoLlavaImageProcessor(**CROPPED), VideoLlavaVideoProcessor(**CROPPED)
    return VideoLlavaProcessor(images, videos, words(), **COUNTS)


def onevision() -> Any:
    """Tiles for images, frames for videos."""
    images = LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS)
    options = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    return LlavaOnevisionProcessor(
        images, words(), LlavaOnevisionVideoProcessor(size=SQUARE), chat_template=CHAT, **options
    )


def cohere2() -> Any:
    """Its own image processor, which has no other form."""
    images = Cohere2VisionImageProcessor(size=SQUARE, max_patches=4, patch_size=2)
    return Cohere2VisionProcessor(images, named_words(COHERE), chat_template=CHAT)


REAL = {"LlavaNextVideo": next_video, "VideoLlava": video_llava, "LlavaOnevision": onevision, "Cohere2Vision": cohere2}
FAMILIES = {name: replace(tiny, processor=REAL.get(name, tiny.processor)) for name, tiny in TINY.items()}


def state(capability: Any, tiny: Any) -> str:
    """What the table of FAMILIES.md says."""
    try:
        capability(tiny)
    except NotClaimed as reason:
        return f"no ({reason})"
    return "yes"


def video_logits(model: Any, processor: Any) -> torch.Tensor:
    """What the model says of a random video."""
    frames = np.random.default_rng(0).integers(0, 256, (8, 40, 56, 3), dtype=np.uint8)
    inputs = processor(videos=[frames], text="user : <video> describe", return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def video(name: str) -> str:
    """A swap of another resolution changes what is said of a video too, and comes back."""
    model, processor = FAMILIES[name].model(), FAMILIES[name].processor()
    before = video_logits(model, processor)
    with swap_vision_tower(model, FAMILIES[name].encoder(image_size=48), processor):
        assert video_logits(model, processor).shape[1] > before.shape[1]
    assert torch.equal(video_logits(model, processor), before)
    return "yes"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name, tiny in FAMILIES.items():
        found = [type(tiny.processor().image_processor).__name__]
        print(json.dumps([name, *found, *(state(check, tiny) for check in CAPABILITIES.values())]), flush=True)
    print(json.dumps(["videos", *(video(name) for name in ("VideoLlava", "LlavaNextVideo", "LlavaOnevision"))]))
