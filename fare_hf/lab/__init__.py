"""The embedded lab: small real data, a small CLIP, LLaVA and SmolVLM, and robust encoders, all inside the package."""

from typing import TYPE_CHECKING

from fare_hf.lazy import on_first_use

if TYPE_CHECKING:  # the same names as below
    from fare_hf.lab.models import load_clip, load_llava, load_smolvlm
    from fare_hf.lab.names import ENCODERS, TEST_SETS, TRAINING_SETS, encoder_folder
    from fare_hf.lab.sets import UNSEEN, TestSet, load_test_samples, load_test_set
    from fare_hf.lab.training_sets import DrawingsForTraining, ImagesForTraining, load_training_set

_NAMES = {  # imported on first use: what is called what is known without torch
    "models": ("load_clip", "load_llava", "load_smolvlm"),
    "names": ("ENCODERS", "TEST_SETS", "TRAINING_SETS", "encoder_folder"),
    "sets": ("UNSEEN", "TestSet", "load_test_samples", "load_test_set"),
    "training_sets": ("DrawingsForTraining", "ImagesForTraining", "load_training_set"),
}
_HOMES, __getattr__, __dir__ = on_first_use(__name__, _NAMES)

__all__ = [
    "ENCODERS",
    "TEST_SETS",
    "TRAINING_SETS",
    "UNSEEN",
    "DrawingsForTraining",
    "ImagesForTraining",
    "TestSet",
    "encoder_folder",
    "load_clip",
    "load_llava",
    "load_smolvlm",
    "load_test_samples",
    "load_test_set",
    "load_training_set",
]
