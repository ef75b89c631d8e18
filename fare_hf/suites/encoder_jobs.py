"""Jobs of encoders, on images with classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPModel

from fare_hf.data.pixels import Normalization
from fare_hf.encoders import EMBEDDINGS, load_complete, load_encoder, text_classifier
from fare_hf.evaluation.processes import process_state
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.vlm.transfer import evaluate_transfer
from fare_hf.evaluation.zero_shot.classification import ATTACKS, evaluate_zero_shot, logits_function
from fare_hf.evaluation.zero_shot.corruptions import check_corruptions, evaluate_corruptions
from fare_hf.evaluation.zero_shot.drift import clean_drift
from fare_hf.evaluation.zero_shot.evaluate import text_model_of
from fare_hf.evaluation.zero_shot.gradient_masking import check_gradient_masking
from fare_hf.evaluation.zero_shot.labelled_images import TEMPLATES, check_templates, load_labelled_images
from fare_hf.evaluation.zero_shot.sets import ZeroShotData, load_zero_shot_set, other_size, zero_shot_set
from fare_hf.lab import TEST_SETS, load_clip
from fare_hf.lab.measure import part, text_embeddings
from fare_hf.lab.names import encoder_path, is_in_lab, lab_name
from fare_hf.pretrained.configuration import load_image_processor, read_configuration
from fare_hf.pretrained.loading import load_tokenizer
from fare_hf.suites.settings import (
    Attacked,
    Count,
    Flag,
    Job,
    Names,
    Says,
    Severities,
    Subject,
    Text,
    Texts,
    one_of,
    require_path,
)

__all__ = ["ENCODER_JOBS", "Corruptions", "Drift", "Transfer", "ZeroShot"]

OfAnAttack = Says.OF_AN_ATTACK


@dataclass(frozen=True)
class LabelledImages:
    """A zero-shot set as one model reads it.

    Attributes:
        images, labels: as `evaluate_zero_shot` takes them; no labels: they are in the items.
        texts: where a model is -> class embeddings (K, D) for it.
        groups: of the images, or None.
        native: whether images keep their own size.
    """

    images: Any
    labels: Any
    texts: Callable[[str], Tensor]
    groups: list[int] | None = None
    native: bool = False

    def logits(self, name_or_path: str) -> Callable[[Tensor], Tensor]:
        """Of a model, with the texts and the normalisation that are its own."""
        texts, normalization, encoder = self.texts(name_or_path), _normalization(name_or_path), _encoder(name_or_path)
        native = self.native or other_size(self.images, encoder)
        return logits_function(encoder, texts, normalization, native=native)

    def whole(self) -> tuple[Tensor, Tensor]:
        """All pixels and labels, on this process's device."""
        device = process_state().device
        if isinstance(self.images, Tensor):
            return self.images.to(device), self.labels.to(device)
        items = [self.images[index] for index in range(len(self.images))]
        pixels, labels = [item["pixel_values"] for item in items], [item["labels"] for item in items]
        return torch.stack(pixels).to(device), torch.tensor(labels, device=device)


@dataclass(frozen=True, kw_only=True)
class OnImages(Job):
    """Of encoders, on images with classes.

    Attributes:
        batch_size: images of a forward pass.
        text: the CLIP whose texts stand for the classes; None is each model's own.
        label_column: of classes, whole numbers or words; found if it is a `ClassLabel`.
        class_names: one a class, in the order of the labels; by default the data set's own.
        templates: sentences with `{}` for the class name; by default "a photo of a {}.".
    """

    batch_size: Count = None
    text: Annotated[Text | None, Says.NOT_OF_THE_LAB] = None
    label_column: Annotated[Text | None, Says.OF_OWN_DATA] = None
    class_names: Annotated[Names, Says.OF_OWN_DATA] = None
    templates: Annotated[Names, Says.OF_OWN_DATA] = None

    def check(self, where: str) -> None:
        super().check(where)
        if self.text is not None:
            require_path(f"text of {where}", self.text)
        if is_in_lab(self.set):
            lab_name(self.set, TEST_SETS, f"{where}: set ")
        elif self.is_own:
            check_templates(self.templates or TEMPLATES)
        else:
            zero_shot_set(self.set)

    def data(self, subject: Subject) -> LabelledImages:
        """The set, as the subject reads it."""
        if is_in_lab(self.set):
            test = part(self.dataset, self.samples)
            embeddings = text_embeddings(load_clip(), test)
            return LabelledImages(test.pixels, test.labels, lambda name_or_path: embeddings, test.groups.tolist())
        data = self.opened(_image_processor(subject.name_or_path))

        def texts(name_or_path: str) -> Tensor:
            text_model = encoder_path(self.text) if self.text else text_model_of(name_or_path)
            if text_model is None:
                raise ValueError(
                    f"{name_or_path!r} has no text encoder and names no CLIP on the Hub that it was fine-tuned from: "
                    "give the job a text, such as that CLIP's folder."
                )
            return text_classifier(*_clip(text_model), data.class_names, data.templates)

        return LabelledImages(data.images, None, texts, native=data.native)

    def opened(self, processor: Any) -> ZeroShotData:
        """The set with its classes, as an image processor reads it."""
        chosen = self.given("samples", "seed")
        if not self.is_own:
            return load_zero_shot_set(self.set, processor, **chosen, **self.given("root"))
        columns = self.given("split", "dataset_config", "image_column", "label_column", "class_names", "templates")
        return load_labelled_images(self.set, processor, **chosen, **columns)

    def row_names(self, subject: Subject) -> dict[str, Any]:
        """What rows are called, and the normalisation of the encoder."""
        normalization = _normalization(subject.name_or_path)
        return {"model": subject.model, "dataset": self.dataset, "normalization": normalization}


@dataclass(frozen=True, kw_only=True)
class ZeroShot(OnImages, Attacked):
    """Zero-shot accuracy.

    Attributes:
        attack, restarts, target_classes, queries, stop_fooled: of `evaluate_zero_shot`.
        masking_checks: whether a page says if other attacks do better (`check_gradient_masking`).
        surrogate: the model whose images one of them uses.
    """

    kind: ClassVar[str] = "zero-shot"
    attack: Annotated[str | None, one_of(ATTACKS), OfAnAttack] = None
    restarts: Annotated[Count, OfAnAttack] = None
    target_classes: Annotated[Count, OfAnAttack] = None
    queries: Annotated[Count, OfAnAttack] = None
    stop_fooled: Annotated[Flag, OfAnAttack] = False
    masking_checks: Annotated[Flag, OfAnAttack] = False
    surrogate: Annotated[Text | None, Says.MODELS] = None

    def silent(self) -> frozenset[str]:
        mute = {"surrogate"} | (set() if self.attack == "autoattack" else {"queries"})
        mute |= {"target_classes"} if self.attack == "apgd-ce" else set()
        return super().silent() | (set() if self.masking_checks and self.eps else mute)

    def run(self, subject: Subject) -> list[Row]:
        data, encoder = self.data(subject), _encoder(subject.name_or_path)
        effort = self.given("steps", "restarts", "target_classes", "queries", "batch_size", "seed")
        options = effort | self.given("attack", "stop_fooled") | self.row_names(subject)
        options |= {
            "groups": data.groups,
            "native": data.native or other_size(data.images, encoder),
            "threat_models": self.threats(),
            "distributed": True,
        }
        options["folder"] = subject.states
        texts = data.texts(subject.name_or_path)
        rows = evaluate_zero_shot(encoder, texts, data.images, data.labels, **options).rows
        if self.masking_checks:
            self._check_masking(subject, data, effort)
        return rows

    def _check_masking(self, subject: Subject, data: LabelledImages, effort: dict[str, Any]) -> None:
        """A page and its figures for each radius, in `masking` of the output."""
        logits_of, (pixels, labels) = data.logits(subject.name_or_path), data.whole()
        surrogate = data.logits(subject.models[self.surrogate]) if self.surrogate else None
        folder = subject.output_dir / "masking"
        folder.mkdir(parents=True, exist_ok=True)
        for threat in self.threats():
            states = subject.states / f"masking-{threat.eps:g}"
            options = effort | {"surrogate": surrogate, "folder": states, "distributed": True}
            report = check_gradient_masking(logits_of, pixels, labels, threat, **options)
            if not process_state().is_main_process:
                continue
            name = f"{subject.model}, {self.dataset}, {threat}".replace("/", "_")
            (folder / f"{name}.md").write_text(report.to_markdown(), encoding="utf-8")
            (folder / f"{name}.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Drift(OnImages):
    """How far clean embeddings moved.

    Attributes:
        original: the model they moved from.
        embedding: of `clean_drift`.
    """

    kind: ClassVar[str] = "drift"
    unread: ClassVar[frozenset[str]] = frozenset({"text"})
    original: Annotated[Text, Says.MODELS]
    embedding: Annotated[str, one_of(EMBEDDINGS)] = EMBEDDINGS[0]

    def figures(self) -> tuple[Any, ...]:
        return self.kind, self.dataset, self.embedding

    def run(self, subject: Subject) -> list[Row]:
        data, original = self.data(subject), _encoder(subject.models[self.original], self.embedding)
        options = self.given("embedding", "batch_size", "seed") | self.row_names(subject) | {"distributed": True}
        encoder, pixels = _encoder(subject.name_or_path, self.embedding), data.whole()[0]
        return clean_drift(encoder, original, pixels, groups=data.groups, **options).rows


@dataclass(frozen=True, kw_only=True)
class Corruptions(OnImages):
    """Zero-shot accuracy under corruptions.

    Attributes:
        names, severities: of `evaluate_corruptions`.
    """

    kind: ClassVar[str] = "corruptions"
    names: Names = None
    severities: Severities = None

    def check(self, where: str) -> None:
        super().check(where)
        check_corruptions(self.names, self.severities or (1,))

    def run(self, subject: Subject) -> list[Row]:
        data, encoder = self.data(subject), _encoder(subject.name_or_path)
        options = self.given("names", "severities", "batch_size", "seed") | self.row_names(subject)
        options["distributed"] = True
        texts = data.texts(subject.name_or_path)
        return evaluate_corruptions(encoder, texts, *data.whole(), groups=data.groups, **options).rows


@dataclass(frozen=True, kw_only=True)
class Transfer(OnImages, Attacked):
    """Images made on this model, shown to others.

    Attributes:
        victims: the others.
    """

    kind: ClassVar[str] = "transfer"
    victims: Annotated[Texts, Says.MODELS]

    def check(self, where: str) -> None:
        super().check(where)
        if not self.eps:
            raise ValueError(f"{where} has victims {self.victims!r} and eps {self.eps!r}: give a list of each.")

    def run(self, subject: Subject) -> list[Row]:
        data = self.data(subject)
        victims = {name: data.logits(subject.models[name]) for name in self.victims}
        sources = {subject.model: victims.get(subject.model) or data.logits(subject.name_or_path)}
        options = self.given("steps", "batch_size", "seed") | {"groups": data.groups, "dataset": self.dataset}
        options["distributed"] = True
        shown = (sources, victims, *data.whole())
        return [row for threat in self.threats() for row in evaluate_transfer(*shown, threat, **options).rows]


ENCODER_JOBS: tuple[type[Job], ...] = (ZeroShot, Drift, Corruptions, Transfer)


def _encoder(name_or_path: str, embedding: str = EMBEDDINGS[0]) -> Any:
    """An encoder with what an embedding needs, on this process's device."""
    return load_encoder(name_or_path, embedding).to(process_state().device)


@cache
def _clip(name: str) -> tuple[Any, Any]:
    """A CLIP with its tokenizer, for the texts of the classes."""
    return load_complete(CLIPModel, name).eval(), load_tokenizer(name)


def _normalization(name_or_path: str) -> Normalization:
    return Normalization.from_processor(_image_processor(name_or_path))


def _image_processor(name_or_path: str) -> Any:
    return load_image_processor(name_or_path, read_configuration(name_or_path))
