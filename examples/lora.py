"""FARE on low-rank updates (LoRA, Hu et al. 2021, arXiv 2106.09685) through PEFT: `pip install peft`.

    python examples/lora.py --output_dir outputs/lora

It did not pay: for the same number of operations on the lab, updates of rank 8 reached 6.5 % accuracy at 4/255 (three
seeds, 6.3 to 6.7) where all weights reached 18.7 % (17.5 to 19.8), with 78.0 % against 69.4 % clean; the first 2 of 4
blocks (`--trained_blocks 2`) 18.4 % and 77.8 % (`examples/benchmarks/results/cheaper.md`). It shows what `FareTrainer`
does with an encoder of which only some weights are trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import nn

from fare_hf import FareConfig, FareTrainer, ThreatModel, load_encoder, save_robust_encoder
from fare_hf.lab import encoder_folder, load_training_set


def merged(encoder: Any) -> Any:
    """The plain encoder again, the updates added to its weights."""
    for name, part in [(name, part) for name, part in encoder.named_modules() if hasattr(part, "get_base_layer")]:
        part.merge()
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, part.get_base_layer())
    return encoder


def main() -> None:
    """Trains low-rank updates on the lab, merges and saves them."""
    from peft import LoraConfig, inject_adapter_in_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="where the encoder goes")
    parser.add_argument("--max_steps", type=int, default=600)
    parser.add_argument("--rank", type=int, default=8)
    args = parser.parse_args()
    images = load_training_set("drawings")
    encoder: Any = load_encoder(str(encoder_folder("clip")))
    inner = [name for name, part in encoder.named_modules() if isinstance(part, nn.Linear) and ".layers." in name]
    inject_adapter_in_model(LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=inner), encoder)
    config = FareConfig(
        str(args.output_dir / "training"),
        eps="4/255",
        attack_steps=2,
        attack_step_size="3/255",
        learning_rate=3e-3,
        warmup_steps=0.1,
        max_steps=args.max_steps,
        per_device_train_batch_size=32,
        save_strategy="no",
    )
    trainer = FareTrainer(encoder, config, train_dataset=images, processing_class=images.processor)
    trainer.train()
    folder = save_robust_encoder(
        merged(encoder),
        args.output_dir / "encoder",
        processor=images.processor,
        base_model="fare_hf-lab-clip",
        threat_model=ThreatModel("linf", "4/255"),
        training={"objective": "fare", "low-rank updates": args.rank},
    )
    print(folder)


if __name__ == "__main__":
    main()
