"""Is the ensemble as strong as the reference? Robust accuracy of `autoattack` beside pyautoattack's, same settings.

    python examples/benchmarks/attack_parity.py --output parity.json

Five classifiers (three random networks, the lab's CLIP and FARE-4) at three radii each, APGD-CE then targeted APGD in
both, from different random starts. Needs `pip install "fare_hf[test]"`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn
from torch.nn import functional as F

from fare_hf.attacks import ThreatModel, autoattack, format_eps, parse_eps

TOLERANCE = 0.002
"""Robust accuracy may be higher than the reference's by this much."""
RADII = {"random": ("2/255", "4/255", "8/255"), "lab": ("0.5/255", "1/255", "2/255")}
Problem = tuple[Callable[[Tensor], Tensor], Tensor, Tensor]


def random_network(kind: str, samples: int) -> Problem:
    """A random network of 10 classes on 8 x 8 images; labels are its own predictions."""
    torch.manual_seed({"convolutions": 0, "wide": 1, "dense": 2}[kind])
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


def lab_encoder(name: str, samples: int) -> Problem:
    """An encoder of the lab as a zero-shot classifier of digits; labels are the true ones."""
    from fare_hf.encoders import freeze, load_encoder
    from fare_hf.lab import encoder_folder, load_clip
    from fare_hf.lab.measure import lab_normalization, part, text_embeddings

    test = part("digits", samples)
    encoder, normalization = freeze(load_encoder(str(encoder_folder(name)))), lab_normalization()
    text = text_embeddings(load_clip(), test)

    def logits_of(pixels: Tensor) -> Tensor:
        return 100 * F.normalize(encoder(pixel_values=normalization(pixels)).image_embeds, dim=-1) @ text.T

    return logits_of, test.pixels, test.labels


PROBLEMS = {
    **{name: (random_network, "random") for name in ("convolutions", "wide", "dense")},
    **{name: (lab_encoder, "lab") for name in ("clip", "fare-4")},
}


def reference_accuracy(problem: Problem, threat_model: ThreatModel, steps: int, targets: int) -> float:
    """pyautoattack's robust accuracy with its own APGD-CE and APGD-T."""
    logits_of, pixels, labels = problem
    attacks = ["apgd-ce", "apgd-t"]
    reference = AutoAttack(logits_of, attacks=attacks, version="custom", eps=threat_model.eps, norm="Linf", seed=0)
    reference.apgd.n_iter = reference.apgd_targeted.n_iter = steps
    reference.apgd.n_restarts, reference.apgd_targeted.n_target_classes = 1, targets
    points, _ = reference.run_standard_evaluation(pixels, labels, batch_size=128)
    with torch.no_grad():
        return (logits_of(points).argmax(1) == labels).double().mean().item()


def compare(name: str, eps: float | str, samples: int, steps: int, targets: int) -> dict[str, object]:
    """One line: both robust accuracies, seconds of each, and whether ours is not the higher one."""
    make, _ = PROBLEMS[name]
    problem = make(name, samples)
    threat_model = ThreatModel("linf", eps)
    begin = time.perf_counter()
    reference = reference_accuracy(problem, threat_model, steps, targets)
    middle = time.perf_counter()
    generator = torch.Generator().manual_seed(1)
    options = {"version": "paper", "steps": steps, "targets": targets, "batch_size": 128, "generator": generator}
    found = autoattack(*problem, threat_model, **options)  # type: ignore[arg-type]
    ours = (~found.success).double().mean().item()
    seconds = [round(middle - begin, 2), round(time.perf_counter() - middle, 2)]
    line: dict[str, object] = {"model": name, "eps": format_eps(threat_model.eps), "n": samples, "attack": found.name}
    line |= {"clean": found.accuracy["clean"], "fare_hf": ours, "pyautoattack": reference, "seconds": seconds}
    return line | {"within": ours <= reference + TOLERANCE + 1e-9}


def main() -> None:
    """Prints one line a model and radius; the exit status says whether all are within the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--eps", nargs="+", type=parse_eps, help="radii (default: three that suit the model)")
    parser.add_argument("--samples", type=int, default=500, help="images (default 500, so that one is 0.2 points)")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=9)
    parser.add_argument("--output", type=Path, help="JSON file for the lines")
    args = parser.parse_args()
    lines = []
    for name in args.models:
        for eps in args.eps or RADII[PROBLEMS[name][1]]:
            lines.append(compare(name, eps, args.samples, args.steps, args.targets))
            print(json.dumps(lines[-1]), flush=True)
            if args.output is not None:
                args.output.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")
    raise SystemExit(0 if all(line["within"] for line in lines) else 1)


if __name__ == "__main__":
    main()
