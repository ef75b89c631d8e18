"""Break a small CLIP, fine-tune it with FARE, measure the robust one."""

# %% [markdown]
# # Quickstart: break a small CLIP, fine-tune it with FARE, measure the robust one
# A small CLIP, trained on drawings, comes with the package. An attacker who may change every pixel by at most 4/255
# breaks it; FARE fine-tunes it so that he breaks less of it. Nothing is downloaded. `fare-hf quickstart` does the same
# at full length.

# %%
from dataclasses import replace
from tempfile import mkdtemp

from IPython.display import display

from fare_hf import FareConfig, FareTrainer, RobustnessReport, load_encoder
from fare_hf.lab import encoder_folder, load_clip, load_training_set, measure

STEPS = 20  # of the training, to see it run; the lab's own encoders have 2,000
SAMPLES = 52  # images that are measured
budget = replace(measure.QUICK, samples={"twemoji": SAMPLES}, steps=10)

# %% [markdown]
# ## The original
# Accuracy of zero-shot classification, clean and under attack.

# %%
clip, encoder = load_clip(), load_encoder(str(encoder_folder("clip")))
rows = measure.measure_zero_shot("CLIP", encoder, clip, budget)
display(RobustnessReport(rows))

# %% [markdown]
# ## FARE
# Each batch is attacked with PGD, and the embedding of the attacked image is drawn back to where the original puts the
# clean one. No labels.

# %%
images = load_training_set()
config = FareConfig(
    mkdtemp(),
    eps="4/255",
    attack_steps=2,
    attack_step_size="4/255",
    learning_rate=1e-3,
    max_steps=STEPS,
    warmup_steps=0,
    logging_steps=5,
    per_device_train_batch_size=16,
    save_strategy="no",
)
trainer = FareTrainer(encoder, config, train_dataset=images, processing_class=images.processor)
trainer.train()

# %% [markdown]
# ## The robust encoder
# So few steps make no encoder robust: measured is the lab's FARE-4, which 2,000 steps made. `trainer.save_encoder()`
# writes your own with its card, to be loaded in the same way.

# %%
robust = load_encoder(str(encoder_folder("fare-4")))
rows += measure.measure_zero_shot("FARE-4", robust, clip, budget)
display(RobustnessReport(rows))
