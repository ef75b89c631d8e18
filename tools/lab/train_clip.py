"""Trains the lab's CLIP from scratch: `python -m tools.lab.train_clip --out outputs/lab-clip`.

A `CLIPModel` of transformers, trained contrastively (Radford et al., 2021) on drawings, scenes of drawings, clothes
and digits with the sentences that describe them. Samples that share a sentence's subject are positives of each other
(Khosla et al., 2020). Nobody has to run this: the result is in the package. It resumes from its own checkpoints.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from fare_hf.attacks import ThreatModel, pgd, predicted_classes
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import matmul_patch_embedding
from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES
from fare_hf.lab.drawings import (
    TRAIN_STYLES,
    VALIDATION_STYLE,
    Drawing,
    drawings,
    grey_images,
    main_concepts,
    stack_pixels,
)
from tools.lab import sentences

MEAN, STD = [0.67, 0.65, 0.63], [0.25, 0.25, 0.26]
"""Pixel statistics of the training images, rounded."""


@dataclass
class Sample:
    """An image, a sentence about it and what the sentence is about (samples with one key are positives)."""

    image: Image.Image
    text: str
    key: str


class SampleSource:
    """Draws training samples from one random stream."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        pool = [drawing for style in TRAIN_STYLES for drawing in drawings(style)]
        self.main = [drawing for drawing in pool if drawing.main]
        self.extra = [drawing for drawing in pool if not drawing.main]
        self.grey = {name: grey_images(name, "train") for name in ("fashion", "digits")}

    def pick(self, part_main: float) -> Drawing:
        """One drawing, from the main concepts with probability `part_main`."""
        pool = self.main if self.rng.random() < part_main else self.extra
        return pool[self.rng.integers(len(pool))]

    def draw(self) -> Sample:
        """79 % single drawings, 9 % scenes of two or three, 8 % clothes, 4 % digits."""
        kind = self.rng.random()
        if kind < 0.79:
            drawing = self.pick(0.8)
            image = scenes.single(drawing.image, self.rng, scenes.PRETRAINING)
            return Sample(image, sentences.describe([drawing.concept], self.rng), drawing.concept)
        if kind < 0.88:
            return self.scene()
        return self.grey_sample("fashion" if kind < 0.965 else "digits")

    def scene(self) -> Sample:
        """Two or three drawings and a sentence that names them."""
        chosen = [self.pick(0.8) for _ in range(self.rng.integers(2, 4))]
        names = [drawing.concept for drawing in chosen]
        image = scenes.several([drawing.image for drawing in chosen], self.rng, scenes.PRETRAINING)
        return Sample(image, sentences.describe(names, self.rng), "+".join(sorted(names)))

    def grey_sample(self, name: str) -> Sample:
        """One image of a grey data set."""
        images, concepts = self.grey[name]
        index = int(self.rng.integers(len(images)))
        templates = captions.FASHION_TEMPLATES if name == "fashion" else captions.DIGIT_TEMPLATES
        words = captions.with_article(concepts[index]) if name == "fashion" else concepts[index]
        text = templates[self.rng.integers(len(templates))].format(words)
        scene = scenes.recolour(images[index], scenes.GREY, self.rng)
        return Sample(scene, text, f"{name}:{concepts[index]}")


class Pool:
    """A ring of composed images: a few new ones each step, batches drawn from all of them."""

    def __init__(self, source: SampleSource, start: int, capacity: int) -> None:
        self.source, self.capacity, self.cursor = source, capacity, 0
        self.pixels = torch.empty(capacity, 3, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, dtype=torch.uint8)
        self.texts: list[str] = []
        self.keys: list[str] = []
        self.refresh(start)

    def refresh(self, count: int) -> None:
        """Composes `count` new samples; the oldest make room."""
        for _ in range(count):
            sample = self.source.draw()
            slot = self.cursor % self.capacity
            self.pixels[slot] = torch.from_numpy(stack_pixels([sample.image])[0])
            if slot == len(self.texts):
                self.texts.append(sample.text)
                self.keys.append(sample.key)
            else:
                self.texts[slot], self.keys[slot] = sample.text, sample.key
            self.cursor += 1

    def batch(self, size: int) -> tuple[Tensor, list[str], list[str]]:
        """`size` samples: pixels in [0, 1], sentences, keys."""
        index = self.source.rng.choice(len(self.texts), size, replace=False)
        return self.pixels[index] / 255, [self.texts[i] for i in index], [self.keys[i] for i in index]


def build_tokenizer(vocab_size: int = 1800) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in CLIP's form, trained on the lab's sentences."""
    concepts = sorted({drawing.concept for style in TRAIN_STYLES for drawing in drawings(style)})
    words = [*map(captions.with_article, concepts), *FASHION_CLASSES, *DIGIT_CLASSES]
    templates = (*captions.TEMPLATES, *captions.FASHION_TEMPLATES, *captions.DIGIT_TEMPLATES)
    corpus = [template.format(f"{word} and {word}, {word}") for template in templates for word in words]
    corpus.append(" ".join("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?-'/@&()"))
    backend: Any = CLIPTokenizer().backend_tokenizer
    special = ["<|startoftext|>", "<|endoftext|>"]
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, end_of_word_suffix="</w>"
    )
    backend.train_from_iterator(corpus, trainer)

    model = json.loads(backend.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=32)


def build_model(tokenizer: CLIPTokenizer, hidden: int = 128, layers: int = 4, patch: int = 40) -> CLIPModel:
    """The lab's `CLIPModel`, randomly initialised as transformers does it."""
    shared = {"projection_dim": 128, "num_attention_heads": 4}  # each half is also loaded on its own
    text = {
        **shared,
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        **shared,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_hidden_layers": layers,
        "image_size": scenes.IMAGE_SIZE,
        "patch_size": patch,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, keys: list[str]) -> Tensor:
    """Symmetric cross entropy over the batch; all samples of one key share the probability."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    ids = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    label = torch.tensor([ids[key] for key in keys])
    target = (label[:, None] == label[None, :]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def optimizer_of(model: CLIPModel, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW; as usual only matrices decay, and neither embeddings nor the patch projection do."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        free = parameter.ndim < 2 or "embedding" in name
        (plain if free else decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)


def validation_set(count: int, views: int = 2, seed: int = 1234) -> tuple[Tensor, Tensor]:
    """Main concepts on the validation style: pixels and labels of the first `count` images."""
    rng = np.random.default_rng(seed)
    classes = {name: number for number, name in enumerate(main_concepts())}
    chosen = [drawing for drawing in drawings(VALIDATION_STYLE) for _ in range(views)][:count]
    pixels = torch.from_numpy(stack_pixels([scenes.single(drawing.image, rng) for drawing in chosen])) / 255
    return pixels, torch.tensor([classes[drawing.concept] for drawing in chosen])


@dataclass
class Validation:
    """Zero-shot accuracy on the validation style, clean and under a few PGD steps (a thermometer, not a result)."""

    tokenizer: CLIPTokenizer
    normalise: Normalization
    count: int

    def __call__(self, model: CLIPModel) -> dict[str, float]:
        pixels, labels = validation_set(self.count)
        with torch.no_grad():
            prompts = captions.zero_shot_prompts(main_concepts(), "drawings")
            inputs = self.tokenizer(prompts, padding=True, return_tensors="pt")
            text = F.normalize(model.get_text_features(**inputs).pooler_output, dim=-1)

        def logits(batch: Tensor) -> Tensor:
            image = model.get_image_features(pixel_values=self.normalise(batch)).pooler_output
            return 100 * F.normalize(image, dim=-1) @ text.T

        def loss(batch: Tensor) -> Tensor:
            return F.cross_entropy(logits(batch), labels, reduction="none")

        result = {}
        with torch.no_grad():
            result["clean"] = (predicted_classes(logits(pixels)) == labels).float().mean().item()
        for eps in (1, 2, 4):
            threat = ThreatModel("linf", eps / 255)
            attacked = pgd(loss, pixels, threat, steps=10, step_size=eps / 255 / 4)
            with torch.no_grad():
                result[f"pgd10@{eps}/255"] = (predicted_classes(logits(attacked)) == labels).float().mean().item()
        return result


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def save(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Model, tokenizer and image processor: a folder for `CLIPModel.from_pretrained`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": scenes.IMAGE_SIZE, "width": scenes.IMAGE_SIZE}
    processor = CLIPImageProcessor(
        size={"shortest_edge": scenes.IMAGE_SIZE}, crop_size=size, image_mean=MEAN, image_std=STD
    )
    processor.save_pretrained(folder)


def train(args: argparse.Namespace) -> None:
    """The loop; a checkpoint and a line of validation every `args.every` steps."""
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.hidden, args.layers, args.patch).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    optimizer = optimizer_of(model, args.lr, args.weight_decay)
    state_file, first = args.out / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pool = Pool(SampleSource(args.seed + first), args.pool // 8, args.pool)
    normalise, started = Normalization(MEAN, STD), time.time()
    validate = Validation(tokenizer, normalise, args.validation)
    running = 0.0
    with matmul_patch_embedding(model):
        for step in range(first, args.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            pool.refresh(args.fresh)
            pixels, texts, keys = pool.batch(args.batch)
            inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
            output = model(pixel_values=normalise(pixels), **inputs)
            scale = model.logit_scale.exp().clamp(max=100)
            loss = contrastive_loss(output.image_embeds, output.text_embeds, scale, keys)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(model)
            running = 0.98 * running + 0.02 * loss.item() if step > first else loss.item()
            if (step + 1) % args.every == 0 or step + 1 == args.steps:
                seconds = (time.time() - started) / (step + 1 - first)
                smooth = cast(CLIPModel, average.module.eval())
                with matmul_patch_embedding(smooth):
                    figures = validate(smooth)
                text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
                print(f"step {step + 1} loss {running:.3f} {seconds:.2f} s/step {text}", flush=True)
                state = {"model": model.state_dict(), "average": average.state_dict()}
                torch.save({**state, "optimizer": optimizer.state_dict(), "step": step + 1}, args.out / "state.tmp")
                (args.out / "state.tmp").replace(state_file)
                save(smooth, tokenizer, args.out / "clip")


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description="Trains the lab's CLIP from scratch.")
    parser.add_argument("--out", type=Path, default=Path("outputs/lab-clip"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--fresh", type=int, default=48, help="new images composed a step")
    parser.add_argument("--pool", type=int, default=24_000, help="composed images kept")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--patch", type=int, default=40)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--validation", type=int, default=336, help="images of the validation style")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
