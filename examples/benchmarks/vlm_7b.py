"""What batching is worth on a LLaVA of 7B: APGD through the whole model, one image at a time and in batches.

    python examples/benchmarks/vlm_7b.py --output vlm_7b.json      # on a GPU of 40 GB or more

The shape of llava-1.5-7b (CLIP ViT-L/14 at 336 px, 32 blocks of width 4096) in bf16 with random weights: the model is
made on the meta device and filled on the GPU, so that nothing is downloaded and main memory holds none of it. Pixels
stay in fp32. Batch sizes take turns in one process; one that does not fit is told as null. Then the blocks of language
model and tower are compiled, each once for all, and the batch sizes of `--compiled` are measured.
An image step is one step of APGD on one image; a run of n steps makes n, and the losses of where it ends.
Operations of the language model alone count in the MFU: 2 a weight and token forward, as many back to the pixels.
`kernels` are those of one attack at the largest batch that is not compiled.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import CLIPImageProcessor, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from turns import DEVICE, Kernels, medians, release, take_turns, write

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.encoders import freeze, matmul_patch_embedding
from fare_hf.encoders.flops import peak_flops
from fare_hf.encoders.modes import blocks_of
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


def attack(model: Any, processor: Any, pixels: torch.Tensor, steps: int) -> None:
    """APGD on a batch."""
    loss = VlmLoss(model, processor, PROMPT, [ANSWER] * len(pixels))
    apgd(loss, pixels, ThreatModel("linf", "4/255"), steps=steps)


def fits(model: Any, processor: Any, pixels: torch.Tensor, batch_size: int) -> float | None:
    """Peak GiB of one step at this batch size; None if it does not fit."""
    release()
    try:
        attack(model, processor, pixels[:batch_size], 1)
    except torch.OutOfMemoryError:
        return None
    return round(peak_memory(DEVICE) / 2**30, 2)


def rates(model: Any, processor: Any, pixels: torch.Tensor, sizes: list[int], args: argparse.Namespace) -> Any:
    """Image steps per second, peak GiB and seconds by batch size."""
    peaks = {str(batch): fits(model, processor, pixels, batch) for batch in sizes}
    release()
    fitting = [batch for batch in sizes if peaks[str(batch)] is not None]
    arms = {str(batch): partial(attack, model, processor, pixels[:batch], args.steps) for batch in fitting}
    seconds = take_turns(arms, args.rounds) if arms else {}
    found = {name: round(int(name) * args.steps / value, 3) for name, value in medians(seconds).items()}
    return {"image_steps_per_second": found, "peak_gib": peaks, "seconds": seconds}


def measure(args: argparse.Namespace) -> None:
    """Writes the rates by batch size, the factor to the first of them, and the peak memory; then those compiled."""
    model, processor = random_llava(args.tiny, DEVICE)
    size, count = cast(Any, model.config).vision_config.image_size, max(*args.batch_sizes, *args.compiled)
    pixels, peak = torch.rand(count, 3, size, size).to(DEVICE), peak_flops(DEVICE)
    tokens = int(VlmLoss(model, processor, PROMPT, [ANSWER]).labels.shape[1])
    weights = sum(part.numel() for part in model.model.language_model.layers.parameters())
    found: dict[str, Any] = {"tokens": tokens, "weights": weights}

    def add(name: str, sizes: list[int]) -> None:
        one = found[name] = rates(model, processor, pixels, sizes, args)
        first = next(iter(found["eager"]["image_steps_per_second"].values()))
        each = one["image_steps_per_second"].items()
        one["factor"] = {size: round(rate / first, 3) for size, rate in each}
        one["mfu"] = (
            None if peak is None else {size: round(4 * weights * tokens * rate / peak, 4) for size, rate in each}
        )
        write(found, args, quiet=True)

    with matmul_patch_embedding(model):
        add("eager", args.batch_sizes)
        largest = list(found["eager"]["image_steps_per_second"])[-1]
        profiler = Kernels()
        profiler.start()
        attack(model, processor, pixels[: int(largest)], 1)
        found["kernels"] = profiler.stop()
        for part in (*model.model.language_model.layers, *blocks_of(model.model.vision_tower)[1]):
            part.compile(dynamic=False, backend=args.compile_backend)
        add("compiled", args.compiled)
    write(found, args)


def main() -> None:
    """Prints the rates and writes them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model, to see whether it runs")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 16], help="the first is the harness")
    parser.add_argument("--compiled", type=int, nargs="+", default=[16, 32], help="batch sizes, compiled")
    parser.add_argument("--compile_backend", default="inductor", help="of torch.compile")
    parser.add_argument("--steps", type=int, default=8, help="of APGD")
    parser.add_argument("--rounds", type=int, default=2, help="after one that is not counted")
    parser.add_argument("--output", type=Path, help="JSON file")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
