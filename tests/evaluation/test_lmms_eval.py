"""lmms-eval's own command line on a swapped LLaVA, with a task made here; and who imports lmms-eval: nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from helpers.environments import environment
from helpers.paths import ROOT
from helpers.tiny_llava import encoder, images, llava, processor

from fare_hf.data.pixels import to_pil
from fare_hf.vlm import swap_vision_tower

# What lmms-eval's imports ask for when it runs a task without audio or video; its wheel alone, as the whole list holds
# a CUDA build of torchvision.
PACKAGES = """lmms_eval==0.7.3 aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 attrs==26.1.0 certifi chardet
    charset-normalizer colorama==0.4.6 DataProperty==1.1.1 evaluate==0.4.6 frozenlist==1.8.0 loguru==0.7.3 lxml==6.1.3
    mbstrdecoder==1.1.5 multidict==7.2.1 pathvalidate==3.3.1 portalocker==4.4.2 propcache==0.5.4 pytablewriter==1.2.1
    pytz requests==2.34.2 sacrebleu==2.6.0 six tabledata==1.3.5 tabulate==0.10.0 tcolorpy==0.1.7 tenacity==9.2.1
    typepy==1.3.5 urllib3==2.8.0 yarl==1.25.1""".split()
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
QUESTIONS = ("describe the image", "a red cat and a dog", "describe the bird of the image in short words", "", "face")
TASK = """
dataset_path: json
dataset_kwargs: {data_files: {test: PLACE/documents.json}}
task: tiny_words
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_words_utils.pictures
doc_to_text: !function tiny_words_utils.question
doc_to_target: answer
generation_kwargs: {max_new_tokens: 4, temperature: 0, until: ["."]}
process_results: !function tiny_words_utils.results
metric_list: [{metric: named, aggregation: mean, higher_is_better: true}]
"""
UTILS = """
from PIL import Image

def pictures(doc):
    return [Image.open(doc["image"]).convert("RGB")] if doc["image"] else []

def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def results(doc, answers):
    return {"named": float(doc["answer"] in answers[0])}
"""


def test_nothing_but_the_plugin_imports_lmms_eval() -> None:
    users = [path.name for path in (ROOT / "fare_hf").rglob("*.py") if "lmms_eval" in path.read_text()]
    assert users == ["lmms_eval.py"]
    code = "import sys, fare_hf.cli, fare_hf.suites, fare_hf.evaluation; print('lmms_eval' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_entry_point_names_the_plugin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"fare_llava": "fare_hf.evaluation.lmms_eval:MANIFEST"}


@pytest.fixture(scope="module")
def python() -> Path:
    """An environment with lmms-eval, and with this package installed as a user installs it."""
    return environment("lmms-eval", [*PACKAGES, "-e", str(ROOT)], dependencies=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with a chat template, an encoder, and a task: four questions about pictures and one without."""
    place = tmp_path_factory.mktemp("lmms")
    made = processor()
    made.chat_template = TEMPLATE
    made.save_pretrained(place / "llava")
    llava().save_pretrained(place / "llava")
    encoder(seed=5).save_pretrained(place / "encoder")
    (place / "tasks").mkdir()
    documents = []
    for number, (picture, question) in enumerate(zip(to_pil(images(5)), QUESTIONS, strict=True)):
        picture.resize((40, 36 + number)).save(place / f"{number}.png")
        file = "" if number == 4 else str(place / f"{number}.png")
        documents.append({"image": file, "question": question, "answer": "a"})
    (place / "documents.json").write_text(json.dumps(documents))
    (place / "tasks" / "tiny_words.yaml").write_text(TASK.replace("PLACE", str(place)))
    (place / "tasks" / "tiny_words_utils.py").write_text(UTILS)
    return place


def answers(python: Path, place: Path, model_args: str, *words: str, launch: tuple[str, ...] = ()) -> list[str]:
    """What the model said, from the samples that lmms-eval logged."""
    out = place / f"out{len(list(place.glob('out*')))}"
    command = [str(python), "-m", *launch, "lmms_eval", "--model", "fare_llava", "--model_args", model_args, *words]
    command += ["--tasks", "tiny_words", "--include_path", str(place / "tasks"), "--log_samples", "--output_path", out]
    found = subprocess.run(command, capture_output=True, text=True, env=offline(place))
    assert found.returncode == 0, found.stderr[-3000:]
    assert "|tiny_words|" in found.stdout
    lines = [json.loads(line) for line in next(out.rglob("*samples*.jsonl")).read_text().splitlines()]
    return [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]


def offline(place: Path) -> dict[str, str]:
    """Nothing is downloaded, and caches are the test's own."""
    return {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "home"), "OMP_NUM_THREADS": "1"}


def expected(place: Path, swapped: bool) -> list[str]:
    """The same, by the processor and `generate`, question by question."""
    model, made, said = llava(), processor(), []
    if swapped:
        swap_vision_tower(model, str(place / "encoder"), made)
    for number, question in enumerate(QUESTIONS):
        pictures = [] if number == 4 else to_pil(images(5)[number : number + 1])
        pictures = [picture.resize((40, 36 + number)) for picture in pictures]
        prompt = f"user : {'<image> ' if pictures else ''}{question} assistant :"
        inputs = made(text=prompt, images=pictures or None, return_tensors="pt")
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
        text = made.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        said.append(text.split(".")[0].strip())
    return said


@pytest.mark.slow
def test_the_command_line_of_lmms_eval_runs_a_task_on_the_swapped_model(python: Path, place: Path) -> None:
    own = f"pretrained={place / 'llava'}"
    swapped = f"{own},vision_tower={place / 'encoder'}"
    one_by_one = answers(python, place, swapped)
    assert one_by_one == expected(place, swapped=True)
    assert answers(python, place, swapped, "--batch_size", "3") == one_by_one
    assert answers(python, place, own, "--batch_size", "2") == expected(place, swapped=False) != one_by_one
    launch = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1 --mixed_precision no"
    words = (*launch.split(), "--dynamo_backend", "no", "--main_process_port", "0", "-m")
    assert answers(python, place, swapped, "--batch_size", "2", launch=words) == one_by_one


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_args", "words", "sentence"),
    [
        ("pretrained=PLACE/bare", (), "has no chat template: add chat_template=FILE to --model_args"),
        ("pretrained=PLACE/llava", ("--batch_size", "auto"), "batch_size 'auto' is no whole number"),
        ("pretrained=PLACE/llava,vision_towers=x", (), "unexpected keyword argument 'vision_towers'"),
        ("pretrained=PLACE/llava,vision_tower=nowhere", (), "'nowhere'"),
    ],
)
def test_wrong_settings_are_named(
    model_args: str, words: tuple[str, ...], sentence: str, python: Path, place: Path
) -> None:
    if not (place / "bare").exists():
        llava().save_pretrained(place / "bare")
        processor().save_pretrained(place / "bare")
    command = [str(python), "-m", "lmms_eval", "--model", "fare_llava", "--tasks", "tiny_words", *words]
    command += ["--include_path", str(place / "tasks"), "--model_args", model_args.replace("PLACE", str(place))]
    found = subprocess.run(command, capture_output=True, text=True, env=offline(place))
    assert sentence in found.stderr + found.stdout


@pytest.mark.slow
def test_the_example_measures_both_towers(python: Path, tmp_path: Path) -> None:
    example = ROOT / "examples" / "lmms_eval_lab.py"
    command = [python, str(example), "--images", "8", "--output_dir", str(tmp_path / "lab")]
    found = subprocess.run(command, capture_output=True, text=True, env=offline(tmp_path))
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count("|lab_captions|none") == 2
