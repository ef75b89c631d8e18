"""Measure an encoder, clean and attacked, on a folder of your own images."""

# %% [markdown]
# # Measure an encoder on your own images, clean and attacked
# A folder with a folder for each class is enough. Here one is made of the lab's drawings; put your own path in
# `FOLDER`.

# %%
from pathlib import Path
from tempfile import mkdtemp

from IPython.display import Image, display

from fare_hf import evaluate
from fare_hf.data.pixels import to_pil
from fare_hf.evaluation import draw_report
from fare_hf.lab import encoder_folder, load_test_set

SAMPLES, STEPS = 40, 10
FOLDER = Path(mkdtemp()) / "photos"
test = load_test_set("twemoji")
for number, picture in enumerate(to_pil(test.pixels[:60])):
    folder = FOLDER / test.class_names[int(test.labels[number])]
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / f"{number}.png")
print(*sorted(folder.name for folder in FOLDER.iterdir()), sep=", ")

# %% [markdown]
# ## Accuracy, clean and attacked, beside the original
# `against` measures the original on the same images, and the report compares the two in pairs. For your own encoder
# leave `text_model` out: its card names the CLIP whose text encoder reads the class names.

# %%
found = evaluate(
    encoder_folder("fare-4"),
    str(FOLDER),
    against=encoder_folder("clip"),
    text_model=encoder_folder("clip"),
    eps=["2/255", "4/255"],
    samples=SAMPLES,
    steps=STEPS,
)
report = found.report()
display(report)

# %% [markdown]
# ## The report, saved and drawn
# `report.json` keeps each image's outcome, the attack and all versions.

# %%
print(report.save(FOLDER.with_suffix(".report")).name)
for chart in draw_report(report.rows, FOLDER.with_suffix(".plots")):
    display(Image(chart, width=420))
