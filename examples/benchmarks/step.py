"""How fast is a training step? Against the published loop, and against a bare loop of the same step.

    python examples/benchmarks/step.py --output examples/benchmarks/results/step-cpu.json
    python examples/benchmarks/step.py --model vit-l-14 --batch_size 128 --output gpu.json       # on a GPU

(a) `published` is the loop of the paper's code as it is described, written plainly: fp32, a clean forward with its
graph that is not used, weights that require gradients during the attack, numbers read back in every iteration.
(b) `mfu` is model operations over time and the device's peak, where that is known.
(c) `bare` is the step of `fare_hf` without the Trainer. The arms take turns in one process, so that load from outside
falls on all of them; the medians are compared. Weights are random: they do not matter to the time.

On CPUs the ratio is the processor's: at 10 steps the published loop makes 35 forward passes' worth of operations,
ours 24, so 1.46 in fp32 where both run at one rate. Measured 1.94 on an AMD EPYC with bf16 autocast (step-cpu.json),
and on an Intel Xeon 1.40 in fp32 (step-cpu-xeon-fp32.json) but 0.78 in bf16 (step-cpu-xeon-bf16.json), whose kernels
are slow there: try `--fp32` before training on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection, TrainerCallback

from fare_hf import FareConfig, FareTrainer
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, freeze, matmul_patch_embedding
from fare_hf.encoders.flops import count_flops, peak_flops
from fare_hf.encoders.precision import attack_mode, cast_for_good
from fare_hf.evaluation import environment
from fare_hf.objectives import FareObjective
from fare_hf.training.attack import BatchAttack
from fare_hf.training.estimate import SHAPES
from fare_hf.training.logging.measurements import peak_memory

MODELS = {
    "vit-b-32": SHAPES["openai/clip-vit-base-patch32"],
    "vit-b-16": SHAPES["openai/clip-vit-base-patch16"],
    "vit-l-14": SHAPES["openai/clip-vit-large-patch14"],
    "vit-l-14-336": SHAPES["openai/clip-vit-large-patch14-336"],
    "vit-h-14": SHAPES["laion/CLIP-ViT-H-14-laion2B-s32B-b79K"],
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"image_size": 32, "patch_size": 8, "projection_dim": 16},
}
EPS, STEP = 4 / 255, 1 / 255
Step = Callable[[dict[str, Tensor]], None]


def published(encoder: Any, original: Any, normalization: Normalization, attack_steps: int) -> Step:
    """The published loop, from its description."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, weight_decay=1e-4)

    def loss_of(pixels: Tensor, target: Tensor) -> Tensor:
        return (encoder(pixel_values=normalization(pixels)).image_embeds - target).square().sum(-1).mean()

    def step(batch: dict[str, Tensor]) -> None:
        clean = batch["pixel_values"]
        with torch.no_grad():
            target = original(pixel_values=normalization(clean)).image_embeds
        encoder.eval()
        change = torch.empty_like(clean).uniform_(-EPS, EPS).requires_grad_()
        velocity = torch.zeros_like(clean)
        for _ in range(attack_steps):
            loss = loss_of(clean + change, target)
            (gradient,) = torch.autograd.grad(loss, change)
            assert not gradient.isnan().any() and loss.item() >= 0
            velocity = torch.sign(0.9 * velocity + gradient.sign())
            moved = (change.detach() + STEP * velocity).clamp(-EPS, EPS)
            change = ((clean + moved).clamp(0, 1) - clean).requires_grad_()
            assert change.abs().max().item() <= EPS + 1e-6 and (clean + change).min().item() >= 0
        encoder.train()
        unused = encoder(pixel_values=normalization(clean)).image_embeds
        loss = loss_of(clean + change.detach(), target) + 0.0 * (unused - target).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def bare(encoder: Any, original: Any, normalization: Normalization, config: FareConfig) -> Step:
    """The step of `FareTrainer` without a Trainer."""
    device, half = config.device, torch.bfloat16 if config.bf16 else None
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, weight_decay=1e-4, fused=True)
    hold = partial(attack_mode, dtype=half)
    attack, objective = BatchAttack(config, FareObjective(), normalization, hold), FareObjective()
    cast_for_good(original, half)

    def step(batch: dict[str, Tensor]) -> None:
        autocast = nullcontext() if half is None else torch.autocast(device.type, half)
        fast = matmul_patch_embedding if device.type == "cpu" else nullcontext
        with fast(encoder), fast(original):
            with autocast:
                found = attack(encoder, original, batch, 0)
                embeddings = embed(encoder, normalization(found.pixels))
            loss = objective(embeddings, found.targets).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Clock(TrainerCallback):
    """Runs the other arms between two steps of the Trainer, and takes the time of all of them."""

    def __init__(self, arms: dict[str, Callable[[], None]], device: torch.device) -> None:
        self.arms, self.device = arms, device
        self.seconds: dict[str, list[float]] = {name: [] for name in (*arms, "trainer")}
        self.begin = 0.0

    def now(self) -> float:
        """The time when the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The other arms have their turn."""
        for name, arm in self.arms.items():
            begin = self.now()
            arm()
            self.seconds[name].append(self.now() - begin)
        self.begin = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's own."""
        self.seconds["trainer"].append(self.now() - self.begin)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each arm, the first round left out, and what follows from them."""
    shape = CLIPVisionConfig(**MODELS[args.model])
    torch.manual_seed(0)
    encoder: Any = CLIPVisionModelWithProjection(shape)
    size: Any = shape.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    normalization = Normalization.from_processor(processor)
    samples = [{"pixel_values": torch.rand(3, size, size), "index": number} for number in range(args.batch_size)]
    options: dict[str, Any] = {"per_device_train_batch_size": args.batch_size, "attack_steps": args.attack_steps}
    options |= {"bf16": not args.fp32, "max_steps": args.rounds + 1, "warmup_steps": 0, "logging_steps": 1000}
    options |= {"use_cpu": not torch.cuda.is_available(), "save_strategy": "no", "disable_tqdm": True}
    options |= {"activation_checkpointing": args.checkpointing, "torch_compile": args.compile}
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(folder, dataloader_drop_last=True, **options)
        device = config.device
        batch = {key: torch.stack([torch.as_tensor(s[key]) for s in samples]).to(device) for key in samples[0]}
        arms: dict[str, Callable[[], None]] = {}
        for name in args.arms:
            models = [copy.deepcopy(encoder).to(device), freeze(copy.deepcopy(encoder)).to(device)]
            last = args.attack_steps if name == "published" else config
            make: Any = published if name == "published" else bare
            arms[name] = partial(make(*models, normalization, last), batch)
        clock = Clock(arms, device)
        trainer = FareTrainer(encoder, config, samples, processing_class=processor, callbacks=[clock])
        trainer.train()
    return summary(args, shape, device, {name: values[1:] for name, values in clock.seconds.items()})


def summary(args: argparse.Namespace, shape: Any, device: torch.device, seconds: dict[str, Any]) -> dict[str, Any]:
    """The ratios."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    flops = args.batch_size * count_flops(shape).step(args.attack_steps)
    found: dict[str, Any] = {"median_seconds": {name: round(value, 4) for name, value in median.items()}}
    found["tera_flop_per_second"] = round(flops / median["trainer"] / 1e12, 3)
    if "published" in median:
        found["speed_up"] = round(median["published"] / median["trainer"], 3)
    if "bare" in median:
        pairs = zip(seconds["trainer"], seconds["bare"], strict=True)
        found["trainer_overhead"] = round(statistics.median(own / other for own, other in pairs) - 1, 4)
    peak = peak_flops(device)
    found["mfu"] = None if peak is None else round(flops / median["trainer"] / peak, 4)
    found["peak_memory_gib"] = round(peak_memory(device) / 2**30, 2)
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    return found | {"seconds": seconds, "settings": settings, "environment": environment(seed=0)}


def main() -> None:
    """Prints the ratios and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit-b-32", choices=list(MODELS))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--attack_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted")
    parser.add_argument("--arms", nargs="*", default=["published", "bare"], choices=["published", "bare"])
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch_compile of FareTrainer")
    parser.add_argument("--load", help="what else the machine did, for the record")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    found = measure(args)
    print(json.dumps({key: value for key, value in found.items() if key not in ("seconds", "environment")}, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
