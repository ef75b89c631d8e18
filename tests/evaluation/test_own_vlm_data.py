"""A vision-language model on images of one's own: in Python, by the command; what cannot be measured."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from helpers.tiny_llava import encoder, images, llava, processor
from helpers.vlm_folders import SAID, TEMPLATE, command, write_captions, write_images, write_llava
from PIL import Image

from fare_hf import RobustnessReport, evaluate, evaluate_vlm, evaluate_vlm_on_data, swap_vision_tower
from fare_hf.attacks import ThreatModel
from fare_hf.cli import evaluate_vlm as options_of_the_command
from fare_hf.cli import main as cli
from fare_hf.data.pixels import to_pil
from fare_hf.evaluation import paired_difference
from fare_hf.evaluation.vlm import own_data
from fare_hf.evaluation.vlm.engine import VlmEngine
from fare_hf.evaluation.vlm.forced_strings import read_targets
from fare_hf.evaluation.vlm.metrics import Cider
from fare_hf.lab import encoder_folder, load_llava, load_test_set, measure
from fare_hf.lab.models import load_vlm_and_processor
from fare_hf.vlm import generate_text

QUESTIONS = [{"question": f"what {word} ?", "answer": answer} for word, answer in (("red", "cat"), ("blue", "dog"))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA, two encoders for it, and images with every kind of words."""
    place = tmp_path_factory.mktemp("own")
    write_llava(place / "llava")
    for seed, name in enumerate(("robust", "other"), 5):
        encoder(seed=seed).save_pretrained(place / name)
    write_captions(place / "photos", 4)
    write_images(place / "asked", QUESTIONS)
    write_images(place / "yes-no", [{"question": "a cat ?", "answer": word} for word in ("yes", "No.")])
    write_images(place / "plain", [{}, {}])
    (place / "plain" / "metadata.jsonl").unlink()
    (place / "strings.txt").write_text("# one\nred dog\n")
    return place


def measured(place: Path, dataset: str, task: str, **options: Any) -> Any:
    asked = {"template": TEMPLATE, "steps": 2, "batch_size": 2, "eps": ["4/255"]} | options
    return evaluate_vlm_on_data(place / "llava", place / dataset, task, **asked)


def test_the_command_knows_the_tasks_of_the_library() -> None:
    assert options_of_the_command.TASKS == own_data.TASKS


def test_an_encoder_is_compared_with_the_own_tower_as_by_the_longer_way(place: Path) -> None:
    found = measured(place, "photos", "captions", encoder=place / "robust", seed=3)
    assert [row.model for row in found.rows] == ["llava"] * 2 + ["llava + robust"] * 2
    assert "Difference to llava in points" in found.report().to_markdown()
    vlm, processor = load_vlm_and_processor(str(place / "llava"))
    swap_vision_tower(vlm, str(place / "robust"), processor)
    captions = [[SAID[number % 3], SAID[(number + 1) % 3]] for number in range(4)]
    pictures = torch.stack([torch.tensor(list(p.getdata())).view(32, 32, 3) for p in to_pil(images(4))])
    pixels = pictures.permute(0, 3, 1, 2).float().div(255)
    prompt = TEMPLATE.replace("{}", "Provide a short caption for this image.")
    names: dict[str, Any] = {"model": "llava + robust", "task": "captions", "dataset": "photos", "batch_size": 2}
    names |= {"threat_models": [ThreatModel("linf", "4/255")], "steps": 2, "seed": 3}
    longer = evaluate_vlm(vlm, processor, pixels, prompt, Cider(captions), **names)
    assert found.outcomes[2:] == longer.outcomes
    assert [(row.value, row.ci, row.attack) for row in found.rows[2:]] == [
        (row.value, row.ci, row.attack) for row in longer.rows
    ]
    change, _ = paired_difference(found.rows[0], found.rows[2])
    assert change == pytest.approx(found.rows[2].value - found.rows[0].value, abs=1e-9)


def test_questions_and_strings(place: Path, tmp_path: Path) -> None:
    asked = measured(place, "asked", "vqa", prompt="{} in a word")
    assert [(row.task, row.metric, row.n) for row in asked.rows] == [("vqa", "VQA accuracy", 2)] * 2
    yes_no = measured(place, "yes-no", "pope", samples=2)
    assert [(row.task, row.metric) for row in yes_no.rows] == [("pope", "F1")] * 2 + [("pope", "accuracy")] * 2
    forced = measured(place, "plain", "targeted", targets=["red dog", "face"], eps=["128/255"], steps=20)
    assert [row.dataset for row in forced.rows] == ["plain, 'red dog'"] * 2 + ["plain, 'face'"] * 2
    assert forced.rows[1].value > 0
    path = forced.report().save(tmp_path)
    assert RobustnessReport.load(path).rows == forced.rows
    scored = asked.report().save(tmp_path / "scored")
    assert RobustnessReport.load(scored).rows == asked.rows and asked.rows[0].scores is not None


def test_the_command_prints_json_alone_and_goes_on(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = command(place / "llava", place / "photos", "captions", "--against", str(place / "other"), "--json")
    words = [words[0], str(place / "robust"), *words[1:], "--output_dir", str(tmp_path / "report")]

    def interrupted(*words: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(VlmEngine, "attack", interrupted)
        cli.main(words)
    assert (tmp_path / "report" / "states" / "tower-0" / "clean.json").is_file()
    assert "the same command goes on" in capfd.readouterr().err
    asked: list[list[int]] = []
    ask = VlmEngine._clean_answers
    monkeypatch.setattr(VlmEngine, "_clean_answers", lambda self, batch: asked.append(batch) or ask(self, batch))
    cli.main(words)
    assert len(asked) == 2  # of the second tower alone
    text = (tmp_path / "report" / "report.json").read_text()
    assert capfd.readouterr().out == text and not (tmp_path / "report" / "states").exists()
    assert {row["model"] for row in json.loads(text)["rows"]} == {"llava + other", "llava + robust"}


def test_the_lab_as_its_figures_are_measured_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluate", "lab:fare-4", "--vlm", "lab:llava", "--dataset", "lab:digits", "--task", "targeted"]
    words += ["--samples", "2", "--steps", "2", "--eps", "4/255", "--output_dir", str(tmp_path)]

    def interrupted(*words: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("fare_hf.evaluation.vlm.engine.apgd", interrupted)
        cli.main(words)
    asked: list[list[int]] = []
    ask = VlmEngine._clean_answers
    monkeypatch.setattr(VlmEngine, "_clean_answers", lambda self, batch: asked.append(batch) or ask(self, batch))
    cli.main(words)
    assert len(asked) == 1  # of the second tower alone
    rows = RobustnessReport.load(tmp_path).rows
    assert [(row.model, row.dataset) for row in rows] == [("LLaVA + CLIP", "digits")] * 2 + [
        ("LLaVA + fare-4", "digits")
    ] * 2


def test_captions_of_any_set_of_the_lab(tmp_path: Path) -> None:
    words = ["evaluate", "--vlm", "lab:llava", "--dataset", "lab:digits", "--task", "captions", "--samples", "12"]
    cli.main([*words, "--steps", "2", "--eps", "4/255", "--output_dir", str(tmp_path)])
    clean, attacked = RobustnessReport.load(tmp_path).rows
    assert (clean.task, clean.dataset, clean.n) == ("captions", "digits", 12)
    test = load_test_set("digits").first(12)
    said = generate_text(*load_llava(), test.pixels, measure.PROMPT, max_new_tokens=14)
    right = [test.class_names[label] in text.split() for label, text in zip(test.labels, said, strict=True)]
    assert clean.outcomes == "".join("1" if each else "0" for each in right) and attacked.value < clean.value


def saved(columns: dict[str, Any]) -> Callable[[Path], None]:
    """Two images with columns, as `save_to_disk` writes them."""

    def save(folder: Path) -> None:
        rows = datasets.Dataset.from_dict({"image": to_pil(images(2)), **columns})
        rows.cast_column("image", datasets.Image()).save_to_disk(folder / "saved")

    return save


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("plain", "captions", {}, "no column 'caption'; its columns are image: name the caption with caption_column"),
    ("asked", "captions", {}, "its columns are image, question, answer: name the caption with caption_column"),
    ("photos", "vqa", {}, "no column 'question'; .*with question_column"),
    ("photos", "captions", {"caption_column": "text"}, "caption_column 'text' is not in .*photos'; its columns are"),
    ("photos", "captions", {"answer_column": "text"}, "answer_column says nothing to the task 'captions'"),
    ("asked", "pope", {}, "has the answer 'cat' in 'answer': the task 'pope' wants yes or no"),
    ("asked", "vqa", {"prompt": "what?"}, "prompt 'what\\?' has no {} for the question"),
    (
        "photos",
        "captions",
        {"template": None},
        "LlavaProcessor has no chat template: give template .--template., such as",
    ),
    ("photos", "captions", {"split": "night"}, "night"),
    ("photos", "caption", {}, "no task 'caption': use one of captions, vqa, pope, targeted"),
    ("plain", "targeted", {}, "forces strings by an attack: give targets"),
    ("plain", "targeted", {"targets": ["a"], "eps": []}, "give targets, and eps"),
    ("plain", "targeted", {"targets": ["a", "b", "a"]}, "targets names 'a' twice: give it once"),
    ("photos", "captions", {"targets": ["a"]}, "targets are for the task 'targeted', not for 'captions'"),
    ("photos", "captions", {"eps": [4]}, "did you mean 4/255"),
    ("photos", "captions", {"vlm": "robust"}, "is a 'clip_vision_model' model, not a vision-language model: name one"),
    ("photos", "captions", {"encoder": "llava"}, "is a vision-language model .llava., and an encoder is wanted"),
    ("photos", "captions", {"encoder": "nowhere"}, "there is nothing at .*nowhere': check the path"),
    ("photos", "captions", {"encoder": "robust", "against": "robust"}, "is compared with itself"),
    ("photos", "captions", {"against": "robust"}, "is what an encoder is compared with: give the encoder too"),
    ("COCO", "vqa", {}, "COCO is a set of the task 'captions', not 'vqa'"),
    ("COCO", "captions", {"split": "val"}, "split is for images of your own: COCO has its own"),
]


@pytest.mark.parametrize(("dataset", "task", "options", "sentence"), REFUSED)
def test_what_cannot_be_measured_is_one_sentence_before_weights_are_loaded(
    dataset: str, task: str, options: dict[str, Any], sentence: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fare_hf.evaluation.vlm.evaluate.load_vlm", pytest.fail)
    paths = {name: place / options[name] for name in ("vlm", "encoder", "against") if name in options}
    told = {"vlm": place / "llava", "template": TEMPLATE} | options | paths
    images_there = place / dataset if dataset != "COCO" else dataset
    with pytest.raises(ValueError, match=sentence) as found:
        evaluate_vlm_on_data(dataset=images_there, task=task, **told)
    assert "\n" not in str(found.value)


NO_TOWER = "is a SmolVLMVisionTransformer, the vision tower .*needs a CLIPVisionModel"


@pytest.mark.parametrize("dataset", ["lab:captions", "photos"])
def test_an_encoder_that_does_not_fit_a_model_of_the_lab_is_told_before_anything_is_measured(
    dataset: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for engine in ("captions", "ensemble"):
        monkeypatch.setattr(f"fare_hf.evaluation.vlm.{engine}.VlmEngine", pytest.fail)
    given = dataset if dataset.startswith("lab:") else str(place / dataset)
    words = ["evaluate", "lab:smolvlm-4", "--vlm", "lab:llava", "--dataset", given, "--task", "captions"]
    with pytest.raises(SystemExit, match=NO_TOWER):
        cli.main([*words, "--output_dir", str(tmp_path / "out")])


def test_an_encoder_that_cannot_be_read_is_told_before_anything_is_measured(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of a training in the place of its encoder, and a file that was cut off."""
    for engine in ("captions", "ensemble"):
        monkeypatch.setattr(f"fare_hf.evaluation.vlm.{engine}.VlmEngine", pytest.fail)
    encoder(seed=5).save_pretrained(tmp_path / "run" / "encoder")
    with pytest.raises(ValueError, match="run' holds .*: name '.*run/encoder'"):
        measured(place, "photos", "captions", encoder=tmp_path / "run")
    weights = tmp_path / "run" / "encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(Exception, match="incomplete|not fully covered"):
        measured(place, "photos", "captions", encoder=tmp_path / "run" / "encoder")


def test_rows_are_called_by_the_model_in_memory(place: Path) -> None:
    for vlm, name in ((load_vlm_and_processor("lab:smolvlm"), "SmolVLM"), ((llava(), processor()), "Llava")):
        found = evaluate_vlm_on_data(vlm, place / "photos", "captions", eps=[], template=TEMPLATE)
        assert [row.model for row in found.rows] == [name]


def test_answers_that_are_lists_in_some_rows_alone(place: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "mixed", [{"question": "a ?", "answer": said} for said in (["b"], "c")])
    with pytest.raises(ValueError, match="has a column with a text in some rows and a list in others .*make all of"):
        evaluate_vlm_on_data(place / "llava", tmp_path / "mixed", "vqa", template=TEMPLATE)


def test_strings_of_a_file_are_read_without_its_mark_and_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "strings.txt"
    file.write_bytes(b"\xef\xbb\xbfa photo of a cat\n")
    assert read_targets(file) == ["a photo of a cat"]
    file.write_bytes("un café".encode("latin-1"))
    with pytest.raises(ValueError, match="strings.txt' is no text in UTF-8 .*: save it in that encoding"):
        read_targets(file)
    file.write_text("a cat\na dog\na cat\n")
    with pytest.raises(ValueError, match="strings.txt' holds 'a cat' twice: write each string once"):
        read_targets(file)


@pytest.mark.parametrize("dataset", ["photos", "lab:captions"])
def test_towers_of_one_name_have_rows_of_their_own(
    dataset: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training writes its encoder to a folder called `encoder`."""
    monkeypatch.chdir(tmp_path)
    for run, name in (("fare4", "fare-4"), ("tecoa4", "tecoa-4")):
        shutil.copytree(encoder_folder(name), Path(run) / "encoder")
    given = dataset if dataset.startswith("lab:") else str(place / dataset)
    words = ["fare4/encoder", "--against", "tecoa4/encoder", "--vlm", "lab:llava", "--dataset", given]
    cli.main(["evaluate", *words, "--task", "captions", "--samples", "2", "--steps", "1", "--output_dir", "out"])
    rows = RobustnessReport.load("out").rows
    said = [json.loads(line) for line in Path("out", "answers.jsonl").read_text().splitlines()]
    assert len(said) == 4 and {line["model"] for line in said} == {row.model for row in rows}
    assert {row.model.split(" + ")[1] for row in rows} == {"fare4/encoder", "tecoa4/encoder"}


@pytest.mark.parametrize(("task", "dataset"), [("vqa", "yes-no-digits"), ("captions", "scenes")])
def test_the_lab_asks_about_digits_and_scenes(task: str, dataset: str, tmp_path: Path) -> None:
    words = ["evaluate", "--vlm", "lab:llava", "--dataset", f"lab:{dataset}", "--task", task, "--samples", "3"]
    cli.main([*words, "--eps", "2/255", "--steps", "1", "--output_dir", str(tmp_path / "out")])
    clean, attacked = RobustnessReport.load(tmp_path / "out").rows
    assert (clean.task, clean.dataset, clean.n) == (task, dataset, 3) and str(attacked.threat_model) == "linf 2/255"
    assert clean.attack is None and attacked.attack is not None and attacked.attack["steps"] == 1
    said = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["dataset"] for line in said] == [dataset] * 3


def test_a_line_break_of_a_template_is_one_however_it_is_typed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell hands `"<image>\\n{}"` over with a backslash, which a model would read; in Python it is refused."""
    asked: list[str] = []
    inner = VlmEngine.ask

    def ask(engine: VlmEngine, pixels: torch.Tensor, batch: list[int]) -> list[str]:
        asked.extend(engine.prompts)
        return inner(engine, pixels, batch)

    monkeypatch.setattr(VlmEngine, "ask", ask)
    words = ["evaluate", "--vlm", str(place / "llava"), "--dataset", str(place / "photos"), "--task", "captions"]
    words += ["--template", r"user : <image>\n{} assistant :", "--samples", "2", "--eps", "4/255", "--steps", "1"]
    cli.main([*words, "--output_dir", str(tmp_path / "out")])
    assert asked and all("<image>\n" in prompt and "\\n" not in prompt for prompt in asked)
    with pytest.raises(ValueError, match="holds a backslash and an n: write a line break"):
        measured(place, "photos", "captions", template=r"user : <image>\n{} assistant :")


def test_an_encoder_that_an_option_took_for_its_value_is_named(place: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--vlm", str(place / "llava"), "--task", "captions", "--output_dir", str(tmp_path / "out")]
    for more, sentence in (
        (["--dataset", "photos", "lab:fare-4"], "given photos, lab:fare-4: if one is the encoder, name it before the"),
        (["--dataset", "photos", "--eps", "4/255", "lab:fare-4"], "If 'lab:fare-4' is the encoder, name it before"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            cli.main([*words, *more])


def test_names_of_the_lab_are_for_the_commands(place: Path) -> None:
    vlm, processor = load_vlm_and_processor(str(place / "llava"))
    calls: list[Callable[[], Any]] = [
        lambda: evaluate("lab:fare-4", place / "photos"),
        lambda: evaluate(encoder_folder("fare-4"), place / "photos", text_model="lab:clip"),
        lambda: evaluate(encoder_folder("clip"), "lab:digits"),
        lambda: evaluate_vlm_on_data("lab:llava", place / "photos", "captions"),
        lambda: evaluate_vlm_on_data(place / "llava", place / "photos", "captions", encoder="lab:fare-4"),
        lambda: swap_vision_tower(vlm, "lab:fare-4", processor),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="^'lab:[^']*' is a name for the commands: .*fare_hf.lab.encoder_folder"):
            call()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"caption": ["a", "b"], "text": ["c", "d"]}, "several columns that may be the caption .caption, text."),
        ({"caption": ["a", None]}, "sample 1 of .* has no 'caption' .None.: leave such images out"),
        ({"caption": [["a"], []]}, "sample 1 of .* has no 'caption'"),
        ({"caption": [3, 4]}, "sample 0 of .* has 3 in 'caption', no text and no list of texts: name another column"),
        ({"caption": [[1], [2]]}, "sample 0 of .* has .1. in 'caption', no text and no list of texts"),
    ],
)
def test_captions_that_are_no_captions(columns: dict[str, Any], sentence: str, place: Path, tmp_path: Path) -> None:
    saved(columns)(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        evaluate_vlm_on_data(place / "llava", tmp_path / "saved", "captions", template=TEMPLATE)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["ENC", "--dataset", "x", "--task", "captions"],
            "--task is for a vision-language model: give that with --vlm",
        ),
        (["--vlm", "VLM", "--task", "captions"], "--vlm needs one --dataset"),
        (["--vlm", "VLM", "--dataset", "x"], "and the --task: captions, vqa, pope or targeted"),
        (
            ["--vlm", "VLM", "--dataset", "x", "--task", "vqa", "--class_names", "a"],
            "--class_names is for the classes",
        ),
        (["--vlm", "VLM", "--dataset", "x", "--task", "targeted"], "needs --targets, a file with one string a line"),
        (
            ["--vlm", "VLM", "--dataset", "x", "--task", "vqa", "--targets", "STR"],
            "--targets is for the task targeted",
        ),
        (
            ["--vlm", "VLM", "--dataset", "lab:digits", "--task", "targeted"],
            "for --vlm lab:llava and lab:smolvlm alone",
        ),
        (["--vlm", "lab:llava", "--dataset", "lab:digits", "--task", "vqa"], "use one of lab:yes-no"),
        (
            ["--vlm", "lab:llava", "--dataset", "lab:captions", "--task", "captions", "--prompt", "a"],
            "--prompt is for",
        ),
        (["--vlm", "VLM", "--suite", "lab"], "--vlm is not for --suite"),
    ],
)
def test_the_command_refuses_what_it_would_drop(words: list[str], sentence: str, place: Path, tmp_path: Path) -> None:
    there = {"VLM": "llava", "ENC": "robust", "STR": "strings.txt"}
    words = [str(place / there[word]) if word in there else word for word in words]
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", *words, "--output_dir", str(tmp_path / "out")])
    assert re.search(sentence, str(end.value)) and "\n" not in str(end.value)


def test_a_hub_like_set_without_paths(place: Path, tmp_path: Path) -> None:
    """Answers as a column of classes, pictures without files, a split that has another name."""
    answers = datasets.Features({"image": datasets.Image(), "question": datasets.Value("string")})
    answers["label"] = datasets.ClassLabel(names=["no", "yes"])
    rows = {"image": [Image.new("RGB", (40, 36), (9, 99, 9))] * 2, "question": ["a cat ?"] * 2, "label": [1, 0]}
    datasets.DatasetDict({"all": datasets.Dataset.from_dict(rows, answers)}).save_to_disk(tmp_path / "hub")
    found = evaluate_vlm_on_data(place / "llava", tmp_path / "hub", "pope", template=TEMPLATE, eps=[])
    assert [row.n for row in found.rows] == [2, 2] and found.outcomes[0] == found.outcomes[1]
