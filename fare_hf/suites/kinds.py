"""What runs the jobs of a suite: encoders, sets and models by name, those of the embedded lab (`lab:...`) included."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPModel

from fare_hf.attacks import ThreatModel
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import load_complete, load_encoder, text_classifier
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.vlm.ensemble import evaluate_vlm
from fare_hf.evaluation.vlm.sets import CAPTION_QUESTION, VlmData, chat_prompt, load_vlm_set
from fare_hf.evaluation.vlm.targeted import evaluate_targeted
from fare_hf.evaluation.vlm.transfer import evaluate_transfer
from fare_hf.evaluation.zero_shot.classification import evaluate_zero_shot, logits_function
from fare_hf.evaluation.zero_shot.corruptions import evaluate_corruptions
from fare_hf.evaluation.zero_shot.drift import clean_drift
from fare_hf.evaluation.zero_shot.gradient_masking import check_gradient_masking
from fare_hf.evaluation.zero_shot.sets import load_zero_shot_set
from fare_hf.lab import encoder_folder, load_clip, load_llava, measure
from fare_hf.lab.measure import part, text_embeddings
from fare_hf.pretrained.configuration import load_image_processor, read_configuration
from fare_hf.pretrained.loading import load_processor, load_tokenizer, load_vlm
from fare_hf.suites.checks import LAB, LAB_LLAVA, model_source
from fare_hf.suites.suite import Job, Runner, state_folder
from fare_hf.vlm import swap_vision_tower

__all__ = ["runners"]


def runners(output_dir: str | Path) -> dict[str, Runner]:
    """What runs each kind of job; masking reports go to `output_dir/masking`."""
    folder = Path(output_dir)
    return {
        "zero-shot": lambda *job: _zero_shot(folder, *job),
        "drift": _drift,
        "corruptions": _corruptions,
        "vlm": lambda *job: _vlm(folder, *job),
        "targeted": _targeted,
        "transfer": _transfer,
    }


def _place(source: str) -> str:
    return str(encoder_folder(source.removeprefix(LAB))) if source.startswith(LAB) else source


def _threats(settings: Mapping[str, Any]) -> list[ThreatModel]:
    return [ThreatModel(settings.get("norm", "linf"), eps) for eps in settings.get("eps", [])]


def _options(settings: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: settings[name] for name in names if name in settings}


@cache
def _clip(name: str) -> tuple[Any, Any]:
    """A CLIP with its tokenizer, for the texts of the classes."""
    return load_complete(CLIPModel, name).eval(), load_tokenizer(name)


@dataclass(frozen=True)
class _Test:
    """A zero-shot set as one model reads it.

    Attributes:
        samples, labels: as `evaluate_zero_shot` takes them; no labels: they are in the samples.
        texts: where a model is -> class embeddings (K, D) for it.
        groups: of the samples, or None.
        native: whether images keep their own size.
    """

    samples: Any
    labels: Any
    texts: Callable[[str], Tensor]
    groups: list[int] | None = None
    native: bool = False

    def logits(self, source: str) -> Callable[[Tensor], Tensor]:
        """Of a model, with the texts and the normalisation that are its own."""
        encoder = load_encoder(_place(source))
        return logits_function(encoder, self.texts(source), _normalization(source), native=self.native)

    def whole(self) -> tuple[Tensor, Tensor]:
        """All pixels and labels in memory."""
        if isinstance(self.samples, Tensor):
            return self.samples, self.labels
        items = [self.samples[index] for index in range(len(self.samples))]
        return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])


def _test(settings: Mapping[str, Any], source: str) -> _Test:
    name, count = settings["set"], settings.get("samples")
    if name.startswith(LAB):
        test = part(name.removeprefix(LAB), count)
        embeddings = text_embeddings(load_clip(), test)
        return _Test(test.pixels, test.labels, lambda source: embeddings, test.groups.tolist())
    processor = _images(source)
    data = load_zero_shot_set(
        name, processor, samples=count, seed=settings.get("seed", 0), **_options(settings, "root")
    )

    def texts(source: str) -> Tensor:
        return text_classifier(*_clip(settings.get("text", source)), data.class_names, data.templates)

    return _Test(data.samples, None, texts, native=data.native)


def _normalization(source: str) -> Normalization:
    return Normalization.from_processor(_images(source))


def _images(source: str) -> Any:
    """The image processor of an encoder."""
    return load_image_processor(_place(source), read_configuration(_place(source)))


def _names(model: str, source: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What rows are called, and the normalisation of the encoder."""
    dataset = settings["set"].removeprefix(LAB)
    return {"model": model, "dataset": dataset, "normalization": _normalization(source)}


def _zero_shot(
    folder: Path, model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]
) -> list[Row]:
    test, threats, names = _test(settings, source), _threats(settings), _names(model, source, settings)
    effort = ("attack", "steps", "restarts", "targets", "queries", "batch_size", "seed", "stop_fooled")
    options = _options(settings, *effort) | {"groups": test.groups, "native": test.native}
    encoder, text = load_encoder(_place(source)), test.texts(source)
    rows = evaluate_zero_shot(encoder, text, test.samples, test.labels, threat_models=threats, **names, **options)
    if settings.get("masking_checks"):
        pixels, truth = test.whole()
        chosen = _options(settings, "steps", "restarts", "targets", "queries", "batch_size", "seed")
        logits_of = test.logits(source)
        surrogate = test.logits(model_source(settings["surrogate"], models)) if "surrogate" in settings else None
        for threat in threats:
            report = check_gradient_masking(logits_of, pixels, truth, threat, surrogate=surrogate, **chosen)
            path = folder / "masking" / f"{model}, {names['dataset']}, {str(threat).replace('/', '_')}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".md").write_text(report.to_markdown(), encoding="utf-8")
            path.with_suffix(".json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    return rows


def _drift(model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    test, names = _test(settings, source), _names(model, source, settings)
    original = load_encoder(_place(model_source(settings["original"], models)))
    chosen = _options(settings, "embedding", "batch_size", "seed") | {"groups": test.groups}
    return clean_drift(load_encoder(_place(source)), original, test.whole()[0], **names, **chosen)


def _corruptions(model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    test, names = _test(settings, source), _names(model, source, settings)
    chosen = _options(settings, "severities", "batch_size", "seed") | {"groups": test.groups}
    encoder, (pixels, truth) = load_encoder(_place(source)), test.whole()
    return evaluate_corruptions(
        encoder, test.texts(source), pixels, truth, names=settings.get("names"), **names, **chosen
    )


def _vlm(folder: Path, model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    if settings["vlm"] == LAB_LLAVA:
        return _lab_texts(model, source, settings)
    states = state_folder(folder, Job(model, source, dict(settings)))  # an interrupted job goes on in its middle
    vlm, processor, data = _hub_vlm(source, settings)
    options = _options(settings, "steps", "batch_size", "seed") | {"max_new_tokens": data.max_new_tokens}
    options["folder"] = states
    names: dict[str, Any] = {"model": model, "task": data.task, "dataset": data.name, "targets": data.targets}
    threats = _threats(settings)
    return evaluate_vlm(
        vlm, processor, data.samples, data.prompts, data.metric, threat_models=threats, **names, **options
    ).rows


def _hub_vlm(source: str, settings: Mapping[str, Any]) -> tuple[Any, Any, VlmData]:
    """The model of a job with its tower swapped, its processor, and the set as it reads it."""
    vlm, processor = load_vlm(settings["vlm"]), load_processor(settings["vlm"])
    swap_vision_tower(vlm, _place(source))
    chosen = _options(settings, "samples", "seed", "root", "template")
    return vlm, processor, load_vlm_set(settings["set"], processor, **chosen)


def _lab_texts(model: str, source: str, settings: Mapping[str, Any]) -> list[Row]:
    """Captions or questions of the lab's LLaVA."""
    llava, name, seed = _lab_llava(source), settings["set"].removeprefix(LAB), settings.get("seed", 0)
    count, steps = settings.get("samples"), settings.get("steps", 50)
    if name == "captions":
        budget = measure.Budget(captions=count, caption_steps=steps)
        return measure.measure_captions(model, llava, budget, _threats(settings), seed).rows
    budget = measure.Budget(questions={name: count}, question_steps=steps)
    return measure.measure_questions(model, llava, budget, _threats(settings), seed)


def _lab_llava(source: str) -> Any:
    llava = load_llava()
    swap_vision_tower(llava[0], _place(source))
    return llava


def _targeted(model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    threats, seed = _threats(settings), settings.get("seed", 0)
    if settings["vlm"] == LAB_LLAVA:
        sets = (settings["set"].removeprefix(LAB),)
        budget = measure.Budget(
            targeted=settings.get("samples", 100), targeted_steps=settings.get("steps", 100), targeted_sets=sets
        )
        chosen = _options(settings, "target")
        return measure.measure_targeted(model, _lab_llava(source), budget, threats, seed, **chosen)
    vlm, processor, data = _hub_vlm(source, settings)
    prompt = chat_prompt(processor, settings.get("question", CAPTION_QUESTION), settings.get("template"))
    options = _options(settings, "steps", "batch_size", "seed", "max_new_tokens")
    names: dict[str, Any] = {"prompt": prompt, "model": model, "dataset": data.name, "threat_models": threats}
    return evaluate_targeted(vlm, processor, data.samples, settings["target"], **names, **options).rows


def _transfer(model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
    """Images made on this model, shown to every victim."""
    test, threats = _test(settings, source), _threats(settings)
    pixels, truth = test.whole()
    victims = {name: test.logits(models[name]) for name in settings["victims"]}
    sources = {model: victims.get(model) or test.logits(source)}
    options = _options(settings, "steps", "batch_size", "seed") | {"groups": test.groups}
    options["dataset"] = settings["set"].removeprefix(LAB)
    matrices = [evaluate_transfer(sources, victims, pixels, truth, threat, **options) for threat in threats]
    return [row for matrix in matrices for row in matrix.rows]
