"""The attack behind the page: in parts the same as in one go, honest about whom it was made against, nothing left."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from fare_hf.app.attack import Found, Settings, attack_models
from fare_hf.app.models import Model
from fare_hf.app.pictures import Picture
from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import frozen, matmul_patch_embedding
from fare_hf.evaluation.vlm.adversarial_images import check_sent, quantize_inside
from fare_hf.lab import load_llava

BALL = ThreatModel("linf", "4/255")


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Blue, with a red square."""
    image = Image.new("RGB", (160, 160), (20, 60, 200))
    image.paste((230, 30, 30), (40, 40, 120, 120))
    return Picture(image)


@pytest.mark.parametrize("target", ["", "a photo of a cat"])
def test_an_attack_in_parts_is_the_attack_in_one_go(models: list[Model], picture: Picture, target: str) -> None:
    settings = Settings(BALL, steps=3, target=target)
    seen = [[len(line) for line in found.losses.values()] for found in attack_models(models, picture, settings)]
    assert [2] in seen and [4, 3] in seen  # the curve grows: the start, and every step
    *_, found = attack_models(models, picture, settings)
    for model in models:
        assert found.clean[model.name] == model.answer(found.pixels)
        loss = model.loss(target or found.clean[model.name])
        sign = -1 if target else 1
        with frozen(model.vlm), matmul_patch_embedding(model.vlm):
            at_start = float(loss(BALL.random_start(found.pixels))[0])
            points = apgd(lambda pixels, loss=loss, sign=sign: sign * loss(pixels), found.pixels, BALL, steps=3).pixels
        attacked = found.attacked[model.name]
        assert torch.equal(attacked, quantize_inside(points, found.pixels, BALL))
        check_sent(attacked, found.pixels, BALL)
        assert len(found.losses[model.name]) == 4
        assert found.losses[model.name][0] == pytest.approx(at_start, rel=1e-4)
        for asked in models:
            assert found.answers[model.name, asked.name] == asked.answer(attacked)


def test_an_attack_that_nobody_goes_on_with_leaves_nothing(models: list[Model], picture: Picture) -> None:
    vlm = models[0].vlm
    before = [parameter.requires_grad for parameter in vlm.parameters()]
    progress = attack_models(models, picture, Settings(BALL, steps=3))
    while not next(progress).losses:
        pass
    assert [parameter.requires_grad for parameter in vlm.parameters()] == before
    assert all(parameter.grad is None for parameter in vlm.parameters())
    fresh = load_llava()[0].state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in vlm.state_dict().items())


def test_a_text_without_room_and_an_attack_without_end_are_refused(models: list[Model], picture: Picture) -> None:
    with pytest.raises(ValueError, match=r"the text to force has \d+ tokens, an answer 32 at most"):
        list(attack_models(models, picture, Settings(BALL, steps=1, target="cat " * 40)))
    with pytest.raises(ValueError, match="0 steps: give 1 to 200"):
        Settings(BALL, steps=0)
    with pytest.raises(ValueError, match="201 characters"):
        Settings(BALL, target="x" * 201)


@pytest.mark.parametrize(
    ("shows", "target", "clean", "answer", "succeeded"),
    [
        ("cat", "", "a photo of a cat", "a photo of a bus", True),
        ("cat", "", "a photo of a cat", "a drawing of a cat", False),
        ("cat", "", "a photo of a dog", "a photo of a dog", False),  # wrong without any attack
        ("", "", "a dog", "a dog", False),
        ("", "", "a dog", "two dogs", True),
        ("cat", "Visit us", "a photo of a cat", "please visit us now", True),
        ("cat", "Visit us", "a photo of a cat", "a photo of a bus", False),
    ],
)
def test_what_counts_as_success(
    picture: Picture, shows: str, target: str, clean: str, answer: str, succeeded: bool
) -> None:
    found = Found(Picture(picture.image, shows), Settings(BALL, target=target), {"m": clean})
    found.answers["m", "m"] = answer
    assert found.succeeded("m", "m") is succeeded
