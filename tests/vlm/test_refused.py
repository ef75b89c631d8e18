"""Every image-text-to-text class of transformers is a family of the table, or refused by name with a reason."""

from __future__ import annotations

import pytest
from helpers.vlm_capabilities import DOCUMENT, refused
from transformers import (
    CONFIG_MAPPING,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

from fare_hf.vlm import FAMILIES
from fare_hf.vlm.families.refused import REFUSED, reason_for
from fare_hf.vlm.families.table import family_named

CLASSES = {family.vlm_class for family in FAMILIES}


@pytest.mark.parametrize("kind", NAMES)
def test_each_class_of_transformers_has_a_row_or_a_reason(kind: str) -> None:
    name, config = NAMES[kind], CONFIG_MAPPING[kind]()
    if name in CLASSES:
        assert family_named([name], config).vlm_class == name
        return
    with pytest.raises(TypeError, match=f"the tower of a {name} cannot be swapped: ") as error:
        family_named([name], config)
    # The reason that is left for classes nobody has looked at yet.
    assert "is not known here" not in str(error.value)


def test_classes_that_carry_a_clip_or_siglip_are_rows_or_have_a_reason_of_their_own() -> None:
    towers = {
        kind: getattr(getattr(CONFIG_MAPPING[kind](), "vision_config", None), "model_type", "") for kind in NAMES
    }
    carrying = {NAMES[k] for k, t in towers.items() if t in ("clip_vision_model", "siglip_vision_model")}
    assert carrying - CLASSES == {"DeepseekVLHybridForConditionalGeneration"}
    own = {family.vlm_class for family in FAMILIES if family.kinds[0].own}
    assert CLASSES - carrying - own == {"IdeficsForVisionText2Text"} and not own & carrying


def test_the_longest_beginning_counts_and_none_is_a_family() -> None:
    assert reason_for(["Kosmos2_5ForConditionalGeneration"]) == REFUSED["Kosmos2_5"]
    assert reason_for(["DeepseekVLHybridForConditionalGeneration"]) == REFUSED["DeepseekVLHybrid"]
    assert not [start for start in REFUSED for name in CLASSES if name.startswith(start)]
    for start in REFUSED:
        assert any(name.startswith(start) for name in NAMES.values()), f"no class begins with {start}"


def test_the_document_lists_the_refused() -> None:
    assert refused() in DOCUMENT.read_text()
