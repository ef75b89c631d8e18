"""Any vision encoder on labelled images without a text: a probe of its features, clean and attacked."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fare_hf.attacks import ThreatModel
from fare_hf.data.opening import whole_split
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import check_encoder_type, embed, frozen, load_encoder, matmul_patch_embedding
from fare_hf.evaluation.attack_loop import chunks, read
from fare_hf.evaluation.given import check_name, check_samples, names_for_rows
from fare_hf.evaluation.probes.classifiers import NEIGHBOURS, PROBES, TEMPERATURE
from fare_hf.evaluation.processes import counted, opening_together, process_state
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.zero_shot.classification import measure_accuracy
from fare_hf.evaluation.zero_shot.labelled_images import load_labelled_images
from fare_hf.evaluation.zero_shot.sets import ZeroShotData
from fare_hf.pretrained.configuration import load_image_processor, read_configuration

__all__ = ["evaluate_probe"]

logger = logging.getLogger(__name__)


@opening_together()
def evaluate_probe(
    encoder: str | os.PathLike[str],
    dataset: str | os.PathLike[str],
    *,
    probe: str = "knn",
    train_split: str = "train",
    split: str | None = None,
    dataset_config: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str] | None = None,
    eps: Sequence[float | str] = ("2/255", "4/255"),
    against: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    steps: int = 100,
    target_classes: int = 9,
    batch_size: int = 128,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = logger.info,
) -> Evaluation:
    """Accuracy of a classifier of an encoder's features, clean and attacked: `fare-hf evaluate --probe`.

    The classifier is fitted on the clean features (`pooled`) of the training split and attacked, with the encoder, on
    the other split, as `evaluate_zero_shot` attacks. `against` has a classifier of its own, of the same images.

    Args:
        encoder: folder or repository of any vision encoder.
        dataset: folder of images (`train/` and `test/`, in each a folder a class), saved data set, or repository on
            the Hub.
        probe: "knn" (20 neighbours, as DINO) or "linear" (logistic regression).
        train_split: that the classifier is fitted on.
        split, dataset_config, image_column, label_column, class_names: as for `load_labelled_images`; of both splits.
        eps, against, samples, steps, target_classes, batch_size, seed, folder, report: as for `evaluate`; all images
            of the training split are used, and the probe is fitted again where a run goes on.

    Returns:
        Rows for each encoder, clean and for each radius; their `task` says what the probe is and of how many images.

    Raises:
        ValueError: no vision encoder, an unknown probe, one split for both, splits of other classes, a class without a
            training image, and as `load_labelled_images`; all before any attack.
        OSError: an encoder without an image processor.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from fare_hf.lab import encoder_folder
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, grey in (("moon", 250), ("night", 5)):
        ...     for split in ("train", "test"):
        ...         (folder / split / name).mkdir(parents=True)
        ...         Image.new("RGB", (160, 160), (grey,) * 3).save(folder / split / name / "0.png")
        >>> found = evaluate_probe(encoder_folder("fare-4"), folder, eps=["4/255"], steps=2)
        >>> [row.value for row in found.rows]
        [1.0, 1.0]
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} is not known; give one of {', '.join(PROBES)}.")
    for what, given in (("encoder", encoder), ("dataset", dataset), ("against", against or "")):
        check_name(what, given)
    check_samples(samples)
    threats, name = [ThreatModel("linf", radius) for radius in eps], str(dataset)
    test_split = split or whole_split(name)
    if test_split == train_split:
        raise ValueError(
            f"the probe would be measured on the images that it is fitted on ({name!r}, split {train_split!r}): give "
            "a folder with train/ and test/, or another train_split."
        )
    subjects = [str(one) for one in (against, encoder) if one is not None]
    if len(set(subjects)) < len(subjects):
        raise ValueError(f"{subjects[0]!r} is compared with itself: give another encoder, or leave against out.")
    for one in subjects:
        check_encoder_type(one, "pooled")
    processors = [load_image_processor(one, read_configuration(one)) for one in subjects]
    asked: dict[str, Any] = {"image_column": image_column, "label_column": label_column, "class_names": class_names}
    asked["dataset_config"] = dataset_config
    opened = [
        (
            load_labelled_images(name, processor, split=train_split, seed=seed, **asked),
            load_labelled_images(name, processor, split=test_split, samples=samples, seed=seed, **asked),
        )
        for processor in processors
    ]
    _check_splits(*opened[0], name)
    options: dict[str, Any] = {"threat_models": threats, "steps": steps, "target_classes": target_classes}
    options |= {"batch_size": batch_size, "seed": seed, "distributed": True}
    rows: list[Row] = []
    called_each = names_for_rows(subjects)
    for number, (one, processor, (fitted, data)) in enumerate(zip(subjects, processors, opened, strict=True)):
        called, normalization = called_each[number], Normalization.from_processor(processor)
        model: Any = load_encoder(one, "pooled").to(process_state().device)
        report(f"fitting {called} on {len(fitted.images):,} images of {fitted.name} ({train_split})")
        with frozen(model), matmul_patch_embedding(model):
            features_of = _features_function(model, normalization)
            features, labels = _features(features_of, fitted, model.device, batch_size)
            _check_classes(labels, fitted)
            classifier = PROBES[probe](features, labels, len(data.class_names))
            report(f"measuring {called} on {data.name}: {len(data.images):,} images")
            rows += measure_accuracy(
                lambda pixels, features_of=features_of, classifier=classifier: classifier(features_of(pixels)),  # type: ignore[misc]
                len(data.class_names),
                data.images,
                encoder=model,
                compared_with=_class_means(features, labels, len(data.class_names)),
                settings={"normalization": [*normalization.mean, *normalization.std]},
                folder=None if folder is None else Path(folder) / f"encoder-{number}",
                task=_task(probe, len(labels)),
                model=called,
                dataset=data.name,
                **options,
            ).rows
    return Evaluation.of_rates(rows, seed)


def _task(probe: str, images: int) -> str:
    """What was measured, with every number that decides it."""
    if probe == "knn":
        return f"k-NN (k={min(NEIGHBOURS, images)}, temperature {TEMPERATURE}, {images} training images)"
    return f"linear probe (C=1, {images} training images)"


def _features_function(encoder: Any, normalization: Normalization) -> Callable[[Tensor], Tensor]:
    dtype = next(encoder.parameters()).dtype
    return lambda pixels: embed(encoder, normalization(pixels).to(dtype), "pooled").float()


@torch.no_grad()
def _features(
    features_of: Callable[[Tensor], Tensor], data: ZeroShotData, device: torch.device, batch_size: int
) -> tuple[Tensor, Tensor]:
    """Of all images of the training split, and their labels."""
    parts, labels = [], []
    batches = list(chunks(range(len(data.images)), batch_size))
    for batch in counted(batches, len(batches), "training images"):
        pixels, found = read(data.images, batch, device, None)
        parts.append(features_of(pixels))
        labels += found
    return torch.cat(parts), torch.tensor(labels, device=device)


def _class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Mean features (K, D) of the training images of each class."""
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, labels, features)
    return sums / torch.bincount(labels, minlength=classes)[:, None]


def _check_splits(fitted: ZeroShotData, data: ZeroShotData, name: str) -> None:
    """Labels of both splits mean the same classes; names that are given would hide that they do not."""
    both = [data.own_names or data.class_names for data in (fitted, data)]
    if both[0] != both[1]:
        raise ValueError(
            f"the splits of {name!r} have other classes: {len(both[0])} and {len(both[1])} names, or in another "
            "order; give splits of the same classes."
        )


def _check_classes(labels: Tensor, fitted: ZeroShotData) -> None:
    """Every class has a training image."""
    counts = torch.bincount(labels, minlength=len(fitted.class_names))
    if missing := [name for name, count in zip(fitted.class_names, counts.tolist(), strict=True) if not count]:
        raise ValueError(
            f"{fitted.name!r} has no training image of {missing[0]!r} ({len(missing)} such classes): a probe needs "
            "one of each class."
        )
