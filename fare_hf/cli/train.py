"""Trains a robust vision encoder: `accelerate launch -m fare_hf.train --model M --dataset D --output_dir O`.

Checkpoints go to `output_dir`, the encoder to `output_dir/encoder`, where plain `from_pretrained` reads it, and the
recipe to `output_dir/training.json`. With `--push_to_hub` the encoder is published at the end, or as
`--hub_strategy` says.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Subset
from transformers import IntervalStrategy, ProgressCallback, set_seed

from fare_hf.cli.console import hide_notices, one_sentence
from fare_hf.cli.recipe_files import expand_config
from fare_hf.cli.training_options import build_parser
from fare_hf.cli.unread_options import check_unread
from fare_hf.data.classes import mapping_line, prompt_names, several_classes
from fare_hf.data.opening import (
    check_folder,
    check_labels,
    class_names_of,
    find_columns,
    is_image_folder,
    is_stream,
    load_images,
)
from fare_hf.data.pixel_datasets import PixelDataset, PixelStream
from fare_hf.data.streaming import spread_samples
from fare_hf.encoders import check_encoder_type, load_encoder, logit_scale_of, text_class_embeddings
from fare_hf.files.folders import LOCK
from fare_hf.hub.base_model import base_name, inherited_license
from fare_hf.hub.licenses import check_license
from fare_hf.hub.retry import Retries, bounded_waits
from fare_hf.hub.text_encoder import whole_clip
from fare_hf.lab import TEST_SETS, TRAINING_SETS, load_test_samples, load_training_set
from fare_hf.lab.names import encoder_path, is_in_lab, lab_name
from fare_hf.objectives import FareObjective, Objective, TecoaObjective
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.training import FareConfig, FareTrainer
from fare_hf.training.checkpointing.manifest import fault_of, latest_checkpoint
from fare_hf.training.logging.measurements import MEASURED
from fare_hf.training.logging.progress import ReadableProgress
from fare_hf.training.publish import recipe, save_encoder
from fare_hf.training.trainable import merge_lora

__all__ = ["FareScriptArguments", "main", "train"]

MOST_READ = 512
"""Evaluation images that are read before the first step."""
OWN = ("checkpoint-", "failure-step-", "replaced_images.", "training.json", ".")
"""How the names of what a run leaves in its folder begin, before its end."""
logger = logging.getLogger(__name__)


@dataclass
class FareScriptArguments:
    """What to train on what; everything else is in `FareConfig`."""

    model: str = field(metadata={"help": "Vision encoder or CLIP: a Hub repository, a folder, or lab:clip."})
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
    text_model: str | None = field(
        default=None, metadata={"help": "CLIP with the text encoder for tecoa; by default --model."}
    )
    image_processor: str | None = field(
        default=None, metadata={"help": "Repository or folder of the image processor; by default --model."}
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
        if self.license is not None:
            check_license(self.license)
        self.model = encoder_path(self.model)
        self.text_model = self.text_model and encoder_path(self.text_model)


def train(script: FareScriptArguments, config: FareConfig) -> Path:
    """Trains as the arguments say and returns the folder of the encoder.

    Raises:
        ValueError: an argument that cannot work, named with what to change.
    """
    _check_output(config)
    _check_options(script, config)
    check_encoder_type(script.model, config.embedding)  # both before anything large is fetched or prepared
    _check_dataset(script)
    check_unread(script, config)
    set_seed(config.seed)
    encoder = load_encoder(script.model, config.embedding)
    if script.with_text_encoder:  # what would fail after the last step fails before the first
        whole_clip(encoder, script.text_model or script.model)
    train_set, eval_set, processor = _load_data(script, config)
    eval_set, classes = _bounded(eval_set, config), class_names_of(eval_set)
    if config.eval_strategy != "no":
        _read_some(eval_set)
    trainer = FareTrainer(
        model=encoder,
        args=config,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
        objective=_make_objective(script, config, train_set),
        validation=_make_validation(script, config, classes, eval_set),
        card=_card(script),
    )
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress())
    with trainer.only_run():
        checkpoint = _check_output(config)  # again: another run may have ended here meanwhile
        trainer.train(resume_from_checkpoint=checkpoint or False)
        if not trainer.is_fsdp_enabled:  # whose shards are merged where they are gathered
            merge_lora(trainer.accelerator.unwrap_model(trainer.model))
        folder = _save(trainer, config)
        if config.push_to_hub and (published := trainer.push_to_hub(folder=folder)):
            print(published)
    return folder


def main(arguments: Sequence[str] | None = None, prog: str = "python -m fare_hf.train") -> None:
    """The command line: errors in what was asked are one sentence, without a traceback."""
    hide_notices()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser(FareScriptArguments, prog, __doc__, everything="--help_all" in words)
    config = None
    with one_sentence("fare_hf.train"):
        try:
            words = expand_config(words, {action.dest for action in parser._actions} - {"config"})
            script, config, unknown = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
            if unknown:
                raise ValueError(f"{' '.join(unknown)!r} is not understood; --help shows the options.")
            with bounded_waits(Retries()):
                train(script, config)
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                print(f"\nfare_hf.train: interrupted{_how_to_go_on(config)}.", file=sys.stderr)
            sys.exit(130)


def _how_to_go_on(config: FareConfig | None) -> str:
    """What to do after Ctrl-C."""
    if config is None:
        return ""
    folder = Path(str(config.output_dir))
    if (folder / "encoder").is_dir():
        return f"; the trained encoder is whole in '{folder / 'encoder'}'"
    found = latest_checkpoint(folder)
    where = f"from {Path(found).name}" if found else "from the beginning, as no checkpoint is complete"
    return f"; the same command with --resume_from_checkpoint latest goes on {where}"


def _check_output(config: FareConfig) -> str | None:
    """Refuses to write over anything; returns the checkpoint to resume from."""
    folder = Path(str(config.output_dir))
    encoder = folder / "encoder"
    if encoder.is_dir() and any(encoder.iterdir()):
        raise ValueError(f"{str(encoder)!r} holds a trained encoder already; give another output_dir.")
    resumed = config.resume_from_checkpoint
    elsewhere = resumed not in (None, "latest") and Path(str(resumed)).resolve().parent != folder.resolve()
    if resumed is None or elsewhere:  # whose own checkpoints would take the place of what is there
        if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
            raise ValueError(
                f"output_dir={str(folder)!r} is not empty; give another, or --resume_from_checkpoint latest."
            )
    if resumed is None:
        return None
    if resumed == "latest":
        return _latest(folder)
    fault = fault_of(Path(resumed))
    if fault is not None:
        raise ValueError(
            f"resume_from_checkpoint={resumed!r} is no complete checkpoint: {fault}; give another, or say latest."
        )
    return resumed


def _latest(folder: Path) -> str | None:
    """The newest complete checkpoint; None, with a warning, where a kill came before the first."""
    found = latest_checkpoint(folder)
    if found is not None:
        return found
    others = [path.name for path in folder.glob("*") if not path.name.startswith(OWN)]
    if others:
        raise ValueError(
            f"output_dir={str(folder)!r} has no complete checkpoint, but {', '.join(sorted(others)[:5])}; empty it, "
            "or give another."
        )
    logger.warning("output_dir=%r has no complete checkpoint; the run starts from the beginning.", str(folder))
    return None


def _check_options(script: FareScriptArguments, config: FareConfig) -> None:
    """Options of the Trainer that need one of the script's."""
    strategy = IntervalStrategy(config.eval_strategy).value
    if strategy != "no" and script.eval_split is None:
        raise ValueError(f"eval_strategy={strategy!r} needs images; give --eval_split, such as test.")
    if script.streaming and config.max_steps < 1:
        raise ValueError("streaming=True: a stream has no known length; give --max_steps.")
    metric = config.metric_for_best_model
    if metric is not None and metric.removeprefix("eval_") not in MEASURED:
        raise ValueError(f"metric_for_best_model={metric!r} is not measured; give one of {', '.join(MEASURED)}.")


def _read_some(eval_set: Any) -> None:
    """Reads evaluation images, the first of which would be read after hours; a bad one is an error now."""
    if not is_stream(eval_set):
        for number in range(min(len(eval_set), MOST_READ)):
            eval_set[number]


def _check_dataset(script: FareScriptArguments) -> None:
    """What can be said of a data set by its name, folder and options alone."""
    name = script.dataset
    if not is_in_lab(name):
        check_folder(name)
        return
    if script.eval_split is not None:
        lab_name(script.eval_split, TEST_SETS, "eval_split=")
    lab_name(name, TRAINING_SETS, "dataset=")
    options = ("train_split", "dataset_config", "image_column", "label_column", "streaming", "image_processor")
    for option in (*options, "shuffle_buffer", "replace_corrupt"):
        if getattr(script, option) != FareScriptArguments.__dataclass_fields__[option].default:
            raise ValueError(f"{option}={getattr(script, option)!r} has no meaning for {name!r}; leave it out.")


def _load_data(script: FareScriptArguments, config: FareConfig) -> tuple[Any, Any, Any]:
    """The training set, the evaluation set or None, both as pixels, and the image processor."""
    if is_in_lab(script.dataset):
        lab_set = load_training_set(lab_name(script.dataset, TRAINING_SETS))
        test = load_test_samples(lab_name(script.eval_split, TEST_SETS)) if script.eval_split else None
        return lab_set, test, lab_set.processor
    processor = _load_processor(script.image_processor or script.model)
    train_set = _load_split(script, config, script.train_split, processor, labels=config.objective == "tecoa")
    test = _load_split(script, config, script.eval_split, processor) if script.eval_split else None
    return train_set, test, processor


def _bounded(dataset: Any, config: FareConfig) -> Any:
    """So many samples of an evaluation set, spread evenly; those of a stream kept; all where that is 0."""
    images = config.eval_images
    if dataset is None or not images:
        return dataset
    if is_stream(dataset):
        return spread_samples(dataset, images, config.seed)
    count = min(images, len(dataset))
    return Subset(dataset, [number * len(dataset) // count for number in range(count)])


def _make_validation(script: FareScriptArguments, config: FareConfig, classes: list[str] | None, eval_set: Any) -> Any:
    """The classes of the evaluation set, for the zero-shot accuracies; None where they would say nothing."""
    wanted = (config.metric_for_best_model or "").removeprefix("eval_").endswith("_accuracy")
    if not classes or config.embedding != "projected" or not config.eval_attack_steps:
        asked = "metric_for_best_model" if wanted else "class_names"
        if wanted or (config.class_names and config.objective == "fare"):
            raise ValueError(
                f"{asked}={getattr(config, asked)!r} needs an --eval_split with a ClassLabel column, the projected "
                f"embedding and eval_attack_steps above 0; {'or use loss' if wanted else 'leave it out'}."
            )
        return None
    try:
        names = prompt_names(classes, config.class_names, script.dataset)
        if not several_classes(eval_set):
            raise ValueError("all evaluation images are of one class; give others, or another number of --eval_images")
    except ValueError as error:
        if wanted:
            raise
        logger.warning("no zero-shot accuracy is measured: %s", error)
        return None
    _printer(config)(f"evaluation: {mapping_line(classes, names)}")
    templates = ["{}"] if is_in_lab(script.dataset) else config.templates
    return TecoaObjective(text_class_embeddings(script.text_model or script.model, names, templates))


def _load_split(
    script: FareScriptArguments, config: FareConfig, split: str, processor: Any, labels: bool = True
) -> Any:
    """A split as pixels; its labels are only looked at where they are wanted."""
    columns = {"image_column": script.image_column, "label_column": script.label_column}
    # Image files need no streaming, and those of an evaluation can be spread over all classes without it.
    streaming = script.streaming and (split == script.train_split or not is_image_folder(script.dataset))
    options: dict[str, Any] = {"streaming": streaming, "config": script.dataset_config, **columns}
    dataset = load_images(script.dataset, split, report=_printer(config), **options)
    image_column, label_column = find_columns(dataset, name=script.dataset, **columns)
    if not labels or (label_column and not check_labels(dataset, label_column, name=script.dataset)):
        label_column = None
    replace = script.replace_corrupt and split == script.train_split
    if not is_stream(dataset):
        return PixelDataset(dataset, processor, image_column, label_column, replace_corrupt=replace)
    buffer = {"shuffle_buffer": script.shuffle_buffer}
    return PixelStream(dataset, processor, image_column, label_column, replace_corrupt=replace, **buffer)


def _printer(config: FareConfig) -> Callable[[str], None]:
    """Prints a line in the main process alone."""
    return print if config.process_index == 0 else logger.debug


def _load_processor(name: str) -> Any:
    try:
        return load_image_processor(name)
    except OSError as error:
        raise ValueError(
            f"{name!r} has no image processor; give --image_processor, such as the CLIP it is."
        ) from error


def _make_objective(script: FareScriptArguments, config: FareConfig, train_set: Any) -> Objective:
    if config.objective == "fare":
        return FareObjective()
    own = class_names_of(train_set)
    names = prompt_names(own, config.class_names, script.dataset)
    if not names:
        raise ValueError(
            f"objective='tecoa' needs class names and {script.dataset!r} has none; give --class_names, "
            "or a data set with a ClassLabel column (--label_column)."
        )
    if getattr(train_set, "label_column", "labels") is None:
        raise ValueError(f"objective='tecoa' needs labels and {script.dataset!r} has none; give --label_column.")
    if (column := getattr(train_set, "label_column", None)) is not None:
        check_labels(train_set.dataset, column, len(names), script.dataset)
    _printer(config)(mapping_line(own, names))
    text_model = script.text_model or script.model
    texts = text_class_embeddings(text_model, names, config.templates)
    if config.logit_scale is None:  # set, so that the recipe that is written says what was used
        config.logit_scale = logit_scale_of(text_model)
    return TecoaObjective(texts, config.logit_scale)


def _card(script: FareScriptArguments) -> dict[str, Any]:
    """What the model card says of the model and the data."""
    base = script.base_model or script.model
    on_the_hub = not is_in_lab(script.dataset) and not Path(script.dataset).exists()
    return {
        "base_model": base_name(base),
        "datasets": [script.dataset] if on_the_hub else [],
        "training": {"dataset": f"{script.dataset} ({script.train_split})"},
        "text_encoder": (script.text_model or script.model) if script.with_text_encoder else None,
        **({"license": script.license} if script.license else {"license": "", **inherited_license(base)}),
    }


def _save(trainer: FareTrainer, config: FareConfig) -> Path:
    """Writes the encoder with its card on the main process."""
    folder = Path(str(config.output_dir)) / "encoder"
    if trainer.is_world_process_zero():
        # Before the encoder: where that is, nothing is missing. What a kill left of an earlier attempt goes.
        (folder.parent / "training.json").write_text(json.dumps(recipe(trainer), indent=2) + "\n", encoding="utf-8")
        for part in folder.parent.glob(".encoder.*.part"):
            shutil.rmtree(part)
    save_encoder(trainer, folder)
    if trainer.is_world_process_zero():
        print(f"The robust encoder is in {folder}")
    trainer.accelerator.wait_for_everyone()
    return folder


if __name__ == "__main__":
    main()
