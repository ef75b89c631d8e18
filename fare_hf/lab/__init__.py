"""The embedded lab: small real data, a small CLIP, a small LLaVA and robust encoders, all inside the package."""

from fare_hf.lab.models import load_clip, load_llava
from fare_hf.lab.names import ENCODERS, TEST_SETS, TRAINING_SETS, encoder_folder
from fare_hf.lab.sets import DrawingsForTraining, TestSet, load_test_samples, load_test_set, load_training_set

__all__ = [
    "ENCODERS",
    "TEST_SETS",
    "TRAINING_SETS",
    "DrawingsForTraining",
    "TestSet",
    "encoder_folder",
    "load_clip",
    "load_llava",
    "load_test_samples",
    "load_test_set",
    "load_training_set",
]
