"""A robust encoder where a program wants CLIP's own `CLIPVisionModelWithProjection`: IP-Adapter, retrieval, scoring.

Diffusers pipelines take the encoder as `image_encoder=`, and feed an IP-Adapter `image_embeds` or, in the "plus"
variants, `hidden_states[-2]`. Robust encoders are that class, so nothing but the name changes:

    image_encoder = CLIPVisionModelWithProjection.from_pretrained("user/fare4-clip-vit-large-patch14")
    pipeline = StableDiffusionPipeline.from_pretrained(..., image_encoder=image_encoder)

This runs on tiny random weights: the robust encoder is saved, loaded by plain transformers in fp16, and gives
an adapter of the same shapes what the original gives it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from fare_hf.attacks import ThreatModel
from fare_hf.hub import save_robust_encoder


def adapter_inputs(encoder: CLIPVisionModelWithProjection, processor: Any, image: Image.Image) -> list[torch.Tensor]:
    """What an IP-Adapter reads: the projected embedding; the last but one hidden state, and that of "no image"."""
    pixels = processor(image, return_tensors="pt").pixel_values.to(encoder.dtype)
    with torch.no_grad():
        image_embeds = encoder(pixels).image_embeds
        tokens = encoder(pixels, output_hidden_states=True).hidden_states[-2]
        nothing = encoder(torch.zeros_like(pixels), output_hidden_states=True).hidden_states[-2]
    return [image_embeds, torch.cat([nothing, tokens])]


def main() -> None:
    """Publish into a folder, load as a consumer does, compare."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=16)
    robust = CLIPVisionModelWithProjection(config).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    image = Image.effect_noise((48, 40), 80).convert("RGB")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "fare4"
        save_robust_encoder(
            robust, folder, processor=processor, base_model="openai/clip", threat_model=ThreatModel("linf", "4/255")
        )
        encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float16).eval()
        loaded = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        embedding, tokens = adapter_inputs(encoder, loaded, image)
        expected = adapter_inputs(robust.half(), processor, image)
    assert torch.equal(embedding, expected[0]) and torch.equal(tokens, expected[1])
    print(f"image_embeds {tuple(embedding.shape)}, hidden_states[-2] {tuple(tokens.shape)}: equal to the bit")


if __name__ == "__main__":
    main()
