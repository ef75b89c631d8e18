"""The page's HTML: every loss is a point, the change is magnified, and what a model or visitor says is text."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

from fare_hf.app.attack import Found, Settings
from fare_hf.app.chart import curve
from fare_hf.app.markup import answers, difference, sentence
from fare_hf.app.pictures import Picture
from fare_hf.attacks import ThreatModel

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def found() -> Found:
    """A finished attack on models of which one is hostile."""
    settings = Settings(ThreatModel("linf", "2/255"), steps=4, target=ATTACK)
    found = Found(Picture(Image.new("RGB", (8, 8), "gray"), ATTACK), settings, {"one": ATTACK, ATTACK: "b"})
    found.losses = {"one": [3.0, 2.0, 0.5, 0.25, 0.125], ATTACK: [4.0, 3.0]}
    return found


def test_every_loss_is_a_point_of_the_curve(found: Found) -> None:
    lines = [points.split() for points in re.findall(r'points="([^"]*)"', curve(found))]
    assert [len(line) for line in lines] == [5, 2]
    assert lines[0][0] == "44.0,51.5" and lines[0][-1].startswith("630.0,")  # 3 of 4, and the last step
    assert "step 4" in curve(found) and "<script" not in curve(found)


def test_what_is_said_is_text_and_never_markup(found: Found) -> None:
    assert "step 4 of 4" in answers(found) and "step 1 of 4" in answers(found)
    found.attacked = {name: found.pixels + 2 / 255 for name in found.clean}
    found.answers = {(one, other): ATTACK for one in found.clean for other in found.clean}
    page = answers(found)
    assert "<script" not in page and "<script" not in sentence(ValueError(ATTACK))
    assert page.count("says it</span>") == 4 and page.count("Transferred: ") == 2
    assert "difference &times; 64 (largest: 2/255)" in page
    assert "linf 2/255, APGD, 4 steps, restarts 1, seed 0" in page


def test_the_difference_is_grey_where_nothing_changed_and_full_at_eps() -> None:
    clean = torch.full((1, 3, 1, 3), 0.5)
    change = torch.tensor([0.0, 2 / 255, -1 / 255]).expand(1, 3, 1, 3)
    assert torch.allclose(
        difference(clean + change, clean, 2 / 255)[0, 0, 0], torch.tensor([0.5, 1.0, 0.25]), atol=1e-5
    )
