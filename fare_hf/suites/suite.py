"""A whole evaluation from one YAML file: models x sets x radii, row after row, resumable.

    name: lab
    models: {CLIP: lab:clip, FARE-4: lab:fare-4}
    defaults: {eps: [2/255, 4/255], seed: 0}
    jobs:
      - {kind: zero-shot, set: lab:digits, samples: 100, steps: 20}
      - {kind: drift, set: lab:digits, original: CLIP}

Finished jobs are rows on disk and are not run again, as long as their settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from fare_hf.evaluation.processes import agreed, held_by_the_first, opening_together, process_state
from fare_hf.evaluation.report.environment import environment
from fare_hf.evaluation.report.report import RobustnessReport
from fare_hf.evaluation.report.rows import Row, read_rows
from fare_hf.evaluation.resume import digest, write_text
from fare_hf.files.documents import read_object, read_yaml
from fare_hf.files.folders import locked_folder
from fare_hf.lab.names import encoder_path
from fare_hf.suites.encoder_jobs import ENCODER_JOBS
from fare_hf.suites.settings import Job, Subject, read_job, require_path
from fare_hf.suites.vlm_jobs import VLM_JOBS

__all__ = ["KINDS", "Suite", "load_suite", "read_suite", "run_suite", "shipped_suites"]

KINDS: dict[str, type[Job]] = {job.kind: job for job in (*ENCODER_JOBS, *VLM_JOBS)}
SHIPPED = Path(__file__).parent
SEAL = "sha256"
FIELDS = {"name", "description", "models", "defaults", "jobs"}
SHAPES = {"models": (dict, "names with paths"), "defaults": (dict, "settings"), "jobs": (list, "a list of jobs")}


@dataclass(frozen=True)
class Suite:
    """A suite that can work, as far as its file shows.

    Attributes:
        name: of the suite.
        models: {name: where it is}.
        jobs: what is measured, each with its settings as the file says them, defaults filled in.
        description: for people.
    """

    name: str
    models: dict[str, str]
    jobs: list[tuple[Job, dict[str, Any]]]
    description: str = ""


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_suite(
    name_or_path: str | Path, models: Mapping[str, str] | None = None, kinds: Mapping[str, type[Job]] = KINDS
) -> Suite:
    """Read a suite: one of `shipped_suites`, or a file.

    Args:
        name_or_path: which.
        models: instead of the file's own.
        kinds: of jobs, by name.

    Raises:
        ValueError: no such suite, and as `read_suite`.
        ImportError: corruptions without their library.
    """
    path = SHIPPED / f"{name_or_path}.yaml" if str(name_or_path) in shipped_suites() else Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"suite {str(name_or_path)!r} is neither a file nor one of {', '.join(shipped_suites())}.")
    return read_suite(read_yaml(path), f"'{path}'", models, kinds)


def read_suite(
    content: Any,
    where: str = "the suite",
    models: Mapping[str, str] | None = None,
    kinds: Mapping[str, type[Job]] = KINDS,
) -> Suite:
    """A suite from the content of its file. What a job would stumble over, or not read, is refused before any work.

    Args:
        content: with `name` and `jobs`, perhaps `description`, `models` and `defaults`.
        where: what holds it, for messages.
        models, kinds: as `load_suite`.

    Raises:
        ValueError: other fields, or of other types; a path where there is nothing; a job that `read_job` refuses; a
            default that no job reads; the same figures twice.
        ImportError: corruptions without their library.
    """
    for fault in _faults(content, where, models):
        raise ValueError(fault)
    name, defaults = content["name"], content.get("defaults") or {}
    chosen = dict(models or content["models"])
    for model, name_or_path in chosen.items():
        require_path(f"the model {model!r}", name_or_path)
    jobs = []
    for number, own in enumerate(content["jobs"]):
        told = {key: value for key, value in (defaults | own).items() if models is None or key != "models"}
        differs = [key for key, value in told.items() if key not in defaults or value != defaults[key]]
        jobs.append((read_job(f"job {number} of the suite {name!r}", told, differs, chosen, kinds), told))
    suite = Suite(name, chosen, jobs, content.get("description") or "")
    for fault in _faults_together(suite, defaults):
        raise ValueError(fault)
    return suite


def _faults(content: Any, where: str, models: Mapping[str, str] | None) -> Iterator[str]:
    """What is wrong with the shape of a file; each fault supposes that there is none before it."""
    if not isinstance(content, dict) or not {"name", "jobs"} <= set(content) <= FIELDS:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        yield f"{where} is not a suite: it has {found}, and needs name and jobs of {sorted(FIELDS)}."
    for name, (shape, what) in SHAPES.items():
        if content.get(name) is not None and not isinstance(content[name], shape):
            yield f"{where} has {name} {content[name]!r}: give {what}."
    if not content["jobs"]:
        yield f"{where} has no jobs: list at least one."
    own, defaults = content.get("models") or {}, content.get("defaults") or {}
    for text in (content["name"], content.get("description") or "-", *own, *own.values()):
        if not isinstance(text, str) or not text.strip():
            yield f"{where} has {text!r} for a name, a description or a model's path: give a text."
    if not all(isinstance(name, str) for name in defaults):
        yield f"{where} has defaults {defaults!r}: give settings by name."
    for number, job in enumerate(content["jobs"]):
        named = isinstance(job, dict) and all(isinstance(name, str) for name in job)
        if not named or not isinstance(job.get("models", []), list):
            yield f"job {number} of {where} is {job!r}: give settings, and models of it as a list."
        if "kind" not in defaults | job:
            yield f"job {number} of {where} has no kind: say what to measure."
        wanted = [] if models else (defaults | job).get("models", [])
        unknown = [name for name in wanted if name not in own]
        if unknown or not (models or own):
            yield f"job {number} of {where} is for the models {unknown or '(none)'}: list them in models."


def _faults_together(suite: Suite, defaults: Mapping[str, Any]) -> Iterator[str]:
    """A figure that would stand twice in the report, and a default that is for no job."""
    seen: set[tuple[Any, ...]] = set()
    for number, (job, _) in enumerate(suite.jobs):
        for figures in [(model, *job.figures()) for model in job.models or suite.models]:
            if figures in seen:
                where = f"job {number} of the suite {suite.name!r}"
                yield f"{where} repeats {job.kind} on {job.set!r} for {figures[0]!r}: make one job of both."
            seen.add(figures)
    read = dict.fromkeys(name for job, _ in suite.jobs for name in job.reads())
    for name in defaults:
        if name not in read:
            yield f"the defaults of the suite {suite.name!r} have {name!r}, which no job reads: {', '.join(read)}."


def run_suite(
    suite: Suite, output_dir: str | Path, *, command: str | None = None, progress: bool = True
) -> RobustnessReport:
    """Run what is not finished yet, and write `report.json` and `report.md` of all of it.

    Each finished job is a file under `output_dir/rows`, written whole: after an interruption the call goes on with the
    first job that has none. Jobs whose settings were changed are run anew.

    Processes that `accelerate launch` started divide the batches of every job; all get the report, and the first one
    writes it.

    Args:
        suite: what to run.
        output_dir: where rows and report go, and what jobs write beside them.
        command: for the report's environment.
        progress: a progress bar over the jobs, with the one that runs.

    Returns:
        The report.

    Raises:
        ValueError: another suite runs in the folder, a file of it was changed, and what jobs raise.
    """
    output_dir = Path(output_dir)
    models = {name: encoder_path(name_or_path) for name, name_or_path in suite.models.items()}
    first = process_state().is_main_process
    with held_by_the_first(lambda: locked_folder(output_dir, "a suite")), opening_together():
        (output_dir / "rows").mkdir(parents=True, exist_ok=True)
        planned = {output_dir / "rows" / f"{_key(facts)}.json": (job, facts) for job, facts in _planned(suite)}
        there = {path: facts for path, (_, facts) in planned.items() if path.exists()}
        finished = agreed(lambda: {path: _read_rows(path, facts) for path, facts in there.items()}, distributed=True)
        bar: Any = tqdm(total=len(planned), initial=len(finished), disable=not (progress and first), desc=suite.name)
        with bar:
            for path, (job, facts) in planned.items():
                states = output_dir / "states" / path.stem
                if path not in finished:
                    bar.set_postfix_str(f"{facts['model']}: {job.kind} {job.set}")
                    subject = Subject(facts["model"], models[facts["model"]], models, output_dir, states)
                    finished[path] = _kept_rows(path, facts, _measured(job, subject))
                    bar.update()
                if first:
                    shutil.rmtree(states, ignore_errors=True)  # the rows are written
        report = RobustnessReport([row for path in planned for row in finished[path]], environment(command))
        if first:
            report.save(output_dir)
    return report


def _measured(job: Job, subject: Subject) -> list[Row]:
    """The rows of a job, whose errors say which job it is."""
    try:
        return job.run(subject)
    except ValueError as error:
        raise ValueError(f"the job {job.kind} on {job.set!r} with {subject.model!r}: {error}") from error


def _kept_rows(path: Path, facts: Mapping[str, Any], rows: list[Row]) -> list[Row]:
    """The rows of a job as the first process wrote and read them."""

    def keep() -> list[Row]:
        _write_rows(path, facts, rows)
        return _read_rows(path, facts)

    return agreed(keep, distributed=True)


def _planned(suite: Suite) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Every job with each of its models, and what its file says of both."""
    for job, told in suite.jobs:
        settings = {name: value for name, value in told.items() if name != "models"}
        for model in job.models or suite.models:
            yield job, {"model": model, "source": suite.models[model], "settings": settings}


def _key(facts: Mapping[str, Any]) -> str:
    """A name for a job's file: readable, and another one for other settings."""
    settings = facts["settings"]
    digest = hashlib.sha256(json.dumps(list(facts.values()), sort_keys=True).encode()).hexdigest()[:12]
    words = f"{facts['model']}-{settings['kind']}-{settings.get('set', '')}"
    return "".join(c if c.isalnum() else "_" for c in words).strip("_") + f"-{digest}"


def _write_rows(path: Path, facts: Mapping[str, Any], rows: list[Row]) -> None:
    content = {**facts, "rows": [row.to_dict() for row in rows]}
    write_text(path, json.dumps(content | {SEAL: _seal(content)}, indent=2, ensure_ascii=False) + "\n")


def _read_rows(path: Path, facts: Mapping[str, Any]) -> list[Row]:
    """The rows of a finished job.

    Raises:
        ValueError: the file is cut, was changed, or is of another job.
    """
    content = read_object(path)
    seal, again = content.pop(SEAL, None), "delete it, and run the same command again"
    if seal != _seal(content):
        raise ValueError(f"'{path}' was changed after it was written: {again}.")
    rows = content.pop("rows", None)
    if content != facts:
        raise ValueError(f"'{path}' is of another job: {again}.")
    try:
        return read_rows(rows)
    except ValueError as error:
        raise ValueError(f"'{path}' holds no rows of a report ({error}): {again}.") from None


def _seal(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))
