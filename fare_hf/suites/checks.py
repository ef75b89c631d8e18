"""What a job of a suite may say, kind by kind: all of it is read, or refused before any work."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fare_hf.attacks import ThreatModel
from fare_hf.encoders import EMBEDDINGS
from fare_hf.evaluation.vlm.sets import vlm_set
from fare_hf.evaluation.zero_shot.classification import ATTACKS
from fare_hf.evaluation.zero_shot.corruptions import check_corruptions
from fare_hf.evaluation.zero_shot.sets import zero_shot_set
from fare_hf.files.folders import is_missing_path
from fare_hf.lab import TEST_SETS, encoder_folder
from fare_hf.lab.questions import QUESTION_SETS
from fare_hf.numerals import whole_number
from fare_hf.suites.suite import Suite

__all__ = ["LAB", "LAB_LLAVA", "check_suite", "model_source", "settings_read"]

LAB = "lab:"
LAB_LLAVA = "lab:llava"
LAB_TEXTS = ("captions", *QUESTION_SETS)
"""What `kind: vlm` measures of the lab's LLaVA."""
COMMON = ("kind", "set", "samples", "seed", "models")
READS = {
    "zero-shot": ("norm", "eps", "attack", "steps", "restarts", "targets", "queries", "batch_size", "stop_fooled")
    + ("masking_checks", "surrogate"),
    "drift": ("original", "embedding", "batch_size"),
    "corruptions": ("names", "severities", "batch_size"),
    "vlm": ("vlm", "norm", "eps", "steps"),
    "targeted": ("vlm", "norm", "eps", "steps", "target"),
    "transfer": ("victims", "norm", "eps", "steps", "batch_size"),
}
"""What each kind reads beside `COMMON`."""
ON_THE_HUB = {
    "zero-shot": ("root", "text"),
    "drift": ("root",),
    "corruptions": ("root", "text"),
    "vlm": ("root", "template", "batch_size"),
    "targeted": ("root", "template", "batch_size", "question", "max_new_tokens"),
    "transfer": ("root", "text"),
}
"""What it reads besides, of sets that are not the lab's."""
NEEDS = {"zero-shot": ("set",), "drift": ("set", "original"), "corruptions": ("set",), "vlm": ("set", "vlm")}
NEEDS |= {"targeted": ("set", "vlm"), "transfer": ("set", "victims")}
"""What a job of each kind cannot do without."""
OF_AN_ATTACK = ("norm", "attack", "steps", "restarts", "targets", "queries", "stop_fooled", "masking_checks")
"""What says nothing without a radius."""
COUNTS = ("samples", "steps", "restarts", "targets", "queries", "batch_size", "max_new_tokens")
FLAGS = ("stop_fooled", "masking_checks")
TEXTS: tuple[str, ...] = (
    "kind",
    "set",
    "root",
    "text",
    "norm",
    "attack",
    "surrogate",
    "original",
    "embedding",
    "vlm",
    "template",
)
TEXTS += ("target", "question")
LISTS = ("names", "victims", "models")


def settings_read(job: Mapping[str, Any]) -> list[str]:
    """The settings that say something to a job, given its others; its kind is one of `READS`."""
    kind, masking = job["kind"], bool(job.get("masking_checks") and job.get("eps"))
    names = [*COMMON, *READS[kind], *(() if _in_lab(job) else ON_THE_HUB[kind])]
    silent: set[str] = set() if job.get("eps") or kind == "transfer" else set(OF_AN_ATTACK)
    if not masking:
        silent |= {"surrogate"} | (set() if job.get("attack") == "autoattack" else {"queries"})
        silent |= {"targets"} if job.get("attack") == "apgd-ce" else set()
    return [name for name in names if name not in silent]


def _in_lab(job: Mapping[str, Any]) -> bool:
    return str(job.get("set")).startswith(LAB)


def check_suite(suite: Suite) -> None:
    """Refuse before any work what a job would stumble over in the middle of the suite, or would not read.

    Raises:
        ValueError: a setting that is missing, not known, of another type, or that says nothing to its job; a default
            that no job reads; an unknown kind, attack, set, model or corruption; a path where there is nothing.
        ImportError: corruptions without their library.
    """
    for name, source in suite.models.items():
        _check_place(f"the model {name!r}", source)
    seen: set[tuple[Any, ...]] = set()
    for number, job in enumerate(suite.jobs):
        where = f"job {number} of the suite {suite.name!r}"
        own = [name for name in job if name not in suite.defaults or job[name] != suite.defaults[name]]
        _check_job(where, job, own, suite.models)
        for model in job.get("models", suite.models):  # a report holds each figure once
            key = (model, *(job.get(field) for field in ("kind", "set", "embedding")))
            if key in seen:
                raise ValueError(
                    f"{where} repeats {job['kind']} on {job['set']!r} for {model!r}: make one job of both."
                )
            seen.add(key)
    _check_defaults(suite)


def _check_defaults(suite: Suite) -> None:
    """A default is for the jobs that read it; one that none reads is a mistake."""
    read = [name for job in suite.jobs for name in settings_read(job)]
    for name in suite.defaults:
        if name not in read:
            known = ", ".join(dict.fromkeys(read))
            raise ValueError(f"the defaults of the suite {suite.name!r} have {name!r}, which no job reads: {known}.")


def _check_job(where: str, job: Mapping[str, Any], own: Sequence[str], models: Mapping[str, str]) -> None:
    kind = job["kind"]
    if not isinstance(kind, str) or kind not in READS:
        raise ValueError(f"{where} is of kind {kind!r}: use one of {', '.join(READS)}.")
    for field in NEEDS[kind]:
        if field not in job:
            raise ValueError(f"{where} is of kind {kind!r} and has no {field!r}: add it.")
    for field, value in job.items():
        _check_value(where, field, value)
    _check_threat_models(where, job)
    for name in (*(job[field] for field in ("original", "surrogate") if field in job), *job.get("victims", ())):
        model_source(name, models)
    for field, known in (("attack", ATTACKS), ("embedding", EMBEDDINGS)):
        if job.get(field, known[0]) not in known:
            raise ValueError(f"{where} has {field} {job[field]!r}: use one of {', '.join(known)}.")
    _check_read(where, job, own)
    _check_set(where, job)


def _check_read(where: str, job: Mapping[str, Any], own: Sequence[str]) -> None:
    """Whatever the job itself says, it reads."""
    read = settings_read(job)
    every = {name for kind in READS for name in (*COMMON, *READS[kind], *ON_THE_HUB[kind])}
    for field in own:
        if field not in every:
            close = difflib.get_close_matches(field, sorted(every), 1)
            hint = f"did you mean {close[0]!r}?" if close else "leave it out;"
            raise ValueError(f"{where} has {field!r}: {hint} it reads {', '.join(read)}.")
        if field not in read:
            raise ValueError(
                f"{where} is of kind {job['kind']!r} on {job['set']!r} and has {field!r}, which says nothing to it: "
                f"beside its other settings it reads {', '.join(read)}."
            )


def _check_value(where: str, field: str, value: Any) -> None:
    """The type of one setting."""
    if field in COUNTS or field == "seed":
        if not (field == "samples" and value is None):  # all of them
            whole_number(value, f"{where} has a value that cannot be: {field}", 0 if field == "seed" else 1)
    elif field in FLAGS and not isinstance(value, bool):
        raise ValueError(f"{where} has {field} {value!r}: give true or false.")
    elif field in TEXTS and not _is_text(value):
        raise ValueError(f"{where} has {field} {value!r}: give a text.")
    elif field in LISTS and not (_is_list_of_texts(value) or (field == "names" and value is None)):
        raise ValueError(f"{where} has {field} {value!r}: give a list of each, without repetition.")
    elif field == "severities":
        for severity in value if isinstance(value, list) and value else [value]:
            whole_number(severity, f"{where} has severities {value!r}, a list is given; severity")
    elif field == "root" and not Path(value).is_dir():
        raise ValueError(f"{where} has root {value!r}, and there is no such folder: check the path.")
    elif field == "template" and "{}" not in value:
        raise ValueError(f"{where} has template {value!r}: it needs {{}} for the question.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _check_threat_models(where: str, job: Mapping[str, Any]) -> None:
    """Radii are read as everywhere, each once."""
    norm, radii = job.get("norm", "linf"), job.get("eps", [])
    if not isinstance(radii, list):
        raise ValueError(f"{where} has eps {radii!r}: give a list, such as [2/255, 4/255].")
    try:
        balls = [ThreatModel(norm, eps) for eps in radii] or [ThreatModel(norm, 0)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    if len(set(balls)) < len(balls):
        raise ValueError(f"{where} has eps {radii!r}, one of them twice: give each once.")


def _check_set(where: str, job: Mapping[str, Any]) -> None:
    """The set is known, and what a kind needs beside it is there."""
    kind = job["kind"]
    if kind == "transfer" and not job.get("eps"):
        raise ValueError(f"{where} has victims {job['victims']!r} and eps {job.get('eps')!r}: give a list of each.")
    if "text" in job:
        _check_place(f"text of {where}", job["text"])
    if kind in ("vlm", "targeted"):
        _check_text_job(where, job)
    elif _in_lab(job):
        _check_lab_set(where, job["set"], TEST_SETS)
    else:
        zero_shot_set(job["set"])
    if kind == "corruptions":
        check_corruptions(job.get("names"), job.get("severities", (1,)))


def _check_text_job(where: str, job: Mapping[str, Any]) -> None:
    """A job of a vision-language model: the lab's LLaVA has the lab's sets, every other one those of the Hub."""
    lab_model = job["vlm"] == LAB_LLAVA
    if lab_model != _in_lab(job):
        raise ValueError(
            f"{where} has set {job['set']!r} for vlm {job['vlm']!r}: only {LAB_LLAVA} has lab sets, and no other sets."
        )
    if not lab_model and is_missing_path(job["vlm"]):
        raise ValueError(f"{where} has vlm {job['vlm']!r}, and there is nothing: check the path.")
    if job["kind"] == "targeted" and (not job.get("eps") or not (lab_model or "target" in job)):
        raise ValueError(f"{where} is of kind 'targeted': give it eps, and a target string for models not of the lab.")
    if lab_model:
        _check_lab_set(where, job["set"], LAB_TEXTS if job["kind"] == "vlm" else TEST_SETS)
    else:
        vlm_set(job["set"])


def _check_lab_set(where: str, name: str, known: Sequence[str]) -> None:
    if name.removeprefix(LAB) not in known:
        raise ValueError(f"{where} has set {name!r}: the lab has {', '.join(known)}.")


def _check_place(what: str, source: str) -> None:
    """A path leads somewhere, and the lab has what is named of it."""
    if source.startswith(LAB):
        encoder_folder(source.removeprefix(LAB))
    elif is_missing_path(source):
        raise ValueError(f"there is nothing at {source!r}, where {what} should be: check the path.")


def model_source(name: str, models: Mapping[str, str]) -> str:
    """Where a model of the suite is.

    Raises:
        ValueError: the suite has no such model.
    """
    if name not in models:
        raise ValueError(f"the job names the model {name!r}: list it in models, beside {', '.join(models)}.")
    return models[name]
