"""How fast is a training step? Against the published loop, and against a bare loop of the same step.

    python examples/benchmarks/step.py --output examples/benchmarks/results/step-cpu.json
    python examples/benchmarks/step.py --model vit-l-14 --batch_size 128 --output gpu.json       # on a GPU

(a) `published` is the loop of the paper's code as it is described, written plainly: fp32, a clean forward with its
graph that is not used, weights that require gradients during the attack, numbers read back in every iteration.
`published-tf32` is the same where products may be rounded to TF32. Their batch may be another: images are compared.
(b) `mfu` is model operations over time and the device's peak, where that is known.
`on_paper` is the least time of an eager step: of each operator what its multiplications or its bytes take, at the
device's peak and at the rate of a copy that is measured.
(c) `bare` is the step of `fare_hf` without the Trainer, and never compiled. The arms take turns in one process, so
that load from outside falls on all of them; the medians are compared. Weights are random: they do not matter to the
time. `kernels` are those of a last step of the Trainer, which is profiled and not timed.

On CPUs the ratio is the processor's: at 10 steps the published loop makes 35 forward passes' worth of operations,
ours 24, so 1.46 in fp32 where both run at one rate. Measured 1.94 on an AMD EPYC with bf16 autocast (step-cpu.json),
and on an Intel Xeon 1.40 in fp32 (step-cpu-xeon-fp32.json) but 0.78 in bf16 (step-cpu-xeon-bf16.json), whose kernels
are slow there: try `--fp32` before training on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModelWithProjection, TrainerCallback
from turns import DEVICE, Kernels, arguments, fp32_products, medians, now, random_clip, take_turns, write

from fare_hf import FareConfig, FareTrainer
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, freeze, matmul_patch_embedding
from fare_hf.encoders.flops import count_flops, peak_flops
from fare_hf.encoders.precision import attack_mode, cast_for_good
from fare_hf.encoders.reading import EncoderReading
from fare_hf.encoders.roofline import step_costs
from fare_hf.objectives import FareObjective
from fare_hf.training.attack import BatchAttack
from fare_hf.training.logging.measurements import peak_memory

EPS, STEP = 4 / 255, 1 / 255
Step = Callable[[dict[str, Tensor]], None]


def published(
    encoder: Any, original: Any, normalization: Normalization, attack_steps: int, precision: str = "ieee"
) -> Step:
    """The published loop, from its description; `precision` is that of fp32 matrix products, "ieee" or "tf32"."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-5, weight_decay=1e-4)

    def loss_of(pixels: Tensor, target: Tensor) -> Tensor:
        return (encoder(pixel_values=normalization(pixels)).image_embeds - target).square().sum(-1).mean()

    def step(batch: dict[str, Tensor]) -> None:
        with fp32_products(precision):
            one(batch["pixel_values"])

    def one(clean: Tensor) -> None:
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
    reading, objective = EncoderReading("projected", normalization), FareObjective()
    attack = BatchAttack(config, objective, reading, hold)
    cast_for_good(original, half)

    def step(batch: dict[str, Tensor]) -> None:
        autocast = nullcontext() if half is None else torch.autocast(device.type, half)
        with matmul_patch_embedding(encoder), matmul_patch_embedding(original):
            with autocast:
                found = attack(encoder, original, batch, 0)
                embeddings = embed(encoder, normalization(found.pixels))
            loss = objective(embeddings, found.targets).mean()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Clock(TrainerCallback):
    """Runs the other arms between two steps of the Trainer, and takes the time of all of them.

    Args:
        arms: name -> what is run.
        profiled: which step of the Trainer, from 1, is profiled and not timed.
    """

    def __init__(self, arms: dict[str, Callable[[], None]], profiled: int | None = None) -> None:
        self.arms, self.profiled = arms, profiled
        self.profiler, self.kernels = Kernels(), dict[str, Any]()
        self.seconds: dict[str, list[float]] = {name: [] for name in (*arms, "trainer")}
        self.begin = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The other arms have their turn."""
        if state.global_step + 1 == self.profiled:
            self.profiler.start()
            return
        for name, arm in self.arms.items():
            begin = now()
            arm()
            self.seconds[name].append(now() - begin)
        self.begin = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's own."""
        if state.global_step == self.profiled:
            self.kernels = self.profiler.stop()
            return
        self.seconds["trainer"].append(now() - self.begin)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each arm, the first round left out, and what follows from them."""
    encoder, processor = random_clip(args.model)
    size, normalization = encoder.config.image_size, Normalization.from_processor(processor)
    samples = [{"pixel_values": torch.rand(3, size, size), "index": number} for number in range(args.batch_size)]
    options: dict[str, Any] = {"per_device_train_batch_size": args.batch_size, "attack_steps": args.attack_steps}
    options |= {"bf16": not args.fp32, "warmup_steps": 0, "logging_strategy": "no", "save_strategy": "no"}
    options |= {"use_cpu": DEVICE.type == "cpu", "max_steps": args.rounds + 2, "disable_tqdm": True}
    options |= {"activation_checkpointing": args.checkpointing, "torch_compile": args.compile}
    options |= {"torch_compile_backend": args.compile_backend} if args.compile_backend else {}
    with tempfile.TemporaryDirectory() as folder:
        config = FareConfig(folder, dataloader_drop_last=True, **options)
        batch = {key: torch.stack([torch.as_tensor(s[key]) for s in samples]).to(DEVICE) for key in samples[0]}
        arms: dict[str, Callable[[], None]] = {}
        for name in args.arms:
            models = [copy.deepcopy(encoder).to(DEVICE), freeze(copy.deepcopy(encoder)).to(DEVICE)]
            if name == "bare":
                arms[name] = partial(bare(models[0], models[1], normalization, config), batch)
            else:
                precision = "tf32" if name == "published-tf32" else "ieee"
                step = published(models[0], models[1], normalization, args.attack_steps, precision)
                arms[name] = partial(step, {key: value[: args.published_batch_size] for key, value in batch.items()})
        clock = Clock(arms, profiled=args.rounds + 2)
        FareTrainer(encoder, config, samples, processing_class=processor, callbacks=[clock]).train()
    found = summary(args, encoder.config, {name: values[1:] for name, values in clock.seconds.items()})
    return found | {"kernels": clock.kernels}


def summary(args: argparse.Namespace, shape: Any, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The ratios."""
    median, flops, peak = medians(seconds), count_flops(shape).step(args.attack_steps), peak_flops(DEVICE)
    images = {name: args.published_batch_size if "published" in name else args.batch_size for name in median}
    rates = {name: images[name] / value for name, value in median.items()}
    found: dict[str, Any] = {"median_seconds": {name: round(value, 4) for name, value in median.items()}}
    found["images_per_second"] = {name: round(rate, 2) for name, rate in rates.items()}
    found["tera_flop_per_second"] = round(flops * rates["trainer"] / 1e12, 3)
    for name, key in (("published", "speed_up"), ("published-tf32", "speed_up_over_tf32")):
        if name in rates:
            found[key] = round(rates["trainer"] / rates[name], 3)
    if "bare" in median:
        pairs = zip(seconds["trainer"], seconds["bare"], strict=True)
        found["trainer_overhead"] = round(statistics.median(own / other for own, other in pairs) - 1, 4)
    own = {name: rate for name, rate in rates.items() if "published" not in name}
    found["mfu"] = None if peak is None else {name: round(flops * rate / peak, 4) for name, rate in own.items()}
    found["peak_memory_gib"] = round(peak_memory(DEVICE) / 2**30, 2)
    return found | {"on_paper": on_paper(args, shape), "seconds": seconds}


def on_paper(args: argparse.Namespace, shape: Any) -> dict[str, Any]:
    """Operations and bytes of a step, operator by operator, and the least time in which this device can do them."""
    costs = step_costs(lambda: CLIPVisionModelWithProjection(shape), args.batch_size, half=not args.fp32)
    flops, moved = costs.step(args.attack_steps)
    peak, found = peak_flops(DEVICE), {"tera_flop": round(flops / 1e12, 3), "giga_byte": round(moved / 1e9, 3)}
    if peak is None:
        return found
    copied = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    copies = medians(take_turns({"copy": copied.clone}, 5))["copy"]
    rate = 2 * copied.numel() / copies
    return found | {"tera_byte_per_second": rate / 1e12, "seconds": costs.seconds(args.attack_steps, peak, rate)}


def main() -> None:
    """Prints the ratios and writes them down."""
    parser = arguments(__doc__, "vit-b-32", 16)
    arms = ["published", "published-tf32", "bare"]
    parser.add_argument("--attack_steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3, help="after one that is not counted")
    parser.add_argument("--arms", nargs="*", default=["published", "bare"], choices=arms)
    parser.add_argument("--published_batch_size", type=int, help="of the published loop (default: --batch_size)")
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch_compile of FareTrainer")
    parser.add_argument("--compile_backend", help="of torch_compile (default: transformers')")
    args = parser.parse_args()
    args.published_batch_size = args.published_batch_size or args.batch_size
    write(measure(args), args)


if __name__ == "__main__":
    main()
