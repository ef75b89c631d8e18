"""Is the ensemble as strong as the reference? Robust accuracy of `autoattack` beside pyautoattack's, same settings.

    python examples/benchmarks/attack_parity.py --output_dir outputs/parity

Both run the same attacks (APGD-CE, targeted APGD, FAB-T, Square), each from random numbers of its own, on the lab's
five encoders as zero-shot classifiers of the main set and on three random networks, at three radii a norm. Seconds are
of the processor and include the reference's own checks. Needs `pip install "fare_hf[test]"`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from fare_hf.attacks import ThreatModel, autoattack, predicted_classes
from fare_hf.evaluation import environment

TOLERANCE = 0.002
"""Robust accuracy may be higher than the reference's by this much."""
RANDOM, LAB = ("convolutions", "wide", "dense"), ("clip", "fare-2", "fare-4", "tecoa-2", "tecoa-4")
RADII = {
    ("random", "linf"): ("2/255", "4/255", "8/255"),
    ("random", "l2"): ("0.1", "0.2", "0.4"),
    ("lab", "linf"): ("1/255", "2/255", "4/255"),
    ("lab", "l2"): ("0.5", "1", "2"),
}
REFERENCE_ATTACKS = {"paper": ["apgd-ce", "apgd-t"], "standard": ["apgd-ce", "apgd-t", "fab-t", "square"]}
Problem = tuple[Callable[[Tensor], Tensor], Tensor, Tensor]


def random_network(kind: str, samples: int) -> Problem:
    """A random network of 10 classes on 8 x 8 images; labels are its own predictions."""
    torch.manual_seed(RANDOM.index(kind))
    layers: dict[str, list[nn.Module]] = {
        "convolutions": [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1)],
        "wide": [nn.Conv2d(3, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 16, 4, stride=4)],
        "dense": [nn.Flatten(), nn.Linear(192, 64), nn.Tanh(), nn.Linear(64, 64)],
    }
    net = nn.Sequential(*layers[kind], nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)).eval()
    pixels = torch.rand(samples, 3, 8, 8)
    with torch.no_grad():
        net(pixels)
    net.requires_grad_(False)
    return net, pixels, net(pixels).argmax(1)


def lab_encoder(name: str, samples: int | None, stack: ExitStack) -> Problem:
    """An encoder of the lab as a zero-shot classifier of the main set; labels are the true ones."""
    from fare_hf.encoders import load_encoder, matmul_patch_embedding
    from fare_hf.evaluation.zero_shot.classification import logits_function
    from fare_hf.lab import encoder_folder, load_clip
    from fare_hf.lab.measure import lab_normalization, part, text_embeddings

    test, encoder = part("twemoji", samples), load_encoder(str(encoder_folder(name)))
    stack.enter_context(matmul_patch_embedding(encoder))  # the same values for both sides, sooner
    logits_of = logits_function(encoder, text_embeddings(load_clip(), test), lab_normalization())
    return logits_of, test.pixels.contiguous(), test.labels  # the reference refuses other strides


def reference_accuracy(problem: Problem, threat_model: ThreatModel, effort: Mapping[str, Any], version: str) -> float:
    """pyautoattack's robust accuracy with its own attacks at the same effort."""
    logits_of, pixels, labels = problem
    norm = {"linf": "Linf", "l2": "L2"}[threat_model.norm]
    attacks = REFERENCE_ATTACKS[version]
    reference = AutoAttack(logits_of, attacks=attacks, version="custom", eps=threat_model.eps, norm=norm, seed=0)
    reference.apgd.n_iter = reference.apgd_targeted.n_iter = reference.fab.n_iter = effort["steps"]
    reference.apgd_targeted.n_target_classes = reference.fab.n_target_classes = effort["target_classes"]
    reference.apgd.n_restarts, reference.square.n_queries = 1, effort["queries"]
    points, _ = reference.run_standard_evaluation(pixels, labels, batch_size=128)
    with torch.no_grad():
        parts = zip(points.split(128), labels.split(128), strict=True)
        right = sum(int((predicted_classes(logits_of(z)) == y).sum()) for z, y in parts)
    return right / len(labels)


def compare(
    name: str, problem: Problem, threat_model: ThreatModel, effort: Mapping[str, Any], version: str
) -> dict[str, Any]:
    """One line: both robust accuracies, processor seconds of each, and whether ours is not the higher one."""
    begin = time.process_time()
    reference = reference_accuracy(problem, threat_model, effort, version)
    middle = time.process_time()
    generator = torch.Generator().manual_seed(1)
    found = autoattack(*problem, threat_model, version=version, batch_size=128, generator=generator, **effort)  # type: ignore[arg-type]
    ours = (~found.success).double().mean().item()
    seconds = [round(middle - begin, 1), round(time.process_time() - middle, 1)]
    line = {"model": name, "threat_model": str(threat_model), "n": len(problem[2]), "attack": found.name}
    line |= {"clean": found.accuracy["clean"], "pyautoattack": reference, "fare_hf": ours}
    return line | {"within": ours <= reference + TOLERANCE + 1e-9, "cpu_seconds": seconds}


def markdown(content: Mapping[str, Any]) -> str:
    """The lines as a table, below it what they were measured with."""
    lines = content["lines"]
    table = ["| model | threat model | n | clean | pyautoattack | fare_hf | difference | CPU seconds, both |"]
    table.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for line in lines:
        clean, theirs, ours = (100 * line[key] for key in ("clean", "pyautoattack", "fare_hf"))
        both = " / ".join(map(str, line["cpu_seconds"]))
        cells = [line["model"], line["threat_model"], line["n"], f"{clean:.1f}", f"{theirs:.1f}", f"{ours:.1f}"]
        table.append("| " + " | ".join(map(str, [*cells, f"{ours - theirs:+.1f}", both])) + " |")
    effort, place = content["effort"], content["environment"]
    within = sum(line["within"] for line in lines)
    about = f"Robust accuracy in percent; {within} of {len(lines)} lines are at most 0.2 points above the reference. "
    about += f"Both: {lines[0]['attack']}, " + ", ".join(f"{key} {value}" for key, value in effort.items())
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    return "\n".join([*table, "", f"{about}. `{place['command']}`; {versions}; {place['machine']['cpu']}.", ""])


def main() -> None:
    """Prints one line a model and radius; the exit status says whether all are within the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*RANDOM, *LAB], choices=[*RANDOM, *LAB])
    parser.add_argument("--norms", nargs="+", default=["linf"], choices=["linf", "l2"])
    parser.add_argument("--eps", nargs="+", help="radii (default: three that suit model and norm)")
    parser.add_argument("--samples", type=int, help="images (default: the main set's 520, and 1000 random ones)")
    parser.add_argument("--version", default="standard", choices=list(REFERENCE_ATTACKS))
    parser.add_argument("--steps", type=int, default=100, help="of APGD and FAB")
    parser.add_argument("--target_classes", type=int, default=9, help="of targeted APGD and FAB-T")
    parser.add_argument("--queries", type=int, default=5000, help="of Square")
    parser.add_argument("--output_dir", type=Path, help="where parity.json and parity.md go")
    args = parser.parse_args()
    effort = {"steps": args.steps, "target_classes": args.target_classes, "queries": args.queries}
    content: dict[str, Any] = {"effort": effort, "environment": environment(), "lines": []}
    for name in args.models:
        with ExitStack() as stack:
            random = name in RANDOM
            problem = random_network(name, args.samples or 1000) if random else lab_encoder(name, args.samples, stack)
            for norm in args.norms:
                for eps in args.eps or RADII["random" if random else "lab", norm]:
                    content["lines"].append(compare(name, problem, ThreatModel(norm, eps), effort, args.version))
                    print(json.dumps(content["lines"][-1]), flush=True)
                    if args.output_dir is not None:
                        write(args.output_dir, content)
    raise SystemExit(0 if all(line["within"] for line in content["lines"]) else 1)


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """`parity.json` and `parity.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parity.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "parity.md").write_text(markdown(content), encoding="utf-8")


if __name__ == "__main__":
    main()
