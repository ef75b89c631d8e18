"""Every benchmark that needs a GPU, in one call, on a machine that may have no network.

    python examples/benchmarks/gpu.py prepare wheels --python 3.12 --have freeze.txt   # beside a package index
    python examples/benchmarks/gpu.py run --wheels wheels                              # on the GPU machine
    python examples/benchmarks/gpu.py run --tiny --output /tmp/tiny                    # anywhere: does it run?

`prepare` downloads wheels for that Python, and never torch; `--have` is what `pip freeze` prints on the GPU machine.
`run` needs no network: the wheels are unpacked into a folder of their own that stands first on the path, and nothing
that the machine has is replaced. Each step is a process with a time limit, the most important first; what it found is
written when it ends, and `summary.md` after every step. This file itself needs Python alone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WHEELS = (
    "transformers huggingface_hub httpx2 httpcore2 truststore datasets dill multiprocess tokenizers hf-xet accelerate"
    " safetensors xxhash fsspec click idna"
).split()
"""What a machine with torch lacks, or has in too old a version."""
FURTHER = (
    "anyio filelock h11 hypothesis iniconfig Jinja2 MarkupSafe numpy packaging pandas pillow pluggy psutil pyarrow"
    " pytest python-dateutil PyYAML regex shellingham sortedcontainers tqdm typer typing_extensions"
).split()
"""What such machines have nearly always; downloaded where `--have` does not list it."""
MANYLINUX = ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "1")
"""Tags of the wheels that are accepted, beside those of no platform."""
UNREAD = ("all", "environment", "kernels", "seconds", "settings")
"""Parts of a result that are no figures."""


@dataclass(frozen=True)
class Step:
    """One process of `run`.

    Attributes:
        name: of its files in the output folder.
        what: it measures, for the summary.
        script: in this folder; it takes `--output`, a JSON file.
        words, tiny: its options, and those of `--tiny`.
        seconds: after which it is ended.
    """

    name: str
    what: str
    script: str
    words: str
    tiny: str
    seconds: int


TINY = "--model tiny --batch_size 2"
STEPS = (
    Step(
        "step",
        "FARE step, ViT-L/14, batch 128, PGD-10, bf16; the published loop at batch 32 in fp32 and TF32, by images",
        "step.py",
        "--model vit-l-14 --batch_size 128 --published_batch_size 32 --rounds 3 --arms published published-tf32 bare",
        f"{TINY} --published_batch_size 1 --attack_steps 1 --rounds 1 --arms published published-tf32 bare",
        100,
    ),
    Step(
        "compiled",
        "the same step compiled block by block, against an eager one",
        "step.py",
        "--model vit-l-14 --batch_size 128 --rounds 3 --arms bare --compile",
        f"{TINY} --attack_steps 1 --rounds 1 --arms bare --compile --compile_backend eager",
        90,
    ),
    Step(
        "memory",
        "peak memory, ViT-L/14 at 336 px, batch 16, checkpointing; the largest batch",
        "memory.py",
        "--model vit-l-14-336 --batch_size 16",
        f"{TINY} --most 4",
        70,
    ),
    Step(
        "attack",
        "the attack of a step in bf16 and in fp8, and the loss that it finds",
        "attack_precision.py",
        "--model vit-l-14 --batch_size 128 --rounds 3",
        f"{TINY} --attack_steps 2 --rounds 1",
        50,
    ),
    Step(
        "vlm",
        "APGD through a LLaVA of 7B in bf16, fp32 pixels, by batch size, eager and compiled",
        "vlm_7b.py",
        "--batch_sizes 1 8 16 --compiled 16 32",
        "--tiny --batch_sizes 1 2 --compiled 2 --compile_backend eager --steps 2 --rounds 1",
        120,
    ),
    Step(
        "features",
        "FARE step on the features of a Qwen2.5-VL of 7B at 448 px, PGD-10, bf16, by batch size",
        "qwen_features.py",
        "--batch_sizes 1 4 16 --rounds 2",
        "--tiny --batch_sizes 1 2 --attack_steps 2 --rounds 1",
        70,
    ),
    Step(
        "zero-shot",
        "APGD on zero-shot classification, ViT-L/14, 1000 classes",
        "zero_shot.py",
        "--model vit-l-14 --batch_size 128 --rounds 1",
        f"{TINY} --classes 5 --steps 2 --rounds 1",
        50,
    ),
    Step(
        "quickstart",
        "the training of the lab's quickstart",
        "quickstart_training.py",
        "",
        "--max_steps 2 --batch_size 4",
        75,
    ),
    Step(
        "fsdp",
        "FSDP2 on one device against plain: the same losses",
        "fsdp.py",
        "--model vit-b-32 --batch_size 32",
        TINY,
        75,
    ),
    Step("tests", "the tests marked gpu", "gpu_tests.py", "-m gpu", "-k cpu", 90),
)


def wanted(have: Mapping[str, str], pinned: Mapping[str, str], lowest: Mapping[str, str]) -> list[str]:
    """`name==version` of each wheel to download.

    Args:
        have: name -> version on the GPU machine; empty if that is not known.
        pinned: name -> version that is downloaded.
        lowest: name -> version that is enough.
    """
    names = WHEELS if not have else [name for name in (*WHEELS, *FURTHER) if not _enough(name, have, lowest)]
    return [f"{name}=={pinned[plain(name)]}" for name in names]


def _enough(name: str, have: Mapping[str, str], lowest: Mapping[str, str]) -> bool:
    """Whether the GPU machine has a package in a version that is new enough."""
    own, least = (re.findall(r"\d+", of.get(plain(name), "")) for of in (have, lowest))
    return bool(own) and list(map(int, own)) >= list(map(int, least))


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(text: str) -> dict[str, str]:
    """Plain name -> version, of a file of `name==version` lines such as `pip freeze` prints."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return {plain(name): version for name, mark, version in (line.partition("==") for line in lines) if mark}


def pip_download(folder: Path, python: str, platform: str, packages: Sequence[str]) -> list[str]:
    """The command of `prepare`."""
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    words += ["--disable-pip-version-check", "--implementation", "cp", "--python-version", python]
    for tag in MANYLINUX:
        words += ["--platform", f"manylinux{tag}_{platform}"]
    return [*words, "--dest", str(folder), *packages]


def prepare(args: argparse.Namespace) -> int:
    """Downloads the wheels, and says how large they are."""
    have = versions(args.have.read_text(encoding="utf-8")) if args.have else {}
    pinned, lowest = (
        versions((ROOT / name).read_text(encoding="utf-8")) for name in ("constraints.txt", "constraints-lowest.txt")
    )
    packages = wanted(have, pinned, lowest)
    command = pip_download(args.folder, args.python, args.platform, packages)
    if args.dry_run or not packages:
        print(" ".join(command) if packages else "nothing is missing.")
        return 0
    subprocess.run(command, check=True)
    wheels = sorted(args.folder.glob("*.whl"))
    print(f"{len(wheels)} wheels in {args.folder}, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB.")
    return 0


def install(wheels: Path, target: Path) -> None:
    """Unpacks wheels into a folder, without an index and without what they depend on.

    Raises:
        SystemExit: no wheels, or torch among them.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files or any(Path(file).name.startswith("torch-") for file in files):
        raise SystemExit(f"gpu.py: error: {wheels} holds {'torch' if files else 'no wheels'}; make it with prepare.")
    words = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target", str(target)]
    subprocess.run([*words, "--disable-pip-version-check", "--find-links", str(wheels), *files], check=True)


def run(args: argparse.Namespace, steps: Sequence[Step] = STEPS) -> int:
    """Runs the steps; 0 if all went well."""
    names = [step.name for step in steps]
    chosen = args.only.split(",") if args.only else names
    if unknown := sorted(set(chosen) - set(names)):
        raise SystemExit(f"gpu.py: error: no step {unknown[0]!r}; there are {', '.join(names)}.")
    args.output.mkdir(parents=True, exist_ok=True)
    end, found = time.monotonic() + args.seconds, []
    with tempfile.TemporaryDirectory() as site:
        if args.wheels:
            install(args.wheels, Path(site))
        for step in steps:
            if step.name in chosen:
                found.append(run_step(step, args, site, end - time.monotonic()))
                (args.output / "summary.md").write_text(summary(found), encoding="utf-8")
    print(summary(found))
    return int(any(line["status"] != "ok" for line in found))


def run_step(step: Step, args: argparse.Namespace, site: str, left: float) -> dict[str, Any]:
    """Runs one step, and writes what it found or how it ended."""
    output, limit = args.output / f"{step.name}.json", max(0.0, min(step.seconds * args.patience, left))
    output.unlink(missing_ok=True)
    words = (step.tiny if args.tiny else step.words).split()
    command = [sys.executable, str(HERE / step.script), *words, "--output", str(output)]
    shown = " ".join(["python", os.path.relpath(HERE / step.script, ROOT), *words])
    print(f"{step.name}: {shown}", flush=True)
    begin = time.monotonic()
    status = call(command, site, args.output / f"{step.name}.log", limit) if limit else "no time was left"
    line = {"step": step.name, "what": step.what, "status": status, "seconds": round(time.monotonic() - begin, 1)}
    line |= {"limit": round(limit), "command": shown} | result(output)
    output.write_text(json.dumps(line, indent=2) + "\n", encoding="utf-8")
    return line


def call(command: Sequence[str], site: str, log: Path, limit: float) -> str:
    """Runs a command in a group of its own, which is ended after `limit` seconds; returns its status."""
    paths = [site, str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    environment |= {"TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"ended after {limit:.0f} s"
        finally:
            end_group(process)
    return "ok" if code == 0 else f"exit status {code}, see {log.name}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a step and the processes that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def result(output: Path) -> dict[str, Any]:
    """What a step wrote, perhaps before it failed, under `result`."""
    try:
        return {"result": json.loads(output.read_text(encoding="utf-8"))}
    except (OSError, ValueError):
        return {"result": {}}


def figures(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number of a result; those of its settings and environment are none."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key not in UNREAD or isinstance(value, float):
                yield from figures(value, f"{name}.{key}" if name else key)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield name, found


def summary(lines: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of all steps so far, with the machine of the first one that names it."""
    text = ["| step | what | status | seconds | figures |", "| --- | --- | --- | ---: | --- |"]
    for line in lines:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in figures(line["result"])) or "none"
        text.append(f"| {line['step']} | {line['what']} | {line['status']} | {line['seconds']} | {shown} |")
    machine: dict[str, Any] = next((found for line in lines if (found := line["result"].get("environment"))), {})
    named = {**machine.get("machine", {}), **machine.get("versions", {})}
    facts = ", ".join(f"{name} {value}" for name, value in named.items())
    return "\n".join([*text, "", f"Machine: {facts or 'not known'}."]) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(required=True)
    first = commands.add_parser("prepare", help="download the wheels that a GPU machine lacks")
    first.add_argument("folder", type=Path)
    first.add_argument("--python", default="3.12", help="of the GPU machine (default 3.12)")
    first.add_argument("--platform", default="x86_64", help="its processor (default x86_64)")
    first.add_argument("--have", type=Path, help="what `pip freeze` prints there (default: the usual is missing)")
    first.add_argument("--dry_run", action="store_true", help="print the command of pip alone")
    first.set_defaults(do=prepare)
    second = commands.add_parser("run", help="measure")
    second.add_argument("--wheels", type=Path, help="folder of prepare (default: nothing is missing)")
    second.add_argument("--tiny", action="store_true", help="the smallest sizes, on a CPU too")
    second.add_argument("--only", help=f"steps, divided by commas: {','.join(step.name for step in STEPS)}")
    second.add_argument("--seconds", type=float, default=600, help="for all of it (default 600)")
    second.add_argument("--patience", type=float, default=1, help="factor on the limit of each step (default 1)")
    second.add_argument("--output", type=Path, default=HERE / "results" / "gpu", help="folder")
    second.set_defaults(do=run)
    return made


def main() -> None:
    """Prepares or runs."""
    args = parser().parse_args()
    raise SystemExit(args.do(args))


if __name__ == "__main__":
    main()
