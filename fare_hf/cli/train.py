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
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, set_seed

from fare_hf.cli.card import base_hint
from fare_hf.cli.console import hide_bars, hide_notices, one_line, one_sentence, program_of
from fare_hf.cli.recipe_files import expand_config
from fare_hf.cli.training_arguments import FareScriptArguments, check_arguments
from fare_hf.cli.training_options import OptionParser, build_parser, parse
from fare_hf.data.columns import class_names_of, is_stream
from fare_hf.data.folder_listing import listed_once
from fare_hf.data.opening import is_image_folder
from fare_hf.data.pixel_datasets import CorruptImageError, load_pixels
from fare_hf.data.streaming import spread_samples
from fare_hf.encoders import check_compared, check_encoder_type, load_encoder
from fare_hf.encoders.reading import FEATURES
from fare_hf.hub.base_model import base_name, inherited_license
from fare_hf.hub.retry import Retries, bounded_waits
from fare_hf.hub.text_encoder import whole_clip
from fare_hf.lab import load_llava, load_test_samples, load_training_set
from fare_hf.lab.names import LLAVA, MODELS, encoder_path, is_in_lab, trained_path
from fare_hf.objectives import OBJECTIVES, TecoaObjective
from fare_hf.pretrained.configuration import load_image_processor
from fare_hf.pretrained.encoder_families import compared_embedding
from fare_hf.training import FareConfig, FareTrainer
from fare_hf.training.checkpointing.output_folder import checkpoint_to_resume, how_to_go_on
from fare_hf.training.class_texts import DataSetTexts, make_objective, make_validation
from fare_hf.training.logging.progress import ReadableProgress
from fare_hf.training.logging.start import SayHowToSave
from fare_hf.training.publish import recipe
from fare_hf.vlm.features import VlmFeatures
from fare_hf.vlm.tower_files import features_family, load_vision_tower

__all__ = ["EXAMPLES", "FareScriptArguments", "main", "parser_of", "train"]

ABOUT = """\
Fine-tunes a vision encoder until small changes of an image no longer change what it computes. Checkpoints go to the
output_dir, the encoder to output_dir/encoder, where plain `from_pretrained` reads it, and the recipe to
output_dir/training.json. On several devices: accelerate launch -m fare_hf.train, with the same options."""
EXAMPLES = """\
# offline, in a minute: the lab's CLIP on the lab's drawings
fare-hf train --model lab:clip --dataset lab:drawings --max_steps 20 --global_batch_size 8 --output_dir fare4
# the paper's recipe on a folder of images, and on the Hub's ImageNet in half precision
fare-hf train --model openai/clip-vit-large-patch14 --dataset path/to/images --eps 2/255 --output_dir fare2
fare-hf train --model openai/clip-vit-large-patch14-336 --dataset imagenet-1k --bf16 --output_dir fare4
# after Ctrl-C or a kill: the same command and
fare-hf train --model lab:clip --dataset lab:drawings --max_steps 20 --global_batch_size 8 --output_dir fare4 \
--resume_from_checkpoint latest
"""
LAB_LLAVA = trained_path(LLAVA)
MOST_READ = 512
"""Evaluation images that are read before the first step."""
logger = logging.getLogger(__name__)


def train(script: FareScriptArguments, config: FareConfig) -> Path:
    """Trains as the arguments say and returns the folder of the encoder.

    Raises:
        ValueError: an argument that cannot work, named with what to change.
    """
    checkpoint_to_resume(str(config.output_dir), config.resume_from_checkpoint)
    if config.embedding != FEATURES and script.model == LAB_LLAVA:
        script.model = encoder_path("lab:clip")  # its tower, which is stored once
    _check_model(script.model, config.embedding)  # before anything large is fetched or prepared
    with listed_once():
        trainer = _make_trainer(script, config)
    trainer.remove_callback(SayHowToSave)
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress())
    folder = _run(trainer, config)
    if not script.model.startswith(str(MODELS)) and (hint := base_hint(trainer.card["base_model"], folder)):
        _printer(config)(hint)
    return folder


def main(arguments: Sequence[str] | None = None, prog: str = "python -m fare_hf.train") -> None:
    """The command line: errors in what was asked are one sentence, without a traceback."""
    hide_notices()
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = parser_of(prog, everything="--help_all" in words)
    config, program = None, program_of(prog)
    with one_sentence(program):
        try:
            words = expand_config(words, {action.dest for action in parser._actions} - {"config"})
            script, config = parse(parser, words)
            hide_bars()
            with bounded_waits(Retries()):
                train(script, config)
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                what_next = "" if config is None else f"; {how_to_go_on(str(config.output_dir))}"
                print(f"\n{program}: interrupted{what_next}.", file=sys.stderr)
            sys.exit(130)


def parser_of(prog: str, everything: bool = False) -> OptionParser:
    """The parser of the command; see `build_parser`."""
    return build_parser(prog, ABOUT, EXAMPLES, everything=everything)


def _make_trainer(script: FareScriptArguments, config: FareConfig) -> FareTrainer:
    """All that a training is made of, checked, in the order of what it costs to find a fault."""
    check_arguments(script, config)
    if "class_names" in OBJECTIVES[config.objective].options:
        check_compared(script.model, config.embedding, script.clip)
    set_seed(config.seed)
    encoder, reading = _load_model(script, config)
    if script.with_text_encoder:  # what would fail after the last step fails before the first
        whole_clip(encoder, script.clip)
    train_set, eval_set, processor = _load_data(script, config, reading)
    texts = DataSetTexts(config, train_set, script.dataset, script.clip, _printer(config))
    objective = make_objective(config, texts)
    eval_set, validation = _prepare_evaluation(script, config, eval_set, compared_embedding(encoder.config))
    return FareTrainer(
        model=encoder,
        args=config,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=processor,
        objective=objective,
        validation=validation,
        card=_card(script),
        reading=reading,
    )


def _check_model(name: str, embedding: str) -> None:
    """What the configuration alone says."""
    if embedding == FEATURES:
        features_family(name)
    else:
        check_encoder_type(name, embedding)


def _load_model(script: FareScriptArguments, config: FareConfig) -> tuple[Any, VlmFeatures | None]:
    """The encoder, or the tower of a vision-language model and how that reads it."""
    if config.embedding != FEATURES:
        return load_encoder(script.model, config.embedding), None
    if script.model != LAB_LLAVA:
        return load_vision_tower(script.model, processor=script.image_processor, image_side=script.image_side)
    vlm, processor = load_llava()  # whose tower stands in the folder of the lab's CLIP
    vlm.config._name_or_path = LAB_LLAVA
    return load_vision_tower(vlm, processor=processor, image_side=script.image_side)


def _load_data(script: FareScriptArguments, config: FareConfig, reading: VlmFeatures | None) -> tuple[Any, Any, Any]:
    """The training set, the evaluation set or None, both as pixels, and the image processor."""
    if is_in_lab(script.dataset):
        lab_set = load_training_set(script.dataset)
        test = load_test_samples(script.eval_split) if script.eval_split else None
        return lab_set, test, lab_set.processor
    processor = _load_processor(script.image_processor or script.model) if reading is None else reading.processor
    both: dict[str, Any] = {"shuffle_buffer": script.shuffle_buffer, "config": script.dataset_config}
    both |= {"image_column": script.image_column, "label_column": script.label_column, "report": _printer(config)}
    both["fast"] = script.fast_images
    named = "class_names" in OBJECTIVES[config.objective].options  # the column of labels names the classes
    own = {"labels": named, "replace_corrupt": script.replace_corrupt}
    train_set = load_pixels(script.dataset, script.train_split, processor, streaming=script.streaming, **own, **both)
    if script.eval_split is None:
        return train_set, None, processor
    # Image files need no streaming, and those of an evaluation can be spread over all classes without it.
    streaming = script.streaming and not is_image_folder(script.dataset)
    return train_set, load_pixels(script.dataset, script.eval_split, processor, streaming=streaming, **both), processor


def _load_processor(name: str) -> Any:
    try:
        return load_image_processor(name)
    except OSError as error:
        raise ValueError(
            f"{name!r} has no image processor; give --image_processor, such as the CLIP it is."
        ) from error


def _prepare_evaluation(
    script: FareScriptArguments, config: FareConfig, eval_set: Any, compared: str | None
) -> tuple[Any, TecoaObjective | None]:
    """The images to evaluate on, of which some are read now, and their classes for zero-shot accuracies, which need
    the `compared` embedding."""
    classes = class_names_of(eval_set)
    if eval_set is not None and config.eval_images:
        eval_set = spread_samples(eval_set, config.eval_images, config.seed)
    if config.eval_strategy != "no" and not is_stream(eval_set):
        for number in range(min(len(eval_set), MOST_READ)):
            eval_set[number]  # one that cannot be read would end the run after hours
    templates = ["{}"] if is_in_lab(script.dataset) else config.templates
    names: dict[str, Any] = {"text_model": script.clip, "templates": templates, "dataset": script.dataset}
    names["compared"] = compared
    return eval_set, make_validation(config, classes, eval_set, report=_printer(config), **names)


def _printer(config: FareConfig) -> Callable[[str], None]:
    """Prints a line in the main process alone."""
    return print if config.process_index == 0 else logger.debug


def _card(script: FareScriptArguments) -> dict[str, Any]:
    """What the model card says of the model and the data."""
    base = script.base_model or script.model
    on_the_hub = not is_in_lab(script.dataset) and not Path(script.dataset).exists()
    return {
        "base_model": base_name(base),
        "datasets": [script.dataset] if on_the_hub else [],
        "training": {"dataset": f"{script.dataset} ({script.train_split})"},
        "text_encoder": script.clip if script.with_text_encoder else None,
        **({"license": script.license} if script.license else {"license": "", **inherited_license(base)}),
    }


def _run(trainer: FareTrainer, config: FareConfig) -> Path:
    """Trains, saves and publishes."""
    with trainer.only_run():  # another run may have ended here meanwhile
        checkpoint = checkpoint_to_resume(str(config.output_dir), config.resume_from_checkpoint)
        try:
            trainer.train(resume_from_checkpoint=checkpoint or False)
        except CorruptImageError as error:
            goes_on = how_to_go_on(str(config.output_dir))
            raise ValueError(
                f"{one_line(error)} A data set without it makes another run: to keep this one, add --replace_corrupt; "
                f"{goes_on}."
            ) from error
        folder = _save(trainer, config)
        if config.push_to_hub and (published := trainer.push_to_hub(folder=folder)):
            print(published)
    return folder


def _save(trainer: FareTrainer, config: FareConfig) -> Path:
    """Writes the encoder with its card on the main process."""
    run_folder = Path(str(config.output_dir))
    if trainer.is_world_process_zero():
        # Before the encoder: where that is, nothing is missing. What a kill left of an earlier attempt goes.
        (run_folder / "training.json").write_text(json.dumps(recipe(trainer), indent=2) + "\n", encoding="utf-8")
        for part in run_folder.glob(".encoder.*.part"):
            shutil.rmtree(part)
    folder = trainer.save_encoder()
    if trainer.is_world_process_zero():
        print(f"The robust encoder is in {folder}")
    trainer.accelerator.wait_for_everyone()
    return folder


if __name__ == "__main__":
    main()
