"""A whole evaluation from one YAML file: models x sets x radii, row after row, resumable.

    name: lab
    models: {CLIP: lab:clip, FARE-4: lab:fare-4}
    defaults: {eps: [2/255, 4/255], seed: 0}
    jobs:
      - {kind: zero-shot, set: lab:digits, samples: 100, steps: 20}
      - {kind: drift, set: lab:digits, original: CLIP}

What a name such as `lab:digits` means is the caller's business: a `Loader` makes encoders, sets and models of it.
Finished jobs are rows on disk and are not run again, as long as their settings are the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm.auto import tqdm

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.environment import environment
from fare_hf.evaluation.report.report import RobustnessReport
from fare_hf.evaluation.report.rows import Row, read_rows
from fare_hf.evaluation.resume import digest, write_text
from fare_hf.files.documents import read_object, read_yaml
from fare_hf.files.folders import locked_folder

__all__ = ["Job", "Runner", "Suite", "load_suite", "run_suite", "shipped_suites"]

SHIPPED = Path(__file__).parent
SEAL = "sha256"
FIELDS = {"name", "description", "models", "defaults", "jobs"}


class Runner(Protocol):
    """What runs the jobs of one kind."""

    def __call__(self, model: str, source: str, settings: Mapping[str, Any], models: Mapping[str, str]) -> list[Row]:
        """Rows of one model (its name and where it is) on one job."""


@dataclass(frozen=True)
class Job:
    """One model on one job of a suite.

    Attributes:
        model: its name.
        source: where it is.
        settings: the job with the suite's defaults, `kind` included.
    """

    model: str
    source: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """A name for its file: readable, and another one for other settings."""
        text = json.dumps([self.model, self.source, self.settings], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        words = f"{self.model}-{self.settings['kind']}-{self.settings.get('set', '')}"
        return "".join(c if c.isalnum() else "_" for c in words).strip("_") + f"-{digest}"


@dataclass(frozen=True)
class Suite:
    """A suite as its file says it.

    Attributes:
        name: of the suite.
        models: {name: where it is}.
        jobs: what is measured, defaults filled in.
        description: for people.
        defaults: of the jobs, each for those that read it.
    """

    name: str
    models: dict[str, str]
    jobs: list[dict[str, Any]] = field(default_factory=list)
    description: str = ""
    defaults: dict[str, Any] = field(default_factory=dict)

    def each(self) -> Iterator[Job]:
        """All jobs of all models; a job with `models` is for these only."""
        for settings in self.jobs:
            for model in settings.get("models", self.models):
                yield Job(model, self.models[model], {k: v for k, v in settings.items() if k != "models"})


def state_folder(output_dir: str | Path, job: Job) -> Path:
    """Where a job may write down how far it is; deleted once its rows are written."""
    return Path(output_dir) / "states" / job.key


def shipped_suites() -> list[str]:
    """Names of the suites in the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_suite(name_or_path: str | Path, models: Mapping[str, str] | None = None) -> Suite:
    """Read a suite: one of `shipped_suites`, or a file.

    Args:
        name_or_path: which.
        models: instead of the file's own.

    Raises:
        ValueError: no such suite, unknown or missing fields, no jobs, jobs without a kind, models that are not there,
            a norm or radius that `ThreatModel` refuses.
    """
    path = SHIPPED / f"{name_or_path}.yaml" if str(name_or_path) in shipped_suites() else Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"suite {str(name_or_path)!r} is neither a file nor one of {', '.join(shipped_suites())}.")
    content = read_yaml(path)
    if not isinstance(content, dict) or not {"name", "jobs"} <= set(content) <= FIELDS:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"'{path}' is not a suite: it has {found}, and needs name and jobs of {sorted(FIELDS)}.")
    _check_shapes(path, content)
    chosen = dict(models or content.get("models") or {})
    defaults = dict(content.get("defaults") or {})
    jobs = [defaults | dict(job) for job in content["jobs"]]
    for number, job in enumerate(jobs):
        if "kind" not in job:
            raise ValueError(f"job {number} of '{path}' has no kind: say what to measure.")
        if models is not None:
            job.pop("models", None)
        unknown = [name for name in job.get("models", []) if name not in chosen]
        if unknown or not chosen:
            raise ValueError(f"job {number} of '{path}' is for the models {unknown or '(none)'}: list them in models.")
        if not isinstance(job.get("eps", []), list):
            raise ValueError(f"job {number} of '{path}' has eps {job['eps']!r}: give a list, such as [2/255, 4/255].")
        for eps in job.get("eps", []):
            ThreatModel(job.get("norm", "linf"), eps)
    return Suite(content["name"], chosen, jobs, content.get("description") or "", defaults)


def _check_shapes(path: Path, content: Mapping[str, Any]) -> None:
    """Raises ValueError where a field of a suite is of another kind than its place asks for."""
    kinds = {"models": (dict, "names with paths"), "defaults": (dict, "settings"), "jobs": (list, "a list of jobs")}
    for name, (kind, what) in kinds.items():
        if content.get(name) is not None and not isinstance(content[name], kind):
            raise ValueError(f"'{path}' has {name} {content[name]!r}: give {what}.")
    if not content["jobs"]:
        raise ValueError(f"'{path}' has no jobs: list at least one.")
    texts = [content["name"], content.get("description") or "-"]
    for name, source in (content.get("models") or {}).items():
        texts += [name, source]
    if wrong := [text for text in texts if not isinstance(text, str) or not text.strip()]:
        raise ValueError(f"'{path}' has {wrong[0]!r} for a name, a description or a model's place: give a text.")
    if not all(isinstance(name, str) for name in content.get("defaults") or {}):
        raise ValueError(f"'{path}' has defaults {content['defaults']!r}: give settings by name.")
    for number, job in enumerate(content["jobs"]):
        if (
            not isinstance(job, dict)
            or not isinstance(job.get("models", []), list)
            or not all(isinstance(n, str) for n in job)
        ):
            raise ValueError(f"job {number} of '{path}' is {job!r}: give settings, and models of it as a list.")


def run_suite(
    suite: Suite,
    runners: Mapping[str, Runner],
    output_dir: str | Path,
    *,
    command: str | None = None,
    progress: bool = True,
    after: Callable[[Job, list[Row]], None] | None = None,
) -> RobustnessReport:
    """Run what is not finished yet, and write `report.json` and `report.md` of all of it.

    Each finished job is a file under `output_dir/rows`, written whole: after an interruption the call goes on with the
    first job that has none. Jobs whose settings were changed are run anew.

    Args:
        suite: what to run.
        runners: {kind: what runs it}.
        output_dir: where rows and report go.
        command: for the report's environment.
        progress: a progress bar over the jobs, with the one that runs.
        after: called with each job and its rows once it is finished.

    Raises:
        ValueError: a kind without a runner, and what runners raise.
    """
    unknown = sorted({job["kind"] for job in suite.jobs} - set(runners))
    if unknown:
        raise ValueError(f"suite {suite.name!r} has jobs of kind {unknown[0]!r}: use one of {', '.join(runners)}.")
    with locked_folder(Path(output_dir), "a suite"):
        folder = Path(output_dir) / "rows"
        folder.mkdir(parents=True, exist_ok=True)
        files = {folder / f"{job.key}.json": job for job in suite.each()}
        finished = {path: _read_rows(path, job) for path, job in files.items() if path.exists()}
        with tqdm(total=len(files), initial=len(finished), disable=not progress, desc=suite.name) as bar:
            for path, job in files.items():
                if path not in finished:
                    bar.set_postfix_str(f"{job.model}: {job.settings['kind']} {job.settings.get('set', '')}")
                    found = runners[job.settings["kind"]](job.model, job.source, job.settings, suite.models)
                    _write_rows(path, job, found)
                    finished[path] = _read_rows(path, job)
                    bar.update()
                    if after is not None:
                        after(job, found)
                shutil.rmtree(state_folder(output_dir, job), ignore_errors=True)  # the rows are written
        report = RobustnessReport([row for path in files for row in finished[path]], environment(command))
        report.save(output_dir)
    return report


def _write_rows(path: Path, job: Job, rows: list[Row]) -> None:
    content: dict[str, Any] = {"model": job.model, "source": job.source, "settings": job.settings}
    content["rows"] = [row.to_dict() for row in rows]
    write_text(path, json.dumps(content | {SEAL: _seal(content)}, indent=2, ensure_ascii=False) + "\n")


def _read_rows(path: Path, job: Job) -> list[Row]:
    """The rows of a finished job.

    Raises:
        ValueError: the file is cut, was changed, or is of another job.
    """
    content = read_object(path)
    again = "delete it, and run the same command again"
    if content.pop(SEAL, None) != _seal(content):
        raise ValueError(f"'{path}' was changed after it was written: {again}.")
    if [content.get(name) for name in ("model", "source", "settings")] != [job.model, job.source, job.settings]:
        raise ValueError(f"'{path}' is of another job: {again}.")
    try:
        return read_rows(content["rows"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"'{path}' holds no rows of a report ({error}): {again}.") from None


def _seal(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))
