"""The table of encoders in docs/encoders.md is that of the rows."""

from __future__ import annotations

import re

import pytest
from helpers.paths import ROOT

from fare_hf.encoders import EMBEDDINGS
from fare_hf.encoders.embedding import JOINED
from fare_hf.pretrained.encoder_families import ENCODER_FAMILIES, EncoderFamily
from fare_hf.vlm.families.towers import KINDS

PAGE = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("family", ENCODER_FAMILIES, ids=lambda family: family.tower)
def test_the_page_says_what_the_row_says(family: EncoderFamily) -> None:
    classes = ", ".join(f"`{cls.__name__}`" for cls in reversed(family.classes))
    single = [name for name in EMBEDDINGS if name not in JOINED]
    embeddings = ", ".join(single if family.projecting else single[1:])
    compared = f"on {family.compared}" if family.compared else "none"
    seen = "yes" if family in {kind.family for kind in KINDS} else "no"
    measured = "texts, `--probe`" if family.compared else "`--probe`"
    row = [f"`{family.whole or family.tower}`", classes, embeddings, compared, seen, measured]
    assert f"| {' | '.join(row)} |\n" in PAGE


def test_the_page_has_no_other_rows() -> None:
    assert len(re.findall(r"^\| `", PAGE, re.MULTILINE)) == len(ENCODER_FAMILIES)
