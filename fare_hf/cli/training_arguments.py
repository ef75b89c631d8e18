"""What a training is asked for besides `FareConfig`, and options that contradict each other or that nothing reads."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import IntervalStrategy

from fare_hf.data.opening import check_folder
from fare_hf.encoders.reading import FEATURES
from fare_hf.hub.licenses import check_license
from fare_hf.lab.names import TEST_SETS, TRAINING_SETS, encoder_path, is_in_lab, lab_name, trained_path
from fare_hf.objectives import OBJECTIVES
from fare_hf.training.config import FareConfig, options_in
from fare_hf.training.logging.measurements import MEASURED
from fare_hf.training.trainer_options import defaults_of

__all__ = ["FareScriptArguments", "check_arguments"]

LARGEST_SIDE = 1 << 14
"""Pixels of a training image."""
EVALUATION = (
    *("eval_split", "eval_steps", "eval_delay", "per_device_eval_batch_size"),
    *options_in("evaluation"),
)
PUBLICATION = ("hub_model_id", "hub_strategy", "hub_revision", "hub_private_repo", "hub_always_push")
DATA = (
    *("train_split", "dataset_config", "image_column", "label_column", "image_processor"),
    *("streaming", "shuffle_buffer", "replace_corrupt", "fast_images"),
)


@dataclass
class FareScriptArguments:
    """What to train on what; everything else is in `FareConfig`."""

    model: str = field(
        metadata={
            "help": "Vision encoder or CLIP, or with --embedding features the vision-language model whose tower is "
            "trained: a Hub repository, a folder, lab:clip, or lab:llava or lab:smolvlm."
        }
    )
    dataset: str = field(
        metadata={"help": "Images: a folder, a saved data set, a Hub repository, or lab:NAME for a built-in set."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Split to evaluate on, with --eval_strategy; for the lab, a test set such as fxemoji."},
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration, for a data set with several; without it they are listed."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of images; found if there is one."})
    label_column: str | None = field(default=None, metadata={"help": "Column of labels; found if it is a ClassLabel."})
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Images that a reader of a stream draws the next from; 0: in order."}
    )
    replace_corrupt: bool = field(
        default=False, metadata={"help": "Train on the next image where one cannot be read; all are named at the end."}
    )
    fast_images: bool = field(
        default=False,
        metadata={
            "help": "Resize with torch, and decode JPEGs with simplejpeg where it is installed: about three times as "
            "many images a second, of which a value in 250 is a level of 255 off."
        },
    )
    text_model: str | None = field(
        default=None, metadata={"help": "CLIP whose text encoder embeds class names; by default --model."}
    )
    image_processor: str | None = field(
        default=None, metadata={"help": "Repository or folder of the image processor; by default --model."}
    )
    image_side: int | None = field(
        default=None,
        metadata={"help": "With --embedding features: pixels a side of the images; by default as the tower is made."},
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub name of the original on the card, where --model is a copy in a folder."}
    )
    with_text_encoder: bool = field(
        default=False, metadata={"help": "Save and publish the text encoder and tokenizer too: a whole CLIP."}
    )
    license: str | None = field(
        default=None, metadata={"help": "Licence on the card, such as mit; by default that on the model's own card."}
    )

    def __post_init__(self) -> None:
        if self.shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer={self.shuffle_buffer} is negative; give 1000, or 0 for no shuffling.")
        if self.image_side is not None and not 1 <= self.image_side <= LARGEST_SIDE:
            raise ValueError(f"image_side={self.image_side} is no size of images; give 1 to {LARGEST_SIDE:,}.")
        if self.license is not None:
            check_license(self.license)
        self.model = trained_path(self.model)
        self.text_model = self.text_model and encoder_path(self.text_model)

    @property
    def clip(self) -> str:
        """The CLIP or SigLIP whose text encoder is meant."""
        return self.text_model or self.model


def check_arguments(script: FareScriptArguments, config: FareConfig) -> None:
    """Refuses, before anything is fetched, what cannot work and what was asked for and would be dropped.

    Args:
        script, config: what was asked for.

    Raises:
        ValueError: an option that needs another, a data set that is not there, or an option that is not at its default
            and is not read.
    """
    strategy, metric = IntervalStrategy(config.eval_strategy).value, config.metric_for_best_model
    if strategy != "no" and script.eval_split is None:
        raise ValueError(f"eval_strategy={strategy!r} needs images; give --eval_split, such as test.")
    if script.streaming and config.max_steps < 1:
        raise ValueError("streaming=True: a stream has no known length; give --max_steps.")
    if metric is not None and metric.removeprefix("eval_") not in MEASURED:
        raise ValueError(f"metric_for_best_model={metric!r} is not measured; give one of {', '.join(MEASURED)}.")
    if is_in_lab(script.dataset):
        lab_name(script.dataset, TRAINING_SETS, "dataset=")
        lab_name(script.eval_split or TEST_SETS[0], TEST_SETS, "eval_split=")
    else:
        check_folder(script.dataset)
    _check_unread(script, config)


def _check_unread(script: FareScriptArguments, config: FareConfig) -> None:
    evaluates = config.eval_strategy != "no" or config.eval_on_start
    read = OBJECTIVES[config.objective].options
    classes = "class_names" in read or evaluates
    no_classes = f"objective is {config.objective!r}, without an evaluation"
    drawn = is_in_lab(script.dataset)
    unread: dict[str, tuple[str, ...]] = {
        "eval_strategy is 'no'": () if evaluates else EVALUATION,
        no_classes: () if classes else ("class_names", "label_column", "templates"),
        f"embedding is {config.embedding!r}": () if config.embedding == FEATURES else ("image_side",),
        "no text is embedded": () if classes or script.with_text_encoder else ("text_model",),
        "the lab's sets have the prompt '{}'": ("templates",) if drawn and "templates" not in read else (),
        f"{script.dataset} is drawn anew in each epoch": DATA if drawn else (),
        "push_to_hub is False": () if config.push_to_hub else PUBLICATION,
        "save_strategy is not 'steps'": () if config.save_strategy == "steps" else ("save_steps",),
        "save_strategy is 'no'": ("save_total_limit",) if config.save_strategy == "no" else (),
        "streaming is False": () if script.streaming else ("shuffle_buffer",),
        "a stream has an order of its own (shuffle_buffer=0 keeps that of the data)": ("train_sampling_strategy",)
        if script.streaming
        else (),
    }
    defaults = defaults_of(config) | defaults_of(script)
    for why, names in unread.items():
        for name in names:
            value = getattr(script if hasattr(script, name) else config, name)
            if value != defaults[name]:
                raise ValueError(f"{name}={value!r} is not read: {why}; leave it out, or change that.")
