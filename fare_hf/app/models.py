"""The two models of the page: one vision-language model, and the same with a robust encoder for its tower."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fare_hf.evaluation.processes import process_state
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION, chat_prompt
from fare_hf.lab.captions import chat
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.lab.names import encoder_path, is_in_lab, trained_path
from fare_hf.vlm import SwapReport, VlmLoss, generate_text, swap_vision_tower, tower_placement, towers_of
from fare_hf.vlm.swap.before_loading import check_swap

__all__ = ["ANSWER_TOKENS", "Model", "load_models"]

ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Model:
    """A vision-language model and the one thing that it is asked.

    Attributes:
        name: as the page gives it.
        vlm, processor: in evaluation mode.
        prompt: asks for a caption.
    """

    name: str
    vlm: Any
    processor: Any
    prompt: str

    def answer(self, pixels: Tensor) -> str:
        """What it says about one image (1, 3, H, W) in [0, 1]."""
        pixels = pixels.to(tower_placement(self.vlm)[0])
        return generate_text(self.vlm, self.processor, pixels, self.prompt, max_new_tokens=ANSWER_TOKENS)[0]

    def loss(self, text: str) -> VlmLoss:
        """Of one text about one image."""
        return VlmLoss(self.vlm, self.processor, self.prompt, [text])

    @property
    def size(self) -> int:
        """Pixels a side of an image as its tower sees it."""
        return int(self.vlm.config.vision_config.image_size)


def load_models(vlm: str, encoder: str, template: str | None = None) -> tuple[list[Model], SwapReport]:
    """The original and the robust model, which share all weights but those of the tower.

    Args:
        vlm: folder or repository, or `lab:llava`.
        encoder: folder or repository of a robust encoder that fits it, or one such as `lab:fare-4`.
        template: of the prompt, with `{}` for the question, for processors without a chat template.

    Returns:
        The two models, and what the swap did.

    Raises:
        ValueError, OSError: no such model or encoder, or what `chat_prompt` and `swap_vision_tower` refuse.

    Example:
        >>> models, report = load_models("lab:llava", "lab:fare-4")
        >>> [model.name for model in models]
        ['original: lab:llava', 'robust: with lab:fare-4']
    """
    if is_in_lab(vlm) and template is not None:
        raise ValueError(f"template is for other models than {vlm}, which has its own: leave it out.")
    path = encoder_path(encoder)
    check_swap(trained_path(vlm), path)
    original, processor = load_vlm_and_processor(vlm)
    original.to(process_state().device)
    prompt = chat(CAPTION_QUESTION) if is_in_lab(vlm) else chat_prompt(processor, CAPTION_QUESTION, template)
    robust, its_processor = _with_own_tower(original), copy.deepcopy(processor)
    report = swap_vision_tower(robust, path, its_processor)
    before = Model(f"original: {vlm}", original, processor, prompt)
    return [before, Model(f"robust: with {encoder}", robust, its_processor, prompt)], report


def _with_own_tower(vlm: Any) -> Any:
    """A copy whose tower has weights of its own; all others are shared, as two language models take twice the room."""
    own = {id(tensor) for tower in towers_of(vlm).values() for tensor in (*tower.parameters(), *tower.buffers())}
    shared = {id(tensor): tensor for tensor in (*vlm.parameters(), *vlm.buffers()) if id(tensor) not in own}
    return copy.deepcopy(vlm, shared)
