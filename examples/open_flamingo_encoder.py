"""An exported robust encoder in OpenFlamingo's vision encoder: the same features as in transformers.

OpenFlamingo builds its vision encoder with open_clip and reads the patch tokens (`visual.output_tokens = True`). Its
package pins old versions of everything, so run this in an environment of its own:

    fare-hf convert USER/fare4-clip --output_dir fare4-open-clip --to open_clip --base openai/clip-vit-large-patch14
    pip install --no-deps open-flamingo einops einops-exts open-clip-torch timm ftfy wcwidth
    python examples/open_flamingo_encoder.py fare4-open-clip

`features` of this file is what the test compares with transformers.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import torch


def vision_encoder(folder: str) -> Any:
    """The encoder as `open_flamingo.create_model_and_transforms` makes it, from a folder of `fare-hf convert`."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.visual.output_tokens = True
    return model.visual.eval()


def features(encoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What OpenFlamingo's own code reads of images (B, 3, S, S), normalised: tokens (B, N, D) before its resampler."""
    from open_flamingo.src.flamingo import Flamingo

    flamingo = SimpleNamespace(vision_encoder=encoder, perceiver=lambda x: x, lang_encoder=_Layers())
    # (batch, images, frames, channels, height, width), as OpenFlamingo has it
    Flamingo._encode_vision_x(flamingo, pixels[:, None, None])
    return flamingo.lang_encoder.seen.flatten(1, 3)


class _Layers:
    """Stands for the language model: keeps what its layers would be conditioned on."""

    def _get_decoder_layers(self) -> list[_Layers]:
        return [self]

    def condition_vis_x(self, vision: torch.Tensor) -> None:
        """Called once for each layer."""
        self.seen = vision


def main() -> None:
    """Load a folder and embed one random image."""
    encoder = vision_encoder(sys.argv[1])
    size = encoder.image_size[0] if isinstance(encoder.image_size, tuple) else encoder.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    print(f"features {tuple(features(encoder, pixels).shape)}")


if __name__ == "__main__":
    main()
