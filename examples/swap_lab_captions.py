"""Captions of the lab's LLaVA before and after a swap, of clean images and of attacked ones, side by side.

    python examples/swap_lab_captions.py --encoder fare-4 --eps 2/255 --steps 50 --images 8

Each model is attacked on its own with APGD on the loss of the true caption (`VlmLoss`). A few captions show what
happens; how often it happens is measured by examples/lab_table.py.
"""

from __future__ import annotations

import argparse

import torch

from fare_hf import ThreatModel, VlmLoss, apgd, swap_vision_tower
from fare_hf.encoders import frozen
from fare_hf.files.markup import inline
from fare_hf.lab import encoder_folder, load_llava, load_test_set
from fare_hf.lab.captions import CAPTION_PROMPT, chat, with_article
from fare_hf.vlm import generate_text


def main() -> None:
    """Print one line per image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", default="fare-4")
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--images", type=int, default=8)
    args = parser.parse_args()
    llava, processor = load_llava()
    test = load_test_set("twemoji")
    chosen = torch.arange(args.images) * (len(test) // args.images)
    pixels = test.pixels[chosen]
    names = [test.class_names[label] for label in test.labels[chosen].tolist()]
    prompt = chat(CAPTION_PROMPT)
    loss = VlmLoss(llava, processor, prompt, [f"a photo of {with_article(name)}" for name in names])
    threat = ThreatModel("linf", args.eps)

    def look() -> list[list[str]]:
        with frozen(llava):
            attacked = apgd(loss, pixels, threat, steps=args.steps, generator=torch.Generator().manual_seed(0)).pixels
        threat.check(attacked, pixels)
        return [generate_text(llava, processor, images, prompt, max_new_tokens=14) for images in (pixels, attacked)]

    before = look()
    with swap_vision_tower(llava, str(encoder_folder(args.encoder)), processor) as report:
        print(report)
        after = look()
    print("| image | CLIP, clean | CLIP, attacked | swapped, clean | swapped, attacked |\n|---|---|---|---|---|")
    for row in zip(names, *before, *after, strict=True):
        print("| " + " | ".join(map(inline, row)) + " |")
    print(f"apgd, loss of the true caption, {args.steps} steps, restarts 1, seed 0, {threat}, n = {len(names)}, fp32")


if __name__ == "__main__":
    main()
