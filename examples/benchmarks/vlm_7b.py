"""What batching is worth on a LLaVA of 7B: APGD through the whole model, one image at a time and in batches.

    python examples/benchmarks/vlm_7b.py --output vlm_7b.json      # on a GPU of 40 GB or more

The shape of llava-1.5-7b (CLIP ViT-L/14 at 336 px, 32 blocks of width 4096) in bf16 with random weights: the model is
made on the meta device and filled on the GPU, so that nothing is downloaded and main memory holds none of it. Pixels
stay in fp32. Batch sizes take turns in one process, on as many images each; one that does not fit is told as null.
Operations of the language model alone count in the MFU: 2 a weight and token forward, as many back to the pixels.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from turns import DEVICE, medians, release, take_turns, write

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import freeze, matmul_patch_embedding
from fare_hf.encoders.flops import peak_flops
from fare_hf.lab.names import MODELS
from fare_hf.training.estimate import SHAPES
from fare_hf.training.logging.measurements import peak_memory
from fare_hf.vlm import VlmLoss

TEXT = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
TEXT |= {"num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32064, "max_position_embeddings": 4096}
TINY_TEXT = TEXT | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_TEXT |= {"num_key_value_heads": 4, "head_dim": 16, "vocab_size": 2048}
TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY_VISION |= {"image_size": 32, "patch_size": 8, "projection_dim": 16}
PROMPT, ANSWER = "<image>\na photo of", "a photo of a red heart and a small boat"


def random_llava(tiny: bool, device: torch.device) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA in bf16 with random weights, and a processor with the lab's tokenizer."""
    vision = TINY_VISION if tiny else SHAPES["openai/clip-vit-large-patch14-336"]
    config: Any = LlavaConfig.from_pretrained(MODELS / "llava")
    config.vision_config = type(config.vision_config)(**vision)
    config.text_config = type(config.text_config)(
        **(TINY_TEXT if tiny else TEXT), pad_token_id=config.text_config.pad_token_id, tie_word_embeddings=False
    )
    config.image_seq_length = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model: Any = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.to_empty(device=device)
    torch.manual_seed(0)
    model.init_weights()
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    processor = LlavaProcessor.from_pretrained(MODELS / "llava")
    processor.image_processor = CLIPImageProcessor(size={"shortest_edge": size["height"]}, crop_size=size)
    processor.patch_size = config.vision_config.patch_size
    return freeze(model), processor  # type: ignore[return-value]


def attack(model: Any, processor: Any, pixels: torch.Tensor, batch_size: int, steps: int) -> None:
    """APGD on all images, in batches."""
    for part in pixels.split(batch_size):
        loss = VlmLoss(model, processor, PROMPT, [ANSWER] * len(part))
        apgd(loss, part, ThreatModel("linf", "4/255"), steps=steps)


def fits(model: Any, processor: Any, pixels: torch.Tensor, batch_size: int) -> float | None:
    """Peak GiB of one step at this batch size; None if it does not fit."""
    release()
    try:
        attack(model, processor, pixels[:batch_size], batch_size, 1)
    except torch.OutOfMemoryError:
        return None
    return round(peak_memory(DEVICE) / 2**30, 2)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Images times steps per second by batch size, the factor to the first of them, and the peak memory."""
    model, processor = random_llava(args.tiny, DEVICE)
    size, count = cast(Any, model.config).vision_config.image_size, max(args.batch_sizes)
    pixels = torch.rand(count, 3, size, size).to(DEVICE)
    with matmul_patch_embedding(model):
        peaks = {str(batch): fits(model, processor, pixels, batch) for batch in args.batch_sizes}
        release()
        sizes = [batch for batch in args.batch_sizes if peaks[str(batch)] is not None]
        arms = {str(batch): partial(attack, model, processor, pixels, batch, args.steps) for batch in sizes}
        seconds = take_turns(arms, args.rounds)
    rates = {name: count * args.steps / value for name, value in medians(seconds).items()}
    first, peak = next(iter(rates.values())), peak_flops(DEVICE)
    tokens = int(VlmLoss(model, processor, PROMPT, [ANSWER]).labels.shape[1])
    weights = sum(part.numel() for part in model.model.language_model.layers.parameters())
    found: dict[str, Any] = {"image_steps_per_second": {name: round(rate, 3) for name, rate in rates.items()}}
    found["factor"] = {name: round(rate / first, 3) for name, rate in rates.items()}
    flops = 4 * weights * tokens
    found["mfu"] = None if peak is None else {name: round(flops * rate / peak, 4) for name, rate in rates.items()}
    return found | {"peak_gib": peaks, "tokens": tokens, "weights": weights, "seconds": seconds}


def main() -> None:
    """Prints the rates and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see whether it runs")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32], help="the first is the harness")
    parser.add_argument("--steps", type=int, default=3, help="of APGD")
    parser.add_argument("--rounds", type=int, default=1, help="after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    write(measure(args), args)


if __name__ == "__main__":
    main()
