"""What a job of a suite may say: each setting is a field of its kind, whose type says once which values it takes."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation.report.rows import Row
from fare_hf.files.folders import encoder_inside, is_missing_path
from fare_hf.lab.names import encoder_path, is_in_lab
from fare_hf.numerals import whole_number

__all__ = [
    "Attacked",
    "Count",
    "Flag",
    "Job",
    "Names",
    "Says",
    "Severities",
    "Subject",
    "Template",
    "Text",
    "Texts",
    "one_of",
    "read_job",
    "require_path",
]

Check = Callable[[str, str, Any], None]
"""(what holds the setting, its name, its value): raises ValueError for values that it does not take."""


def takes(holds: Callable[[Any], bool], otherwise: str) -> Check:
    """A check by a condition, with what its sentence says of other values."""

    def check(where: str, name: str, value: Any) -> None:
        if not holds(value):
            raise ValueError(f"{where} has {name} {value!r}{otherwise}")

    return check


def one_of(known: Collection[str]) -> Check:
    """A check for one of some texts."""
    return takes(lambda value: value in tuple(known), f": use one of {', '.join(known)}.")


def whole(least: int, or_none: bool = False) -> Check:
    """A check for whole numbers from `least`, or None where it means all."""

    def check(where: str, name: str, value: Any) -> None:
        if not (or_none and value is None):
            whole_number(value, f"{where} has a value that cannot be: {name}", least)

    return check


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value)) and len(set(value)) == len(value)


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


EACH = ": give a list of each, without repetition."
Count = Annotated[int | None, whole(1)]
Samples = Annotated[int | None, whole(1, or_none=True)]
Seed = Annotated[int, whole(0)]
Flag = Annotated[bool, takes(lambda value: isinstance(value, bool), ": give true or false.")]
Text = Annotated[str, takes(_is_text, ": give a text.")]
Texts = Annotated[list[str], takes(_is_list_of_texts, EACH)]
Names = Annotated[list[str] | None, takes(lambda value: value is None or _is_list_of_texts(value), EACH)]
Radii = Annotated[
    list[Any] | None, takes(lambda value: isinstance(value, list), ": give a list, such as [2/255, 4/255].")
]
Severities = Annotated[list[int] | None, takes(_is_list_of_numbers, ": give a list of whole numbers.")]
Folder = Annotated[
    str | None,
    takes(_is_text, ": give a text."),
    takes(lambda value: Path(value).is_dir(), ", and there is no such folder: check the path."),
]
Template = Annotated[
    str | None,
    takes(_is_text, ": give a text."),
    takes(lambda value: "{}" in value, ": it needs {} for the question."),
    takes(
        lambda value: "\\n" not in value,
        ": it holds a backslash and an n: write it in double quotes for a line break.",
    ),
]


class Says(Enum):
    """What else the type of a setting may say of it."""

    NOT_OF_THE_LAB = "it is of sets that are not the lab's"
    OF_THE_TABLE = "it is of the paper's sets"
    OF_OWN_DATA = "it is of sets that are neither the lab's nor the paper's"
    OF_AN_ATTACK = "it says nothing without `eps`"
    MODELS = "it names models of the suite"


@dataclass(frozen=True)
class Subject:
    """The model that a job measures, and where the suite keeps things.

    Attributes:
        model: its name.
        name_or_path: where it is; names of the lab are resolved, here and in `models`.
        models: all of the suite, by name.
        output_dir: of the suite.
        states: folder in which a job may write down how far it is; deleted once its rows are written.
    """

    model: str
    name_or_path: str
    models: Mapping[str, str]
    output_dir: Path
    states: Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is measured, and what every kind of job may say. A kind is a subclass with its settings as fields.

    None leaves a setting to what the job runs.

    Attributes:
        set: what is evaluated on: one of the lab's or of the paper's, a folder, or a repository (`user/name`).
        samples: how many images; None is all.
        seed: of every choice and random start.
        models: names of those that it is for; None is all.
        root: folder with copies of the paper's sets, instead of the Hub.
        split, dataset_config, image_column: of a folder or repository.
    """

    kind: ClassVar[str]
    unread: ClassVar[frozenset[str]] = frozenset()
    """Settings of a base that say nothing to this kind."""
    set: Text
    samples: Samples = None
    seed: Seed = 0
    models: Texts | None = None
    root: Annotated[Folder, Says.OF_THE_TABLE] = None
    split: Annotated[Text | None, Says.OF_OWN_DATA] = None
    dataset_config: Annotated[Text | None, Says.OF_OWN_DATA] = None
    image_column: Annotated[Text | None, Says.OF_OWN_DATA] = None

    @classmethod
    def settings(cls) -> dict[str, list[Any]]:
        """What the type of each setting says: checks, and of `Says`."""
        hints = get_type_hints(cls, include_extras=True)
        return {field.name: _said(hints[field.name]) for field in fields(cls)}

    def silent(self) -> frozenset[str]:
        """Settings that say nothing beside the others."""
        lab = is_in_lab(self.set)
        mute = [Says.OF_THE_TABLE] if self.is_own else [Says.OF_OWN_DATA]
        mute += [Says.NOT_OF_THE_LAB, Says.OF_THE_TABLE] if lab else []
        mute += [] if getattr(self, "eps", None) else [Says.OF_AN_ATTACK]
        return self.unread | {name for name, said in self.settings().items() if any(word in said for word in mute)}

    def reads(self) -> list[str]:
        """The settings that say something beside the others."""
        silent = self.silent()
        return ["kind", *(name for name in self.settings() if name not in silent)]

    def figures(self) -> tuple[Any, ...]:
        """What its figures are called; a report holds each once."""
        return self.kind, self.dataset

    def given(self, *names: str) -> dict[str, Any]:
        """Those of some settings that are not left to what the job runs."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def is_own(self) -> bool:
        """Whether the set is a folder or a repository, not one of the lab's or the paper's."""
        return not is_in_lab(self.set) and ("/" in self.set or Path(self.set).expanduser().is_dir())

    @property
    def dataset(self) -> str:
        """The set's name without `lab:`, a folder's without what it lies in."""
        folder = Path(self.set).expanduser()
        return folder.resolve().name if self.is_own and folder.is_dir() else self.set.removeprefix("lab:")

    def check(self, where: str) -> None:
        """Raises ValueError, where no job like this can work: sets that are not known, radii that are none."""
        if self.is_own and is_missing_path(self.set):
            raise ValueError(f"{where} has set {self.set!r}, and there is no such folder: check the path.")

    def run(self, subject: Subject) -> list[Row]:
        """Measure one model."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Attacked(Job):
    """With an attack for each radius.

    Attributes:
        norm: "linf" or "l2".
        eps: radii, such as [2/255, 4/255].
        steps: of each run of APGD.
    """

    norm: Annotated[Text, Says.OF_AN_ATTACK] = "linf"
    eps: Radii = None
    steps: Annotated[Count, Says.OF_AN_ATTACK] = None

    def threats(self) -> list[ThreatModel]:
        """One for each radius."""
        return [ThreatModel(self.norm, eps) for eps in self.eps or []]

    def check(self, where: str) -> None:
        super().check(where)
        try:
            balls = self.threats() or [ThreatModel(self.norm, 0)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from None
        if len(set(balls)) < len(balls):
            raise ValueError(f"{where} has eps {self.eps!r}, one of them twice: give each once.")


def _said(hint: Any) -> list[Any]:
    """The extras of a type and of its parts."""
    own = getattr(hint, "__metadata__", ())
    return [*(said for part in ([hint.__origin__] if own else get_args(hint)) for said in _said(part)), *own]


def read_job(
    where: str,
    told: Mapping[str, Any],
    own: Collection[str],
    models: Mapping[str, str],
    kinds: Mapping[str, type[Job]],
) -> Job:
    """The job that some settings describe.

    Args:
        where: for messages.
        told: the settings with the suite's defaults, `kind` included. Defaults of other kinds are passed over.
        own: names of those that are not the suite's defaults: each must say something.
        models: of the suite.
        kinds: every kind of job by its name.

    Raises:
        ValueError: an unknown kind, a setting that is missing, not known, of another type, or that says nothing, a
            model that the suite has not, and what `Job.check` refuses.
    """
    kind = told["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"{where} is of kind {kind!r}: use one of {', '.join(kinds)}.")
    known = kinds[kind].settings()
    for field in fields(kinds[kind]):
        if field.default is MISSING and field.name not in told:
            raise ValueError(f"{where} is of kind {kind!r} and has no {field.name!r}: add it.")
    given = {name: value for name, value in told.items() if name in known}
    for name, value in given.items():
        for check in filter(callable, known[name]):
            check(where, name, value)
        if Says.MODELS in known[name]:
            _require_models(value, models)
    job = kinds[kind](**given)
    job.check(where)
    _require_read(where, job, own, {name for one in kinds.values() for name in one.settings()})
    return job


def _require_models(named: str | list[str], models: Mapping[str, str]) -> None:
    for name in [named] if isinstance(named, str) else named:
        if name not in models:
            raise ValueError(f"the job names the model {name!r}: list it in models, beside {', '.join(models)}.")


def _require_read(where: str, job: Job, own: Collection[str], every: Collection[str]) -> None:
    """Whatever the job itself says, it reads."""
    read = job.reads()
    for name in own:
        if name in read:
            continue
        if name in every:
            raise ValueError(
                f"{where} is of kind {job.kind!r} on {job.set!r} and has {name!r}, which says nothing to it: beside "
                f"its other settings it reads {', '.join(read)}."
            )
        close = difflib.get_close_matches(name, sorted(every), 1)
        hint = f"did you mean {close[0]!r}?" if close else "leave it out;"
        raise ValueError(f"{where} has {name!r}: {hint} it reads {', '.join(read)}.")


def require_path(what: str, name_or_path: str) -> None:
    """Refuse a path that leads nowhere, the folder of a training for its encoder, and a model that the lab has not."""
    encoder_path(name_or_path)
    if is_missing_path(name_or_path):
        raise ValueError(f"there is nothing at {name_or_path!r}, where {what} should be: check the path.")
    if (encoder := encoder_inside(name_or_path)) and not (Path(name_or_path) / "config.json").is_file():
        raise ValueError(f"{what} is the folder {name_or_path!r} of a training: name {encoder}.")
