"""Any CLIP or SigLIP encoder on any labelled images, in one call: clean and attacked accuracy, beside its original."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from fare_hf.attacks import ThreatModel
from fare_hf.convert.checkpoints import names_repository
from fare_hf.data.class_names import check_given_names
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import check_compared, compared_with_texts, load_encoder, text_class_embeddings
from fare_hf.evaluation.given import check_name, check_samples, first_repeated, names_for_rows
from fare_hf.evaluation.processes import opening_together, process_state
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot
from fare_hf.evaluation.zero_shot.labelled_images import check_templates, load_labelled_images
from fare_hf.evaluation.zero_shot.sets import ZeroShotData, is_zero_shot_set, load_zero_shot_set, other_size
from fare_hf.files.documents import front_matter, read_text
from fare_hf.pretrained.configuration import (
    load_image_processor,
    optional_file,
    read_configuration,
    read_json_object,
)
from fare_hf.pretrained.encoder_families import compared_width, family_of_text
from fare_hf.pretrained.validation import RECORD

__all__ = ["evaluate", "text_model_of"]

logger = logging.getLogger(__name__)
OF_OWN_DATA = ("split", "dataset_config", "image_column", "label_column")
Images: TypeAlias = "str | os.PathLike[str] | ZeroShotData"


@opening_together()
def evaluate(
    encoder: str | os.PathLike[str],
    dataset: Images | Sequence[Images],
    *,
    split: str | None = None,
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    eps: Sequence[float | str] = ("2/255", "4/255"),
    against: str | os.PathLike[str] | None = None,
    text_model: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    steps: int = 100,
    target_classes: int = 9,
    batch_size: int = 128,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Evaluation:
    """Zero-shot accuracy of a CLIP or SigLIP encoder on labelled images, clean and attacked, as `fare-hf
    evaluate` measures it.

    Images go through the encoder's own image processor, class names through the text encoder of the model that it was
    fine-tuned from. Processes that `accelerate launch` started divide the attacks.

    Args:
        encoder: folder or repository of a CLIP or SigLIP, or of its vision encoder (a CLIP's with the projection).
        dataset: folder of images (a folder a class), saved data set, or repository on the Hub; a set of the paper's
            table such as "cifar10"; one that is open; or several of these.
        split: None takes "test", or of a folder that is not divided all of it.
        dataset_config: of a data set with several configurations.
        image_column, label_column: of images and classes (whole numbers or words); None finds them.
        class_names: one a class, in the order of the labels; None takes the data set's.
        templates: sentences with `{}` for the class name; None is "a photo of a {}.". Sets that have their own columns
            and names take none of these.
        eps: radii of the linf ball; none for clean accuracy alone.
        against: the original, or another encoder, measured first on the same images and compared in pairs.
        text_model: CLIP or SigLIP whose text encoder reads the class names; None is `text_model_of` each encoder.
        samples: how many images, drawn by `seed`; None takes all, or of the table's sets as many as the paper.
        steps, seed: of APGD, and of its random starts.
        target_classes: wrong classes that the targeted attack tries.
        batch_size: images of a forward pass.
        folder: where finished batches are written down, so that the same call, made again, goes on after the last one;
            delete it when the result is kept.
        report: gets a line on the images, and one on what their classes are called.

    Returns:
        Rows for each encoder, clean and for each radius; `report()` has them as tables, to print and to save.

    Raises:
        ValueError: what is no encoder that is compared with texts, no known text model, images without classes, a
            folder of another run, and as `load_labelled_images`; all before any attack.
        OSError: an encoder without an image processor.

    Example:
        >>> import numpy, tempfile
        >>> from PIL import Image
        >>> from fare_hf.lab import encoder_folder
        >>> folder, clip = Path(tempfile.mkdtemp()), encoder_folder("clip")
        >>> for name, grey in (("moon", 250), ("night", 5)):
        ...     (folder / name).mkdir()
        ...     Image.new("RGB", (160, 160), (grey,) * 3).save(folder / name / "0.png")
        >>> found = evaluate(encoder_folder("fare-4"), folder, text_model=clip, eps=["4/255"], steps=2)
        >>> [row.metric for row in found.rows]
        ['accuracy', 'accuracy']
    """
    threats = [ThreatModel("linf", radius) for radius in eps]
    asked: dict[str, Any] = {"split": split, "dataset_config": dataset_config, "image_column": image_column}
    asked |= {"label_column": label_column, "class_names": class_names, "templates": templates}
    named = [dataset] if not isinstance(dataset, (list, tuple)) else dataset
    _check_given({"encoder": encoder, "against": against, "text_model": text_model}, named, samples)
    subjects = [str(one) for one in (against, encoder) if one is not None]
    if len(set(subjects)) < len(subjects):
        raise ValueError(f"{subjects[0]!r} is compared with itself: give another encoder, or leave against out.")
    texts = [_text_model(one, text_model) for one in subjects]
    processors = [load_image_processor(one, read_configuration(one)) for one in subjects]
    opened: list[list[ZeroShotData]] = []
    for one in named:
        choice: dict[str, Any] = {"samples": samples, "seed": seed, "report": report}
        opened.append([_open(one, processors[0], asked, choice)])
        opened[-1] += [_open(one, processor, asked, choice | {"report": None}) for processor in processors[1:]]
    called_sets = _names_of_sets(named, [datas[0] for datas in opened])
    effort = {"steps": steps, "target_classes": target_classes, "batch_size": batch_size, "seed": seed}
    options: dict[str, Any] = effort | {"threat_models": threats, "distributed": True}
    embedded = [
        [text_class_embeddings(text, datas[number].class_names, datas[number].templates) for datas in opened]
        for number, text in enumerate(texts)
    ]
    for one, own in zip(subjects, embedded, strict=True):
        _check_width(one, own)
    rows: list[Row] = []
    for number, (one, called) in enumerate(zip(subjects, names_for_rows(subjects), strict=True)):
        model: Any = load_encoder(one, compared_with_texts(one)).to(process_state().device)
        names: dict[str, Any] = {"model": called, "normalization": Normalization.from_processor(processors[number])}
        for at, (datas, text) in enumerate(zip(opened, embedded[number], strict=True)):
            data = datas[number]
            names["folder"] = None if folder is None else Path(folder) / f"encoder-{number}" / f"set-{at}"
            report(f"measuring {called} on {called_sets[at]}: {len(data.images):,} images")
            names |= {
                "dataset": called_sets[at],
                "groups": data.groups,
                "native": data.native or other_size(data.images, model),
            }
            rows += evaluate_zero_shot(model, text, data.images, **names, **options).rows
    return Evaluation.of_rates(rows, seed)


def text_model_of(name_or_path: str) -> str | None:
    """The CLIP or SigLIP whose texts an encoder's embeddings are compared with.

    Args:
        name_or_path: folder or repository.

    Returns:
        Itself where it is whole; else the repository that its fare_hf.json or its card names as base; None
        where neither does (a folder that was the base may lie anywhere).
    """
    if family_of_text(read_configuration(name_or_path).model_type):
        return name_or_path
    if (record := optional_file(name_or_path, RECORD)) is not None:
        base = read_json_object(record).get("base_model")
    elif (card := optional_file(name_or_path, "README.md")) is not None:
        base = front_matter(read_text(card), f"the card of {name_or_path!r}").get("base_model")
    else:
        return None
    base = base[0] if isinstance(base, list) and len(base) == 1 else base
    return base if isinstance(base, str) and names_repository(base) else None


def _check_given(models: dict[str, Any], images: Sequence[Any], samples: Any) -> None:
    """Names are names, before anything is opened."""
    for what, given in models.items():
        if given is not None or what == "encoder":
            check_name(what, given)
    for one in images:
        if not isinstance(one, ZeroShotData):
            check_name("dataset", one)
    check_samples(samples)


def _text_model(name_or_path: str, given: str | os.PathLike[str] | None) -> str:
    """The one given, or the encoder's own; the encoder's kind is checked on the way."""
    compared = compared_with_texts(name_or_path)
    if given is not None:
        check_compared(name_or_path, compared, str(given))
        return str(given)
    text_model = text_model_of(name_or_path)
    if text_model is None:
        raise ValueError(
            f"{name_or_path!r} has no text encoder and names no CLIP or SigLIP on the Hub that it was fine-tuned "
            "from: give it as text_model (--text_model lab:clip where it was trained from the lab's CLIP)."
        )
    return text_model


def _open(dataset: Any, processor: Any, asked: dict[str, Any], choice: dict[str, Any]) -> ZeroShotData:
    """The images as one encoder reads them."""
    known = isinstance(dataset, ZeroShotData)
    name = dataset.name if known else str(dataset)
    if not known and (Path(name).expanduser().is_dir() or not is_zero_shot_set(name)):
        return load_labelled_images(name, processor, **asked, **choice)
    if given := [option for option in OF_OWN_DATA if asked[option] is not None]:
        raise ValueError(f"{given[0]} is for images of your own: {name!r} has its own.")
    check_given_names(names := asked["class_names"])
    choice = {key: choice[key] for key in ("samples", "seed")}
    data = dataset if known else load_zero_shot_set(name, processor, **choice)
    if names is not None and len(names) != len(data.class_names):
        raise ValueError(
            f"class_names has {len(names)} names, {name!r} {len(data.class_names)} classes; give one each."
        )
    templates = asked["templates"] or data.templates
    check_templates(templates)
    return replace(data, class_names=list(names or data.class_names), templates=list(templates))


def _names_of_sets(named: Sequence[Any], opened: Sequence[ZeroShotData]) -> list[str]:
    """Names for the rows: what each set is called, and of folders that are called the same more of their paths."""
    called = [data.name for data in opened]
    alike = [
        at
        for at, one in enumerate(named)
        if called.count(called[at]) > 1 and not isinstance(one, ZeroShotData) and Path(one).expanduser().is_dir()
    ]
    folders = [str(Path(named[at]).expanduser()) for at in alike]
    for at, name in zip(alike, names_for_rows(folders), strict=True):
        called[at] = name
    if (twice := first_repeated(called)) is not None:
        raise ValueError(f"{twice!r} is given twice as dataset: give it once, or each its own name.")
    return called


def _check_width(name: str, embedded: Sequence[Any]) -> None:
    """Texts and images are embedded in one space, as the configuration alone says."""
    width = compared_width(read_configuration(name))
    for text in embedded:
        if width != text.shape[1]:
            raise ValueError(
                f"{name!r} has embeddings of {width} numbers, the texts have {text.shape[1]}: give the model that it "
                "was fine-tuned from as text_model."
            )
