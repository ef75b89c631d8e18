"""The page of the kinds of jobs of a suite and their settings."""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, fields
from typing import Any

from fare_hf.suites.settings import Attacked, Job, Says
from fare_hf.suites.suite import FIELDS, KINDS, shipped_suites
from tools.docs.docstrings import first_paragraph, listed, section, table

__all__ = ["jobs_page"]

HEAD = """# Jobs of a suite and their settings

<!-- Written by `python -m tools.docs`: change the code instead. -->

A suite is a YAML file with the fields {fields}. `models` gives each encoder a name, `defaults` are settings for every
job that reads them, and each of `jobs` is one of the kinds below. A setting that a job does not read is refused before
the first job runs. The package has the suites {shipped}.

```yaml
# suite.yaml
name: mine
models: {{CLIP: lab:clip, FARE-4: lab:fare-4}}
defaults: {{eps: [4/255], seed: 0}}
jobs:
  - {{kind: zero-shot, set: "lab:digits", samples: 100, steps: 50}}
  - {{kind: drift, set: "lab:digits", original: CLIP, samples: 100}}
```

```bash
fare-hf evaluate --suite suite.yaml --output_dir outputs/mine
```

An interrupted suite goes on with the first job that is not finished, and a job with an attack in its middle. A file
of the run that was cut, edited or is of another run is refused, and so is a second run in the same folder. A finished
suite has
its charts in `plots/` (with `pip install ".[plots]"`): curves over eps, pairs of bars, a map of what transfers. Rates
keep each sample's outcome in `report.json`, and `report.md` gives the models' differences to the first one in pairs.
"""

NOTES = {
    Says.NOT_OF_THE_LAB: "not for sets of the lab",
    Says.OF_THE_TABLE: "for sets of the paper",
    Says.OF_OWN_DATA: "for folders and repositories",
    Says.OF_AN_ATTACK: "only with `eps`",
    Says.MODELS: "by its name in `models`",
}


def jobs_page() -> str:
    """The settings that several kinds share, and a section for each kind with its own."""
    fields_of_a_suite = ", ".join(f"`{name}`" for name in sorted(FIELDS))
    shipped = ", ".join(f"`{name}`" for name in shipped_suites())
    parts = [HEAD.format(fields=fields_of_a_suite, shipped=shipped)]
    parts.append(f"## Every job\n\n{_settings(Job, ())}\n")
    parts.append(f"## Every job with an attack\n\n{', '.join(_attacked())}.\n\n{_settings(Attacked, (Job,))}\n")
    for name, kind in KINDS.items():
        parts.append(f"## `{name}`\n\n{first_paragraph(kind)}\n\n{_settings(kind, (Job, Attacked))}\n")
    return "\n".join(parts)


def _attacked() -> list[str]:
    return [f"`{name}`" for name, kind in KINDS.items() if issubclass(kind, Attacked)]


def _settings(kind: type[Job], shared: tuple[type[Job], ...]) -> str:
    """A table of the settings that a kind does not share, and of those of which it says something else."""
    known = {field.name for base in shared for field in fields(base)}
    own = [field for field in fields(kind) if field.name not in known | kind.unread or field.name in _said(kind)]
    lines = sorted((_line(kind, field) for field in own), key=lambda line: line[2] != "required")
    return table(["setting", "takes", "default", "what it is"], lines)


def _said(kind: type[Job]) -> dict[str, str]:
    """What the docstring of a class itself says of its settings."""
    return listed(section(kind, "Attributes:")) if kind.__doc__ else {}


def _line(kind: type[Job], field: Field[Any]) -> list[object]:
    said = kind.settings()[field.name]
    default = "required" if field.default is MISSING else "" if field.default is None else f"`{field.default}`"
    notes = [NOTES[word] for word in said if isinstance(word, Says)]
    return [f"`{field.name}`", _takes(said), default, "; ".join([_meaning(kind, field.name), *notes])]


def _meaning(kind: type[Job], name: str) -> str:
    """What the docstring of the nearest class that says something of a setting says."""
    texts = (_said(base)[name] for base in kind.__mro__ if issubclass(base, Job) and name in _said(base))
    return re.sub("^of `", "as in `", next(texts).rstrip("."))


def _takes(said: list[Any]) -> str:
    """What the checks of a setting ask for, as their own sentences say it of a value that is none."""
    for check in filter(callable, said):
        try:
            check("", "", ...)
        except (TypeError, ValueError) as error:
            words = str(error).rpartition("Ellipsis")[2]
            words = re.sub(r"is no (whole number from \d+) to \d+", r"a \1", words)
            return words.strip(" :;,.").removeprefix("use ").removeprefix("give ")
    return ""
