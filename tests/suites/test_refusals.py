"""Suites that are none, and jobs that cannot work: the sentence that says so before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from helpers.refusals import Refusal, changing, table

from fare_hf.cli import main as cli
from fare_hf.suites.settings import Attacked, Text
from fare_hf.suites.suite import load_suite, read_suite


@dataclass(frozen=True, kw_only=True)
class Plain(Attacked):
    """A kind of job of a test's own."""

    kind: ClassVar[str] = "k"
    set: Text = "x"


def opened(tmp_path: Path, text: str, **options: Any) -> Any:
    """A suite from a file."""
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    return load_suite(path, **options)


def of_plain_jobs(tmp_path: Path, *, text: str) -> Any:
    return opened(tmp_path, text, kinds={"k": Plain})


def of_any_jobs(tmp_path: Path, *, text: str) -> Any:
    return opened(tmp_path, text)


def one_job(tmp_path: Path, *, job: str) -> Any:
    return opened(tmp_path, f"name: s\nmodels: {{CLIP: 'lab:clip'}}\njobs:\n  - {job}\n")


DRIFT = "{kind: drift, set: 'lab:digits', original: CLIP}"


def started(tmp_path: Path, *, job: str) -> None:
    """The command, with a job before one that works; nothing may be written."""
    (tmp_path / "suite.yaml").write_text(f"name: s\nmodels: {{CLIP: 'lab:clip'}}\njobs:\n  - {job}\n  - {DRIFT}\n")
    try:
        cli.main(["evaluate", "--suite", str(tmp_path / "suite.yaml"), "--output_dir", str(tmp_path / "out")])
    finally:
        assert not (tmp_path / "out").exists()


PLAIN = [
    ("- a", "is not a suite"),
    ("name: s\njobs: []\nmodel: {}\n", "is not a suite"),
    ("name: s\nmodels: {A: a}\njobs: [{set: x}]\n", "job 0 … has no kind"),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k, models: [B]}]\n", "for the models ['B']"),
    ("name: s\njobs: [{kind: k}]\n", "(none)"),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k, eps: [4]}]\n", "did you mean 4/255"),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k, eps: 4/255}]\n", "eps '4/255': give a list, such as [2/255"),
    ("name: s\nmodels: [A]\njobs: [{kind: k}]\n", "models ['A']: give names with paths"),
    ("name: s\nmodels: {A: a}\njobs: {kind: k}\n", "jobs {'kind': 'k'}: give a list of jobs"),
    ("name: s\nmodels: {A: a}\njobs: [5]\n", "job 0 of … is 5: give settings"),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k, models: A}]\n", "job 0 …models of it as a list"),
    ("name: [\n", "is not YAML"),
]
FILES = [
    ("name: s\nmodels: {A: a}\njobs: []\n", "has no jobs: list at least one"),
    ("name: s\nmodels: {A: a}\njobs:\n", "has no jobs"),
    ("name: 5\nmodels: {A: a}\njobs: [{kind: k}]\n", "has 5 for a name"),
    ("name: s\nmodels: {4: a}\njobs: [{kind: k}]\n", "has 4 for a name"),
    ("name: s\nmodels: {A: null}\njobs: [{kind: k}]\n", "has None for a name"),
    ("name: s\nmodels: {A: [a]}\njobs: [{kind: k}]\n", "has ['a'] for a name"),
    ("name: s\n1: 2\njobs: [{kind: k}]\n", "is not a suite: it has ['1', 'jobs', 'name']"),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k, 3: 4}]\n", "job 0 … give settings"),
    ("name: s\nmodels: {A: a}\ndefaults: {1: 2}\njobs: [{kind: k}]\n", "give settings by name"),
    (
        "name: s\nmodels: {A: a}\njobs: [{kind: vlm, vlm: v, set: COCO, norm: l3, eps: [4/255]}]\n",
        "norm 'l3' is unknown",
    ),
    ("name: s\nmodels: {A: a}\njobs: [{kind: k}]\n", "kind 'k'"),
    ("a: &a [x]\nb: &b [*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b]\n", "is not a suite"),
    ("[" * 500, "nested deeper"),
]
JOBS = [
    ("{kind: drift, set: 'lab:digits', original: CLIP, samples: 9}", "job 1 … repeats drift on 'lab:digits'"),
    ("{kind: zero-shot}", "job 0 of the suite 's' is of kind 'zero-shot' and has no 'set': add it"),
    ("{kind: drift, set: 'lab:digits'}", "has no 'original'"),
    ("{kind: zero-shot, set: 'lab:digits', stesp: 5}", "has 'stesp': did you mean 'steps'"),
    ("{kind: zero-shot, set: 'lab:digits', xyzzy: 5}", "has 'xyzzy': leave it out"),
    ("{kind: zero-shot, set: 'lab:digits', attack: fgsm}", "attack 'fgsm': use one of apgd-ce"),
    ("{kind: zero-shot, set: 'lab:numbers'}", "set 'lab:numbers' is not in the lab; use one of lab:twemoji"),
    ("{kind: zero-shot, set: MNIST}", "no zero-shot set 'MNIST'"),
    ("{kind: zero-shot, set: 'lab:digits', surrogate: LeNet}", "names the model 'LeNet'"),
    ("{kind: vlm, vlm: llava-hf/llava-1.5-7b-hf, set: cocoa}", "there is no set 'cocoa': use one of"),
]
ON_THE_LAB = [
    ("{kind: transfer, set: 'lab:digits', victims: [LeNet], eps: [4/255]}", "names the model 'LeNet'"),
    ("{kind: transfer, set: 'lab:digits', victims: [CLIP]}", "eps None: give a list of each"),
    ("{kind: transfer, set: 'lab:digits', victims: CLIP, eps: [4/255]}", "victims 'CLIP'"),
    ("{kind: transfer, set: 'lab:digits', victims: [], eps: [4/255]}", "give a list of each"),
    ("{kind: vlm, vlm: 'lab:llava', set: COCO}", "only lab:llava and lab:smolvlm have lab sets"),
    (
        "{kind: vlm, vlm: 'lab:llava', set: 'lab:drawings'}",
        "is a training set of the lab, which is not wanted here; use one of lab:captions",
    ),
    ("{kind: targeted, vlm: 'lab:llava', set: 'lab:pope', eps: [4/255]}", "is a set of texts of the lab"),
    ("{kind: vlm, vlm: 'lab:fare-4', set: me/photos, task: vqa}", "vlm 'lab:fare-4' is an encoder of the lab"),
    ("{kind: targeted, vlm: 'llava-hf/x', set: COCO, eps: [4/255]}", "a target string"),
    ("{kind: targeted, vlm: 'lab:llava', set: 'lab:digits'}", "give it eps"),
]


def with_default(name: str) -> Any:
    job = {"kind": "drift", "set": "lab:digits", "original": "A"}
    return read_suite({"name": "s", "models": {"A": "lab:clip"}, "jobs": [job], "defaults": {name: 5}})


@table(
    Refusal(
        "an unknown suite",
        lambda: load_suite("paper"),
        ValueError,
        "suite 'paper' is neither a file nor one of lab, paper-vlm, paper-zero-shot.",
    ),
    Refusal(
        "a default that no job reads",
        lambda: with_default("queries"),
        ValueError,
        "the defaults of the suite 's' have 'queries', which no job reads: kind, set",
    ),
    Refusal(
        "a default that does not exist",
        lambda: with_default("stesp"),
        ValueError,
        "the defaults of the suite 's' have 'stesp', which no job reads",
    ),
    *changing("plain jobs", of_plain_jobs, [({"text": text}, sentence) for text, sentence in PLAIN]),
    *changing("file", of_any_jobs, [({"text": text}, sentence) for text, sentence in FILES]),
    *changing("lab", one_job, [({"job": job}, sentence) for job, sentence in ON_THE_LAB]),
    *changing("command", started, [({"job": job}, sentence) for job, sentence in JOBS], SystemExit),
)
def test_what_cannot_be_run_is_refused_in_a_sentence(row: Refusal, request: pytest.FixtureRequest) -> None:
    row.check(request)
