"""Every setting of every kind of job, and every option of every command: read, or refused in one sentence."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fare_hf.attacks import ThreatModel
from fare_hf.cli import main as cli
from fare_hf.suites import encoder_jobs, vlm_jobs
from fare_hf.suites.settings import Job, Says, Subject, read_job
from fare_hf.suites.suite import KINDS, read_suite

VALUES: dict[str, Any] = {
    **{"samples": 4, "seed": 1, "models": ["A"], "norm": "linf", "eps": ["4/255"], "attack": "apgd-ce", "steps": 2},
    **{"restarts": 2, "target_classes": 1, "queries": 5, "batch_size": 2, "stop_fooled": True, "masking_checks": True},
    **{"surrogate": "A", "original": "A", "embedding": "pooled", "names": ["fog"], "severities": [1]},
    **{"target": "a cat", "question": "what?", "max_new_tokens": 4, "victims": ["A"], "template": "<image> {}"},
    **{"root": ".", "text": "lab:clip", "split": "test", "image_column": "image", "label_column": "label"},
    **{"class_names": ["a", "b"], "templates": ["a {}"], "task": "captions", "caption_column": "caption"},
    **{"question_column": "question", "answer_column": "answer", "prompt": "what is in it?", "dataset_config": "b"},
}
"""One value of each setting, which is right where the setting is read."""
SETS = {"vlm": ("lab:captions", "COCO", "user/photos"), "targeted": ("lab:digits", "COCO", "user/photos")}
SOURCES = ("lab", "paper", "own")
NEEDED = {"drift": {"original": "A"}, "transfer": {"victims": ["A"], "eps": ["4/255"]}}
CASES = [(kind, source) for kind in KINDS for source in SOURCES]
MUTE = {
    "lab": {Says.NOT_OF_THE_LAB, Says.OF_THE_TABLE, Says.OF_OWN_DATA},
    "paper": {Says.OF_OWN_DATA},
    "own": {Says.OF_THE_TABLE},
}


@pytest.fixture(autouse=True)
def corruptions_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their library is an extra."""
    monkeypatch.setattr("fare_hf.suites.encoder_jobs.check_corruptions", lambda names, severities: None)


def job_of(kind: str, source: str) -> dict[str, Any]:
    """The least that a job of a kind says."""
    sets = SETS.get(kind, ("lab:digits", "CIFAR-10", "user/photos"))
    job: dict[str, Any] = {"kind": kind, "set": sets[SOURCES.index(source)]}
    job |= NEEDED.get(kind, {}) | ({"task": "captions"} if (kind, source) == ("vlm", "own") else {})
    if kind in SETS:
        job["vlm"] = "lab:llava" if source == "lab" else "llava-hf/x"
    if kind == "targeted":
        job |= {"eps": ["4/255"]} | ({} if source == "lab" else {"target": "a cat"})
    return job


def check(job: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    read_suite({"name": "s", "models": {"A": "lab:clip"}, "jobs": [job], "defaults": defaults or {}})


def attacked(job: dict[str, Any]) -> dict[str, Any]:
    """With whatever lets the other settings say something."""
    more = {"eps": ["4/255"], "masking_checks": True}
    return job | {name: value for name, value in more.items() if name in KINDS[job["kind"]].settings()}


def readable(kind: str, source: str) -> list[str]:
    """What a kind may say, of the lab's sets, the paper's or one's own."""
    said = KINDS[kind].settings().items()
    never = {("drift", "text"), ("vlm", "question_column"), ("vlm", "answer_column")}  # no texts; captions ask nothing
    return [
        name for name, words in said if not MUTE[source] & set(map(_hashable, words)) and (kind, name) not in never
    ]


def _hashable(word: Any) -> Any:
    return word if isinstance(word, Says) else None


@pytest.mark.parametrize("setting", VALUES)
@pytest.mark.parametrize(("kind", "source"), CASES)
def test_a_setting_is_read_by_its_kind_or_refused(kind: str, source: str, setting: str) -> None:
    """`queries` in a drift job was dropped; so were `batch_size` and `question` of the lab's LLaVA."""
    job = attacked(job_of(kind, source))
    check(job)
    told = job | {setting: VALUES[setting]}
    if setting in readable(kind, source):
        check(told)
        return
    with pytest.raises(ValueError, match=f"has '{setting}', which says nothing to it: .* it reads kind, set, samples"):
        check(told)


@pytest.mark.parametrize(("kind", "source"), CASES)
def test_what_a_kind_reads_is_what_it_runs_with(kind: str, source: str, tmp_path: Path) -> None:
    """The settings against `run` itself: a real job, whose fields note who asks for them."""
    told = attacked(job_of(kind, source)) | {"vlm": "lab:llava" if source == "lab" else "llava-hf/x"}
    told |= {name: VALUES[name] for name in readable(kind, source) if name in VALUES}
    asked: set[str] = set()

    class Noted(KINDS[kind]):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            asked.add(name)
            return super().__getattribute__(name)

    job = read_job("job", told, [], {"A": "lab:clip"}, {kind: Noted})
    answers = _Anything()
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoder_jobs, vlm_jobs):
            for name in [name for name, _ in inspect.getmembers(module) if _is_work(name)]:
                patch.setattr(module, name, answers)
        patch.setattr(encoder_jobs.LabelledImages, "whole", lambda self: (answers, answers))
        asked.clear()
        job.run(Subject("A", "a", {"A": "a"}, tmp_path, tmp_path))
    read = set(asked)
    assert set(job.reads()) - {"kind", "models"} <= read, set(job.reads()) - read  # those are read by the suite


def _is_work(name: str) -> bool:
    """Functions that load or measure; those that only pick settings stay what they are."""
    work = (
        "evaluate_",
        "load_",
        "check_",
        "clean_",
        "swap_",
        "chat_",
        "text_",
        "logits_",
        "part",
        "with_",
        "VlmImages",
    )
    return name.startswith(work) or name in ("_clip", "_normalization", "_image_processor", "measure", "json")


class _Anything:
    """Stands for whatever is loaded and measured."""

    def __call__(self, *words: Any, **options: Any) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        return "text" if name in ("name", "task") else self

    def __getitem__(self, item: Any) -> Any:
        return self

    def __iter__(self) -> Any:
        return iter((self, self))

    def __len__(self) -> int:
        return 0

    def __radd__(self, other: Any) -> Any:
        return other

    def __add__(self, other: str) -> str:
        return other

    def to_markdown(self) -> str:
        return "text"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"samples": -1}, "samples -1 is no whole number from 1"),
    ({"steps": -3}, "steps -3 is no whole number from 1"),
    ({"steps": 2.0}, "steps 2.0 is no whole number"),
    ({"steps": "5"}, "steps '5' is no whole number"),
    ({"steps": True}, "steps True is no whole number"),
    ({"seed": -1}, "seed -1 is no whole number from 0"),
    ({"seed": 2**32}, "seed 4294967296 is no whole number from 0 to 4294967295"),
    ({"batch_size": 0}, "batch_size 0 is no whole number from 1"),
    ({"norm": "l3"}, "norm 'l3' is unknown: pass 'linf' or 'l2'"),
    ({"norm": "l3", "eps": []}, "norm 'l3' is unknown"),
    ({"norm": ["linf"]}, "norm .'linf'. ?: give a text"),
    ({"eps": ["4_0/255"]}, "eps '4_0/255' is not a number"),
    ({"eps": ["-4/-255"]}, "eps '-4/-255' is not a number"),
    ({"eps": [True]}, "eps True is a bool"),
    ({"eps": [None]}, "eps None is a NoneType"),
    ({"eps": ["4/255", "8/510"]}, "one of them twice"),
    ({"norm": "l2", "eps": [1e30]}, "farther than black is from white"),
    ({"stop_fooled": "yes"}, "stop_fooled 'yes': give true or false"),
    ({"masking_checks": 1}, "masking_checks 1: give true or false"),
    ({"kind": "zeroshot"}, "is of kind 'zeroshot': use one of zero-shot, drift"),
    ({"kind": ["drift"]}, "is of kind .'drift'.: use one of"),
    ({"set": 5}, "set 5: give a text"),
    ({"models": []}, "models .. ?: give a list of each"),
    ({"models": ["A", "A"]}, "give a list of each, without repetition"),
    ({"root": "/no/such/folder"}, "root '/no/such/folder', and there is no such folder"),
    ({"surrogate": None}, "surrogate None: give a text"),
    ({"queries": 5, "masking_checks": False}, "has 'queries', which says nothing to it"),
    ({"surrogate": "A", "masking_checks": False}, "has 'surrogate', which says nothing to it"),
    (
        {"target_classes": 2, "attack": "apgd-ce", "masking_checks": False},
        "has 'target_classes', which says nothing to it",
    ),
    ({"steps": 5, "eps": []}, "has '[a-z_]+', which says nothing to it"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_values_that_cannot_be_are_refused_before_any_work(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as found:
        check(attacked(job_of("zero-shot", "lab")) | changes)
    assert "\n" not in str(found.value)


def test_defaults_are_for_the_jobs_that_read_them() -> None:
    check(job_of("zero-shot", "lab") | {"eps": ["4/255"]}, {"steps": 2, "seed": 1})


ATTACK = ["attack", "lab:llava", "--dataset", "lab:digits", "--output_dir", "r"]
CONVERT = ["convert", ".", "--to", "open_clip", "--output_dir", "r"]
MERGE = ["merge", "v", "e", "--output_dir", "r"]
MERGE_HERE = ["merge", "v", ".", "--output_dir", "r"]
HUB_MERGE = ["merge", "v", "e", "--push_to_hub", "--hub_model_id", "a/b"]
OPTIONS: list[tuple[list[str], str]] = [
    *(
        (["evaluate", "--suite", "lab", *words, "--output_dir", "r"], f"{words[0]} is not for --suite, .* --models")
        for words in (
            ["--eps", "1/255"],
            ["--steps", "5"],
            ["--samples", "5"],
            ["--seed", "5"],
            ["--dataset", "digits"],
        )
    ),
    (["evaluate", "x", "--models", "A=b", "--output_dir", "r"], "--models is for --suite; with an encoder go"),
    (["evaluate", "x", "--suite", "lab", "--output_dir", "r"], "--suite has its own models"),
    ([*ATTACK, "--template", "{}"], "--template is for other models"),
    ([*ATTACK, "--split", "test"], "--split is not for lab:digits"),
    ([*ATTACK, "--dataset_config", "x"], "--dataset_config is not for lab"),
    ([*ATTACK, "--victims", "A=x", "A=y"], "--victims names A twice"),
    ([*MERGE, "--private"], "private is of a new repository: give it with push_to_hub"),
    ([*MERGE, "--no-private"], "private is of a new repository"),
    ([*MERGE, "--hub_model_id", "a/b"], "hub_model_id is of a new repository: give it with push_to_hub"),
    (["merge", "v", "e"], "a merge needs an output: give output_dir, or push_to_hub and hub_model_id"),
    (["merge", "v", "e", "--push_to_hub"], "push_to_hub needs hub_model_id"),
    ([*HUB_MERGE, "--output_dir", "r"], "output_dir is of a merge into a folder: with push_to_hub leave it out"),
    ([*HUB_MERGE, "--hard_links"], "hard_links is for a merge into a folder"),
    (["merge", ".", "e", "--output_dir", "r", "--revision", "x"], "revision is of a repository, and '.' lies here"),
    ([*MERGE_HERE, "--encoder_revision", "x"], "encoder_revision is of a repository, and '.' lies here"),
    (
        ["merge", "v", "encoder", "--output_dir", "r", "--base", "x"],
        "--base is for weights of open_clip, and 'encoder' says its own",
    ),
    ([*CONVERT, "--revision", "x"], "--revision is of a repository, and '.'"),
    ([*CONVERT, "--activation", "gelu"], "--activation is for --to transformers"),
    (["evaluate", "--suite", "lab", "--split", "x", "--output_dir", "r"], "--split is not for --suite"),
    (["evaluate", "lab:fare-4", "--split", "x", "--output_dir", "r"], "split is for images of your own"),
    (["card", ".", "--revision", "x"], "--revision is of a repository, and '.' lies here"),
    (["push", ".", "a/b", "--create_pr", "--tag", "x"], "tag 'x' cannot be put on a pull request"),
]


@pytest.mark.parametrize(("words", "sentence"), OPTIONS, ids=lambda value: " ".join(value)[:60] if value else "")
def test_options_that_would_be_ignored_are_refused(
    words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("encoder").mkdir()
    Path("encoder/config.json").write_text("{}")
    with pytest.raises(SystemExit, match=f"^fare-hf: error: .*{sentence}"):
        cli.main(words)
    assert not Path("r").exists()


def options_of(command: str) -> set[str]:
    parser = cli.build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {option for a in action.choices[command]._actions for option in a.option_strings if option != "-h"}


def test_no_option_is_new_without_a_look_at_what_ignores_it() -> None:
    """Whoever adds an option says here which others silence it (`OPTIONS` above), or that none does."""
    assert {command: options_of(command) - {"--help"} for command in cli.COMMANDS} == {
        "app": {"--vlm", "--encoder", "--template", "--host", "--port"},
        "attack": {f"--{name}" for name in (
            "dataset encoder victims targets question template split dataset_config eps max_new_tokens output_dir "
            "steps samples batch_size save_every seed").split()},
        "card": {"--report", "--report_model", "--license", "--revision", "--base_model"},
        "completion": set(),
        "convert": {"--to", "--output_dir", "--base", "--activation", "--visual_only", "--revision"},
        "env": {"--json"},
        "evaluate": {f"--{name}" for name in (
            "suite models dataset split dataset_config image_column label_column class_names templates template "
            "against text_model eps steps samples batch_size seed json output_dir vlm task caption_column "
                "question_column answer_column prompt targets max_new_tokens probe train_split").split()},
        "merge": {f"--{name}" for name in (
            "output_dir push_to_hub hub_model_id hard_links private no-private revision "
            "encoder_revision base").split()},
        "push": {f"--{name}" for name in (
            "private no-private revision create_pr tag commit_message with_text_encoder").split()},
        "quickstart": {"--output_dir", "--max_steps", "--minutes"},
        "swap": {"--output_dir"},
    }  # fmt: skip


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_ctrl_c_and_bugs_of_every_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = {
        "app": [],
        "attack": ["lab:llava", "--dataset", "lab:digits", "--output_dir", str(tmp_path / "r")],
        "evaluate": ["x", "--output_dir", str(tmp_path / "r")],
        "merge": ["v", "e", "--output_dir", str(tmp_path / "r")],
        "push": [".", "a/b"],
        "swap": ["v", "e", "--output_dir", str(tmp_path / "r")],
        "convert": ["s", "--output_dir", str(tmp_path / "r"), "--to", "open_clip"],
        "card": ["s"],
        "completion": ["bash"],
        "env": [],
        "quickstart": ["--output_dir", str(tmp_path / "r")],
    }[command]

    def raising(error: BaseException) -> Callable[[argparse.Namespace], None]:
        def run(args: argparse.Namespace) -> None:
            raise error

        return run

    monkeypatch.setattr(cli.COMMANDS[command], "run", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as end:
        cli.main([command, *words])
    assert end.value.code == 130
    assert f"fare-hf: interrupted: {cli.COMMANDS[command].GOING_ON}." in capsys.readouterr().err
    monkeypatch.setattr(cli.COMMANDS[command], "run", raising(KeyError("x")))
    with pytest.raises(SystemExit, match="fare-hf: error: KeyError: 'x' .*FARE_HF_TRACEBACK=1"):
        cli.main([command, *words])


def test_two_suites_in_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first runs: here from inside of a job of the first."""
    from fare_hf.evaluation import Row
    from fare_hf.suites.suite import run_suite

    class Nested(Job):
        kind = "k"

        def run(self, subject: Subject) -> list[Row]:
            with pytest.raises(ValueError, match="a suite that is still running writes to"):
                run_suite(suite, tmp_path / "out", progress=False)
            names = {"model": subject.model, "task": "t", "dataset": self.set, "metric": "m"}
            attack = {"name": "a", "steps": 1, "restarts": 1, "seed": 0}
            threat = ThreatModel("linf", "1/256")
            return [Row(value=0.5, ci=(0, 1), n=2, threat_model=threat, attack=attack, batch_size=4, **names)]

    content = {"name": "s", "models": {"A": "a"}, "jobs": [{"kind": "k", "set": "x"}]}
    suite = read_suite(content, kinds={"k": Nested})
    report = run_suite(suite, tmp_path / "out", progress=False)
    page = (tmp_path / "out" / "report.md").read_text()
    assert report.rows[0].threat_model == ThreatModel("linf", "1/256") and "linf 1/256" in page
    assert "Batches of 4 images." in page and not (tmp_path / "out" / ".lock").exists()
