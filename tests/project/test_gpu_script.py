"""`examples/benchmarks/gpu.py`: what it downloads, how it goes on, and every measurement in its smallest form."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import runpy
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.paths import EXAMPLES, ROOT
from transformers import CLIPVisionConfig

from fare_hf.encoders.flops import ASSUMED_MFU
from fare_hf.encoders.memory import count_parameters
from fare_hf.training.estimate import SHAPES

BENCHMARKS = EXAMPLES / "benchmarks"
GPU = SimpleNamespace(**runpy.run_path(str(BENCHMARKS / "gpu.py")))
NAMES = [step.name for step in GPU.STEPS]
LAUNCHED = {"quickstart", "fsdp", "tests"}
"""Steps that start processes themselves; they and `compiled` run in the slow test."""


@pytest.fixture
def own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scripts change in their process is put back."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "no")


def numbers(found: dict[str, Any]) -> dict[str, float]:
    """The figures of a result, of which there is one at least, and all are finite."""
    figures = dict(GPU.figures(found))
    assert figures and all(map(math.isfinite, figures.values())), figures
    assert found["environment"]["versions"]["torch"] == str(torch.__version__) and found["environment"]["seed"] == 0
    return figures


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*LAUNCHED, "compiled")])
def test_each_measurement_in_its_smallest_form(
    name: str, own_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, output = GPU.STEPS[NAMES.index(name)], tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", [step.script, *step.tiny.split(), "--output", str(output)])
    runpy.run_path(str(BENCHMARKS / step.script), run_name="__main__")
    found = json.loads(output.read_text())
    figures = numbers(found)
    if name in ("step", "vlm"):
        assert found["kernels"]["milliseconds"] > 0 and any("mm" in row[2] for row in found["kernels"]["largest"])
    wanted = {
        "step": {"speed_up", "speed_up_over_tf32", "trainer_overhead", "images_per_second.trainer"},
        "memory": {"peak_gib", "foretold_gib", "largest_batch", "tried.4"},
        "attack": {"speed_up", "loss_ratio"},
        "vlm": {"eager.factor.1", "eager.image_steps_per_second.2", "compiled.factor.2", "compiled.peak_gib.2"},
        "features": {"factor.2", "images_per_second.1", "peak_gib.2", "tera_flop_an_image", "features"},
        "zero-shot": {"images_per_second.fp32", "speed_up.tf32", "speed_up.bf16"},
    }[name]
    assert wanted <= set(figures)
    if name == "memory":
        assert figures["largest_batch"] == 4
    if name == "attack":
        assert figures["loss_ratio"] == pytest.approx(1, abs=0.5)
    if name == "features":
        assert (figures["features"], figures["width"]) == (16, 48)


def test_the_options_of_every_step_are_known(own_settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of the sizes that are run on a GPU alone."""
    parsed: list[argparse.Namespace] = []

    class Parsed(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        parsed.append(real(parser, *given))
        raise Parsed

    real = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for step in GPU.STEPS:
        for words in (step.words, step.tiny):
            monkeypatch.setattr(sys, "argv", [step.script, *words.split(), "--output", "found.json"])
            with pytest.raises(Parsed):
                runpy.run_path(str(BENCHMARKS / step.script), run_name="__main__")
    assert len(parsed) == 2 * len(GPU.STEPS)


def test_the_largest_batch_is_found(own_settings: None) -> None:
    largest = runpy.run_path(str(BENCHMARKS / "memory.py"))["largest"]
    for room in (3, 16, 31, 32, 47, 100, 112, 1000, 5000):
        assert largest(lambda count, room=room: count <= room, 16, 1024, 16) == min(room // 16 * 16, 1024), room


def test_a_large_llava_is_filled_without_main_memory(own_settings: None) -> None:
    """Every weight and every buffer is a number, and the buffers that no file holds are what they are elsewhere."""
    made = runpy.run_path(str(BENCHMARKS / "vlm_7b.py"))
    model, _ = made["random_llava"](True, torch.device("cpu"))
    again = type(model)(model.config)
    assert all(part.isfinite().all() and part.dtype == torch.bfloat16 for part in model.parameters())
    assert all(part.float().std() > 0 for part in model.parameters() if part.ndim > 1)
    assert dict(model.named_buffers()) and dict(model.named_buffers()).keys() == dict(again.named_buffers()).keys()
    for name, value in again.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value, rtol=0, atol=0)
    model.config.text_config.update(made["TEXT"])
    with torch.device("meta"):
        whole = type(model)._from_config(model.config, dtype=torch.bfloat16)
    assert sum(part.numel() for part in whole.model.language_model.parameters()) == pytest.approx(6.6e9, rel=0.02)


def test_the_tower_of_a_large_qwen_has_its_size(own_settings: None) -> None:
    """That of Qwen2.5-VL-7B-Instruct has 676.6 million weights; a small one is filled with numbers that differ."""
    made = runpy.run_path(str(BENCHMARKS / "qwen_features.py"))
    tower, features = made["random_tower"](True, torch.device("cpu"))
    parts = [*tower.named_parameters(), *features.around.named_parameters()]
    assert all(part.float().std() > 0 for _, part in parts if part.ndim > 1)
    assert all((part == (1 if name.endswith("weight") else 0)).all() for name, part in parts if part.ndim == 1)
    with torch.device("meta"):
        whole = type(tower)(type(tower.config)(**made["VISION"]))
    assert sum(part.numel() for part in whole.parameters()) == pytest.approx(676.6e6, rel=1e-3)


@pytest.mark.parametrize("difference", [2e-3, float("nan")])
def test_other_losses_of_a_sharded_run_end_the_step(
    difference: float, own_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its result is written."""
    made, output = runpy.run_path(str(BENCHMARKS / "fsdp.py")), tmp_path / "found.json"
    runs = {flag: {"losses": [2.0, 2.0 * (1 + difference * flag), 2.0], "rates": [1.0]} for flag in (True, False)}
    monkeypatch.setitem(made["main"].__globals__, "start", lambda args, sharded: runs[sharded])
    monkeypatch.setattr(sys, "argv", ["fsdp.py", "--output", str(output)])
    with pytest.raises(SystemExit, match="losses differ by"):
        made["main"]()
    assert json.loads(output.read_text())["speed_ratio"] == 1.0


STEPS = {
    "good": 'pathlib.Path(sys.argv[-1]).write_text(\'{"speed": 1.5, "seconds": {"a": [1]}}\')',
    "fails": "pathlib.Path(sys.argv[-1]).write_text('{\"half\": 0.5}'); sys.exit(3)",
    "silent": "print('nothing is written')",
    "endless": "pathlib.Path(sys.argv[-1]).write_text('{\"early\": 2}');"
    " subprocess.Popen(['sleep', '600']); time.sleep(600)",
    "last": "pathlib.Path(sys.argv[-1]).write_text('{\"speed\": 2.5}')",
}


def test_no_step_stops_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step that fails, writes nothing or takes too long: what it wrote before is kept, and the next one runs."""
    steps = []
    for name, code in STEPS.items():
        script = tmp_path / f"{name}.py"
        script.write_text(f"import pathlib, subprocess, sys, time\n{code}\n")
        steps.append(GPU.Step(name, f"what {name} does", str(script), "--size 9", "--size 1", 3))
    args = GPU.parser().parse_args(["run", "--tiny", "--output", str(tmp_path / "out")])
    begin = time.monotonic()
    assert GPU.run(args, steps) == 1
    assert time.monotonic() - begin < 15
    found = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in STEPS}
    statuses = {name: line["status"] for name, line in found.items()}
    assert statuses.pop("fails") == "exit status 3, see fails.log"
    assert statuses == {"good": "ok", "silent": "ok", "endless": "ended after 3 s", "last": "ok"}
    assert found["endless"]["result"] == {"early": 2} and found["fails"]["result"] == {"half": 0.5}
    assert found["good"]["command"].endswith("good.py --size 1") and found["silent"]["result"] == {}
    table = (tmp_path / "out" / "summary.md").read_text()
    for name, figure in (("good", "speed 1.5"), ("fails", "half 0.5"), ("silent", "none"), ("endless", "early 2")):
        assert re.search(rf"^\| {name} \| what {name} does \| .*{figure} \|$", table, re.MULTILINE), table
    assert table in capsys.readouterr().out and "seconds.a" not in table

    args = GPU.parser().parse_args(["run", "--seconds", "0", "--only", "good", "--output", str(tmp_path / "late")])
    assert GPU.run(args, steps) == 1
    assert json.loads((tmp_path / "late" / "good.json").read_text())["status"] == "no time was left"
    args.only = "good,better"
    with pytest.raises(SystemExit, match="no step 'better'; there are good, fails"):
        GPU.run(args, steps)


def test_prepare_names_what_is_missing_and_never_torch(tmp_path: Path) -> None:
    words = [sys.executable, "-I", str(BENCHMARKS / "gpu.py"), "prepare", str(tmp_path), "--dry_run"]
    command = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
    assert command[command.index("--python-version") + 1] == "3.12"
    assert {"manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(command)
    packages = [word for word in command if "==" in word]
    assert len(packages) == len(GPU.WHEELS) and "datasets==5.2.0" in packages
    assert not any(word.startswith(("torch", "nvidia", "triton")) for word in packages)

    freeze = tmp_path / "freeze.txt"
    freeze.write_text(
        "transformers==5.17.0\nhuggingface-hub==1.33.0\ntokenizers==0.23.3\nnumpy==2.5.2\ntorch==2.11.0\n"
    )
    pinned = GPU.versions((ROOT / "constraints.txt").read_text())
    lowest = GPU.versions((ROOT / "constraints-lowest.txt").read_text())
    found = GPU.wanted(GPU.versions(freeze.read_text()), pinned, lowest)
    (pillow,) = re.findall(r"^pillow==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert {"transformers==5.23.0", "huggingface_hub==2.4.0", pillow} <= set(found)
    assert not any(word.startswith(("tokenizers", "numpy", "torch")) for word in found)
    everything = {GPU.plain(name): "9999" for name in (*GPU.WHEELS, *GPU.FURTHER)}
    assert GPU.wanted(everything, pinned, lowest) == []


def test_wheels_stand_first_on_the_path_and_replace_nothing(tmp_path: Path) -> None:
    """A wheel of a package that is there too: a step sees the wheel's, and this environment keeps its own."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(SystemExit, match="holds no wheels"):
        GPU.install(wheels, tmp_path / "site")
    with zipfile.ZipFile(wheels / "dill-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("dill.py", "VERSION = 99\n")
        wheel.writestr("dill-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: dill\nVersion: 99.0\n")
        wheel.writestr("dill-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("dill-99.0.dist-info/RECORD", "")
    script = tmp_path / "step.py"
    code = "import dill, json, pathlib, sys\npathlib.Path(sys.argv[-1]).write_text(json.dumps({'dill': dill.VERSION}))"
    script.write_text(code)
    words = ["run", "--wheels", str(wheels), "--output", str(tmp_path / "out")]
    assert GPU.run(GPU.parser().parse_args(words), [GPU.Step("dill", "its version", str(script), "", "", 60)]) == 0
    assert json.loads((tmp_path / "out" / "dill.json").read_text())["result"] == {"dill": 99}
    (wheels / "torch-2.13.0-cp312-none-any.whl").touch()
    with pytest.raises(SystemExit, match="holds torch"):
        GPU.install(wheels, tmp_path / "site")


def test_every_test_marked_gpu_is_in_the_file_that_is_run() -> None:
    own = Path(__file__).with_name("test_gpu.py")
    marked = {path for path in (ROOT / "tests").rglob("*.py") if "pytest.mark.gpu" in path.read_text()}
    assert marked == {own, Path(__file__)}


@pytest.mark.slow
def test_the_whole_script_on_a_cpu(tmp_path: Path) -> None:
    """As a user starts it: every step in its own process."""
    words = ["bash", str(BENCHMARKS / "gpu.sh"), "run", "--tiny", "--patience", "5", "--seconds", "1800"]
    settings = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*words, "--output", str(tmp_path)], capture_output=True, text=True, env=settings)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(tmp_path.glob("*.log")))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    table = (tmp_path / "summary.md").read_text()
    for step in GPU.STEPS:
        line = json.loads((tmp_path / f"{step.name}.json").read_text())
        assert line["status"] == "ok" and numbers(line["result"]), step.name
        assert f"| {step.name} | {step.what} | ok |" in table
    assert "Machine: system Linux" in table and f"torch {torch.__version__}" in table


def test_the_figures_of_the_pages_are_those_of_the_results() -> None:
    found = {path.stem: json.loads(path.read_text()) for path in (BENCHMARKS / "results" / "h100").glob("*.json")}
    assert all("H100" in result["environment"]["machine"]["gpu"] for result in found.values())
    step, compiled, vlm = found["step"], found["compiled"], found["vlm"]
    rates = {**step["images_per_second"], "compiled": compiled["images_per_second"]["trainer"]}
    moments = 8 * count_parameters(CLIPVisionConfig(**SHAPES["openai/clip-vit-large-patch14-336"])) / 2**30
    peak, tried = found["memory"]["peak_gib"], found["memory"]["tried"]
    image_steps = [f"{rate:.1f}" for rate in vlm["eager"]["image_steps_per_second"].values()]
    zero_shot, largest = found["zero-shot"]["images_per_second"], found["memory"]["largest_batch"]
    features = found["features"]["images_per_second"]
    wanted = [
        f"{rates['trainer']:.1f} images/s, MFU {step['mfu']['trainer']:.1%}; with `--torch_compile` "
        f"{rates['compiled']:.1f} images/s, MFU {compiled['mfu']['trainer']:.1%}",
        f"{rates['published']:.1f} images/s; {rates['published-tf32']:.1f} images/s",
        f"{step['speed_up']:.1f} and {step['speed_up_over_tf32']:.1f}; compiled "
        f"{rates['compiled'] / rates['published']:.1f} and {rates['compiled'] / rates['published-tf32']:.1f}",
        f"{peak:.1f} GiB in the first step, and {peak + moments:.1f} GiB",
        f"{largest}: {tried[str(largest)]:.1f} GiB, and {tried[str(largest)] + moments:.1f} GiB with the moments",
        f"{', '.join(f'{peak:.1f}' for peak in vlm['eager']['peak_gib'].values())} GiB; compiled at 16: "
        f"{vlm['compiled']['peak_gib']['16']:.1f} GiB",
        f"| {step['trainer_overhead']:.1%} |",
        f"{found['quickstart']['training_seconds']} s, {found['quickstart']['seconds_in_all']} s with the start",
        f"{found['before']['kernels']['milliseconds']:,.0f} ms of kernels",
        f"{max(found['before']['step_seconds']):.2f} s a step became {step['median_seconds']['trainer']:.2f}",
        f"{found['attack']['speed_up']:.2f} times as fast, and {found['attack']['loss_ratio']:.2f} of the loss",
        f"| {', '.join(image_steps)}; blocks compiled, at 16: {vlm['compiled']['image_steps_per_second']['16']:.1f} "
        f"({vlm['compiled']['factor']['16']:.1f} times batch 1)",
        f"{zero_shot['fp32']} in fp32, {zero_shot['tf32']} in TF32, {zero_shot['bf16']} in bf16",
        f"{features['1']:.2f} and {features['4']:.2f} images/s",
    ]
    page, front = (
        " ".join((ROOT / name).read_text().split()).replace(" %", "%") for name in ("docs/speed.md", "README.md")
    )
    assert [text for text in wanted if text not in page] == []
    short = [
        f"| {rates['trainer']:.0f} images/s, MFU 29%",
        f"| {' / '.join(image_steps)} |",
        f"| {peak + moments:.1f} GiB, of which {moments:.1f} computed |",
    ]
    assert [text for text in short if text not in front] == []
    assert round(step["mfu"]["trainer"], 2) == ASSUMED_MFU
