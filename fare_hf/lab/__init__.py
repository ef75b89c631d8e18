"""The embedded lab: small real data, a small CLIP, LLaVA and SmolVLM, and robust encoders, all inside the package."""

from typing import TYPE_CHECKING

from fare_hf.lazy import on_first_use

if TYPE_CHECKING:  # the same names as below
    from fare_hf.lab.models import load_clip, load_llava, load_smolvlm
    from fare_hf.lab.names import ENCODERS, TEST_SETS, TRAINING_SETS, encoder_folder
    from fare_hf.lab.sets import DrawingsForTraining, TestSet, load_test_samples, load_test_set, load_training_set

_NAMES = {  # imported on first use: what is called what is known without torch
    "models": ("load_clip", "load_llava", "load_smolvlm"),
    "names": ("ENCODERS", "TEST_SETS", "TRAINING_SETS", "encoder_folder"),
    "sets": ("DrawingsForTraining", "TestSet", "load_test_samples", "load_test_set", "load_training_set"),
}
_HOMES, __getattr__, __dir__ = on_first_use(__name__, _NAMES)

__all__ = [
    "ENCODERS",
    "TEST_SETS",
    "TRAINING_SETS",
    "DrawingsForTraining",
    "TestSet",
    "encoder_folder",
    "load_clip",
    "load_llava",
    "load_smolvlm",
    "load_test_samples",
    "load_test_set",
    "load_training_set",
]
