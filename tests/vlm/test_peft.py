"""Adapters of PEFT and weights of bitsandbytes around a swap, in an environment of its own."""

from __future__ import annotations

import pytest
from helpers.environments import environment, run
from helpers.paths import TESTS

pytestmark = pytest.mark.slow
FOLDER = TESTS
SCRIPT = """
import os, sys, tempfile, warnings
sys.path[:0] = sys.argv[1:3]
warnings.simplefilter("ignore")
import torch
from helpers.tiny_llava import PROMPT, encoder, images, llava, processor
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration
from fare_hf.vlm import VlmLoss, swap_vision_tower

def loss(model):
    with torch.no_grad():
        return VlmLoss(model, processor(), PROMPT, ["a red cat"])(images(1))

def refusal(model, new):
    try:
        swap_vision_tower(model, new, processor())
    except ValueError as error:
        return str(error)

plain = llava()
swap_vision_tower(plain, encoder(), processor())
language = get_peft_model(llava(), LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)"))
assert swap_vision_tower(language, encoder(), processor()).probe_difference == 0.0
torch.testing.assert_close(loss(language), loss(plain))
# The text before the image follows every switch of an adapter.
two = get_peft_model(llava(), LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", init_lora_weights=False))
two.add_adapter("second", LoraConfig(target_modules=r".*language_model.*v_proj", init_lora_weights=False))
kept = VlmLoss(two, processor(), PROMPT, ["a red cat"])
def same_as_new():
    with torch.no_grad():
        torch.testing.assert_close(kept(images(1)), loss(two), rtol=1e-6, atol=1e-6)
        return kept(images(1))
values = [same_as_new()]
with two.disable_adapter():
    values.append(same_as_new())
torch.testing.assert_close(values[1], loss(llava()))
two.set_adapter("second")
values.append(same_as_new())
two.merge_adapter()
torch.testing.assert_close(same_as_new(), values[2], rtol=1e-4, atol=1e-4)
two.unmerge_adapter()
with tempfile.TemporaryDirectory() as folder:
    two.save_pretrained(folder, selected_adapters=["default"])
    two.load_adapter(folder + "/default" if os.path.isdir(folder + "/default") else folder, "third")
two.set_adapter("third")
torch.testing.assert_close(same_as_new(), values[0], rtol=1e-4, atol=1e-4)
assert len({round(float(value), 3) for value in values}) == 3
everywhere = LoraConfig(target_modules=["q_proj"])
assert "the vision tower carries an adapter" in refusal(get_peft_model(llava(), everywhere), encoder())
assert "carries an adapter" in refusal(llava(), get_peft_model(encoder(), everywhere))
merged = get_peft_model(llava(), everywhere).merge_and_unload()
assert swap_vision_tower(merged, encoder(), processor()).probe_difference == 0.0
with tempfile.TemporaryDirectory() as folder:
    llava().save_pretrained(folder)
    for skipped in (["model.vision_tower", "lm_head"], None):
        quantised = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
        model = LlavaForConditionalGeneration.from_pretrained(folder, quantization_config=quantised, device_map="cpu")
        if skipped:
            assert swap_vision_tower(model, encoder(), processor()).probe_difference == 0.0
        else:
            assert "the vision tower is quantised" in refusal(model, encoder())
print("done")
"""


def test_adapters_and_quantised_language_models() -> None:
    python = environment("peft", ["peft", "bitsandbytes", "psutil"], dependencies=False)
    assert run(python, SCRIPT, str(FOLDER), str(FOLDER.parent)).endswith("done\n")
