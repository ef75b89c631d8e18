"""An attack on each of two models, step by step: what a page shows while it runs, and what was found in the end.

Each model is attacked for itself, through all of it. Judged is the picture in 8 bit, as the page shows it and as a
file would hold it; and each model is also shown the picture that was made against the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fare_hf.app.models import ANSWER_TOKENS, Model
from fare_hf.app.pictures import Picture
from fare_hf.attacks import LossFn, ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.vlm.adversarial_images import quantize_inside
from fare_hf.evaluation.vlm.forced_strings import says
from fare_hf.vlm import tower_placement

__all__ = ["LONGEST_TARGET", "MOST_STEPS", "Found", "Settings", "attack_models"]

MOST_STEPS = 200
LONGEST_TARGET = 200  # characters
PARTS = 50
"""How often an attack says where it is."""


@dataclass(frozen=True)
class Settings:
    """What is done.

    Attributes:
        threat_model: linf.
        steps: of APGD on each model, up to `MOST_STEPS`.
        target: what the model is to say; "" raises the loss of what it says to the clean picture.
        seed: of the random start.

    Raises:
        ValueError: too many steps, or too long a target.
    """

    threat_model: ThreatModel
    steps: int = 50
    target: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise ValueError(f"{self.steps} steps: give 1 to {MOST_STEPS}.")
        if len(self.target) > LONGEST_TARGET:
            raise ValueError(f"the text to force has {len(self.target)} characters: give {LONGEST_TARGET} at most.")


@dataclass
class Found:
    """What is known so far; the dictionaries are by the models' names.

    Attributes:
        picture, settings: of the attack.
        clean: answers to the clean picture.
        losses: of the attacked text, at the start and after every step.
        attacked: (1, 3, S, S), 8-bit levels, made against that model.
        answers: (attacked model, asked model) -> answer.
    """

    picture: Picture
    settings: Settings
    clean: dict[str, str] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    attacked: dict[str, Tensor] = field(default_factory=dict)
    answers: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def pixels(self) -> Tensor:
        """The clean picture, (1, 3, S, S)."""
        return torch.from_numpy(np.array(self.picture.image)).permute(2, 0, 1)[None].float().div(255)

    def succeeded(self, source: str, asked: str) -> bool:
        """Whether the picture made against one model makes another (or itself) say what it should not.

        That is the text to force. Without one it is a caption that no longer names what the picture shows; where the
        clean caption does not name it either, or nobody knows, it is any other caption.
        """
        answer, clean = self.answers[source, asked], self.clean[asked]
        if self.settings.target:
            return says(answer, self.settings.target)
        if self.picture.named_in(clean):
            return not self.picture.named_in(answer)
        return answer != clean


def attack_models(models: Sequence[Model], picture: Picture, settings: Settings) -> Iterator[Found]:
    """Asks, attacks and asks again; what is yielded is one object that grows.

    An iterator that nobody goes on with leaves nothing behind: the models are frozen only while a step runs.

    Args:
        models: of different names.
        picture: resized to the first model's size.
        settings: of the attack.

    Raises:
        ValueError: a target that leaves no room in an answer, or an attack that raises the loss of an empty answer.

    Example:
        >>> from fare_hf import ThreatModel
        >>> from fare_hf.app.models import load_models
        >>> from fare_hf.app.pictures import lab_pictures
        >>> models, _ = load_models("lab:llava", "lab:fare-4")
        >>> settings = Settings(ThreatModel("linf", "2/255"), steps=2)
        >>> *_, found = attack_models(models, lab_pictures(1)[0], settings)
        >>> len(found.answers)
        4
    """
    found = Found(picture, settings)
    for model in models:
        found.clean[model.name] = model.answer(found.pixels)
    yield found
    for model in models:
        yield from _attack(model, found)
    for source, pixels in found.attacked.items():
        for model in models:
            found.answers[source, model.name] = model.answer(pixels)
    yield found


class _Pause(Exception):
    """Ends a part of an attack, with the state to go on from."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state


def _pause(state: Mapping[str, Tensor]) -> None:
    raise _Pause(state)


def _attack(model: Model, found: Found) -> Iterator[Found]:
    """One run of APGD in parts; between them nothing is held."""
    settings, losses = found.settings, found.losses.setdefault(model.name, [])
    loss_fn, device = _recorded(model, found, losses), tower_placement(model.vlm)[0]
    pixels = found.pixels.to(device)
    options: dict[str, Any] = {"steps": settings.steps, "save": _pause, "save_every": -(-settings.steps // PARTS)}
    state: Mapping[str, Tensor] | None = None
    while True:
        generator = torch.Generator().manual_seed(settings.seed)
        try:
            with frozen(model.vlm), matmul_patch_embedding(model.vlm):
                points = apgd(loss_fn, pixels, settings.threat_model, generator=generator, resume=state, **options)
            break
        except _Pause as pause:
            state = pause.state
        yield found
    found.attacked[model.name] = quantize_inside(points.pixels.cpu(), found.pixels, settings.threat_model)
    yield found


def _recorded(model: Model, found: Found, losses: list[float]) -> LossFn:
    """What an attack raises; each value of the text's loss is put at the end of `losses`.

    Raises:
        ValueError: no text, or one that no answer has room for.
    """
    target, clean = found.settings.target, found.clean[model.name]
    if not (target or clean):
        raise ValueError(f"{model.name} says nothing about the clean picture: pick another, or force a text.")
    loss = model.loss(target or clean)
    tokens = int((loss.labels >= 0).sum())
    if target and tokens > ANSWER_TOKENS:
        raise ValueError(f"the text to force has {tokens} tokens, an answer {ANSWER_TOKENS} at most: shorten it.")

    def raised(pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        values, match = loss.with_match(pixels)
        losses.append(float(values.detach()[0]))
        return (-values, match) if target else values

    return raised
