"""Attack a small LLaVA until it says the attacker's sentence, swap a robust encoder in, attack again."""

# %% [markdown]
# # Attack a LLaVA, swap a robust encoder in, attack again
# The package's own small LLaVA stands in for a large one: with a model of the Hub, load `llava` and `processor` by
# `AutoModelForImageTextToText` and `AutoProcessor`, and everything below is the same.

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display

from fare_hf import ThreatModel, VlmLoss, apgd, generate_text, swap_vision_tower
from fare_hf.lab import encoder_folder, load_llava, load_test_set, measure

SAMPLES, STEPS = 4, 60
TARGET = measure.TARGET  # what the attacker wants to be said
threat_model = ThreatModel("linf", "4/255")
llava, processor = load_llava()
pixels = load_test_set("twemoji").pixels[: 5 * SAMPLES : 5]
print(generate_text(llava, processor, pixels, measure.PROMPT))

# %% [markdown]
# ## The attack
# It sees a loss and pixels, nothing else: here the likelihood of the sentence, to be maximised.


# %%
def attack() -> torch.Tensor:
    """Images in the ball around `pixels` on which the model as it is now says the target, if it can be made to."""
    loss = VlmLoss(llava, processor, measure.PROMPT, [TARGET] * SAMPLES)
    return apgd(lambda perturbed: -loss(perturbed), pixels, threat_model, steps=STEPS).pixels


def show(attacked: torch.Tensor) -> None:
    """The attacked images with what the model says of them."""
    answers = generate_text(llava, processor, attacked, measure.PROMPT)
    figure, axes = plt.subplots(1, SAMPLES, figsize=(2.2 * SAMPLES, 2.4), dpi=60)
    for axis, image, answer in zip(axes, attacked, answers, strict=True):
        axis.imshow(image.permute(1, 2, 0))
        axis.set_title(answer.strip(), fontsize=7)
        axis.axis("off")
    plt.show()
    print(f"{sum(TARGET in answer for answer in answers)} of {SAMPLES} say {TARGET!r}")


show(attack())

# %% [markdown]
# ## The swap
# One line, checked on a probe image. `undo()` puts the old tower back.

# %%
report = swap_vision_tower(llava, str(encoder_folder("fare-4")), processor)
display(report)

# %% [markdown]
# ## The same attack on the robust model

# %%
show(attack())
