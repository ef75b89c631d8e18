"""PaliGemma: the prompt is read in both directions, so that an answer has to be marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from fare_hf.vlm.families.family import Family

__all__ = ["PaliGemma"]


class PaliGemma(Family):
    """Its answers are suffixes; the end of text that the processor adds is no part of them."""

    def processor_inputs(
        self, processor: Any, prompt: str, picture: Image.Image, answer: str | None = None
    ) -> dict[str, Tensor]:
        if not answer:
            return super().processor_inputs(processor, prompt, picture)
        inputs = dict(processor(images=picture, text=prompt, suffix=answer, return_tensors="pt"))
        return {name: value if name in self.of_image else value[:, :-1] for name, value in inputs.items()}

    def sized(self, vlm: Any, size: int) -> Sequence[tuple[Any, str, int]]:
        configs = {id(config): config for config in (vlm.config, vlm.model.config)}.values()
        return [
            (config.text_config, "num_image_tokens", (size // int(config.vision_config.patch_size)) ** 2)
            for config in configs
        ]
