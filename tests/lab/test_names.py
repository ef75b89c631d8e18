"""`lab:NAME`, wherever a model or a set is asked for."""

from __future__ import annotations

from helpers.tiny_llava import llava, processor

from fare_hf.lab import TEST_SETS, encoder_folder
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.lab.names import encoder_path, is_in_lab, lab_name


def test_names_of_the_lab_lead_to_it_and_others_stay() -> None:
    assert is_in_lab("lab:clip") and not is_in_lab("lab") and not is_in_lab("me/lab:clip")
    assert encoder_path("lab:clip") == str(encoder_folder("clip"))
    assert encoder_path("lab:tecoa-4") == str(encoder_folder("tecoa-4"))
    assert encoder_path("openai/clip") == "openai/clip" and encoder_path("clip") == "clip"
    assert lab_name("lab:digits", TEST_SETS) == lab_name("digits", TEST_SETS) == "digits"


def test_models_are_loaded_by_either_kind_of_name(tmp_path: object) -> None:
    assert load_vlm_and_processor("lab:llava")[0].config.model_type == "llava"
    llava().train().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    model, its = load_vlm_and_processor(str(tmp_path))
    assert not model.training and its.image_processor is not None
