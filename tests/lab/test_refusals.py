"""Names that the lab does not have, and the sentence that lists those it has."""

from __future__ import annotations

import pytest
from helpers.refusals import Refusal, table

from fare_hf.lab import TEST_SETS, encoder_folder, load_test_set, load_training_set, recipes
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.lab.names import encoder_path, lab_name
from fare_hf.lab.questions import load_question_set


@table(
    Refusal("a test set", lambda: load_test_set("imagenet"), ValueError, "'imagenet' is not in the lab…twemoji"),
    Refusal("a training set", lambda: load_training_set("photos"), ValueError, "'photos' is not in the lab…drawings"),
    Refusal("an encoder", lambda: encoder_folder("fare-8"), ValueError, "'fare-8' is not in the lab…fare-4"),
    Refusal("a recipe", lambda: recipes.recipe("fare-8"), ValueError, "'fare-8' is not in the lab…fare-4"),
    Refusal("questions", lambda: load_question_set("vqa", "twemoji"), ValueError, "use one of"),
    Refusal("a style of questions", lambda: load_question_set("pope", "noto"), ValueError, "use one of"),
    Refusal(
        "lab: an encoder",
        lambda: encoder_path("lab:fare-8"),
        ValueError,
        "'lab:fare-8' is not in the lab; use one of lab:clip, lab:fare-2, lab:fare-4, lab:tecoa-2, lab:tecoa-4, "
        "lab:smolvlm-4.",
    ),
    Refusal(
        "lab: a model that is no encoder",
        lambda: encoder_path("lab:llava"),
        ValueError,
        "'lab:llava' is a vision-language model of the lab, which is not wanted here; use one of lab:clip, lab:fare-2",
    ),
    Refusal(
        "lab: an encoder that is no VLM",
        lambda: load_vlm_and_processor("lab:clip"),
        ValueError,
        "'lab:clip' is an encoder of the lab, which is not wanted here; use one of lab:llava, lab:smolvlm.",
    ),
    Refusal(
        "lab: a set, with its field",
        lambda: lab_name("lab:dr", TEST_SETS, "dataset="),
        ValueError,
        "dataset='lab:dr' is not in the lab; use one of lab:twe",
    ),
)
def test_unknown_names_are_refused_with_the_list(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
