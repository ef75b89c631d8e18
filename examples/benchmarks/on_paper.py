"""Operations and bytes of a FARE step, and why an eager one cannot reach the peak of its GPU: arithmetic, no GPU.

    python examples/benchmarks/on_paper.py --output examples/benchmarks/results/on-paper.json

Each operator that torch runs takes what its multiplications need at the device's peak, or its bytes at the rate of its
memory, whichever is more (`fare_hf.encoders.roofline`). `products` is the time of all multiplications at the peak;
`limit` that of all operators, the least of an eager step. The gap between the two has two parts: `products_waiting`,
products that wait for their bytes, and `others`, operators that multiply nothing (norms, GELU, additions, casts,
AdamW). A compiler that keeps what it computes in the GPU's caches can beat this limit, down to `products`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from turns import MODELS, write

from fare_hf.encoders.flops import count_flops, peak_of
from fare_hf.encoders.roofline import step_costs

STEPS = (10, 2)
HEAD = (
    "| encoder | steps | TFLOP | TB | products, s | waiting for bytes, s | others, s | limit, s | images/s | MFU |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each encoder and number of attack steps."""
    peak, rate = peak_of(args.device) or 0.0, args.tera_byte_per_second * 1e12
    found = []
    for model in args.models:
        shape = CLIPVisionConfig(**MODELS[model])
        costs = step_costs(lambda shape=shape: CLIPVisionModelWithProjection(shape), args.batch_size, half=True)  # type: ignore[misc]
        for steps in STEPS:
            parts = [*costs.target, *costs.attack * steps, *costs.update]
            flops, moved = costs.step(steps)
            limit = costs.seconds(steps, peak, rate)
            others = sum(read / rate for multiplied, read in parts if not multiplied)
            row: dict[str, Any] = {"model": model, "attack_steps": steps, "tera_flop": flops / 1e12}
            row |= {"tera_byte": moved / 1e12, "products": flops / peak, "others": others, "limit": limit}
            row["products_waiting"] = limit - others - flops / peak
            row["images_per_second"] = args.batch_size / limit
            row["mfu"] = count_flops(shape).step(steps) * args.batch_size / peak / limit
            found.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return found


def table(found: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [HEAD]
    for row in found:
        seconds = [f"{row[name]:.2f}" for name in ("products", "products_waiting", "others", "limit")]
        cells = [row["model"], row["attack_steps"], f"{row['tera_flop']:.0f}", f"{row['tera_byte']:.2f}", *seconds]
        lines.append(f"| {' | '.join(map(str, [*cells, round(row['images_per_second'])]))} | {row['mfu']:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table and writes the numbers down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vit-l-14", "vit-l-14-336"], choices=list(MODELS))
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--device", default="H100", help="of `fare_hf.encoders.flops`, for its peak")
    parser.add_argument(
        "--tera_byte_per_second", type=float, default=3.35, help="of its memory (H100 SXM's data sheet)"
    )
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if peak_of(args.device) is None:
        parser.error(f"--device {args.device} has no peak on record in fare_hf.encoders.flops.")
    found: dict[str, Any] = {"rows": rows(args)}
    print(table(found["rows"]))
    write(found, args, quiet=True)


if __name__ == "__main__":
    main()
