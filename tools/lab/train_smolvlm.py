"""Trains the lab's SmolVLM: `python -m tools.lab.train_smolvlm --out outputs/lab-smolvlm`.

A tower of its own, from random weights, and a connector learn to show the lab LLaVA's language model an image. First
they learn what that model reads of its own tower (distillation), then the answers themselves. The language model is
frozen throughout, so that it is stored once for both; of its vocabulary the words that SmolVLM puts around an image
are new and learned.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    Idefics3Processor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
)

from fare_hf.data.pixels import Normalization
from fare_hf.encoders import matmul_patch_embedding
from fare_hf.lab import load_llava, scenes
from fare_hf.lab.drawings import VALIDATION_STYLE, stack_pixels
from tools.lab.conversations import IGNORE, SECOND, Conversations
from tools.lab.train_clip import MEAN, STD, learning_rate
from tools.lab.train_llava import QUESTIONS, validate

AROUND = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
"""Words that the processor adds to the vocabulary."""


def build_processor(tokenizer: PreTrainedTokenizerFast, tokens: int) -> Idefics3Processor:
    """One image is one tile. `SmolVLMProcessor` is the same for images, and needs torchvision for videos."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(AROUND)})
    side = {"longest_edge": scenes.IMAGE_SIZE}
    images = SmolVLMImageProcessorPil(
        size=side, max_image_size=side, do_image_splitting=False, image_mean=MEAN, image_std=STD
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=tokens)


def build_model(
    llava: Any, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace
) -> SmolVLMForConditionalGeneration:
    """A SmolVLM around the language model of a LLaVA, with a random tower and connector that give as many tokens."""
    text = llava.config.text_config.to_dict() | {"vocab_size": len(tokenizer)}
    vision = {
        "hidden_size": args.hidden,
        "intermediate_size": 4 * args.hidden,
        "num_hidden_layers": args.layers,
        "num_attention_heads": 4,
        "image_size": scenes.IMAGE_SIZE,
        "patch_size": llava.config.vision_config.patch_size,
    }
    ids: dict[str, Any] = {"image_token_id": llava.config.image_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        scale_factor=1,
        **ids,
        tie_word_embeddings=True,
    )
    model = SmolVLMForConditionalGeneration(config)
    stored = llava.model.language_model.state_dict()
    words = model.get_input_embeddings().weight
    learned = words.detach().clone()
    learned[: llava.config.text_config.vocab_size] = stored["embed_tokens.weight"]
    learned[llava.config.text_config.vocab_size :] = stored["embed_tokens.weight"].mean(0)
    model.model.text_model.load_state_dict(stored | {"embed_tokens.weight": learned})
    model.model.text_model.requires_grad_(False)
    return model


class Pictures(Conversations):
    """Composes images and keeps their pixels and what the lab LLaVA's language model reads of them."""

    def __init__(self, llava: LlavaForConditionalGeneration, processor: LlavaProcessor, seed: int, capacity: int):
        super().__init__(llava.model.vision_tower, processor.image_processor, seed, capacity, SECOND)
        self.projector = llava.model.multi_modal_projector
        self.pixels: list[Tensor] = []

    def compose(self, count: int) -> None:
        """Adds `count` images."""
        drawn = [self.draw() for _ in range(count)]
        pixels = torch.from_numpy(stack_pixels([image for image, _ in drawn]))
        with torch.no_grad():
            hidden = self.tower(self.normalise(pixels / 255), output_hidden_states=True).hidden_states[-2]
            self.features.extend(self.projector(hidden[:, 1:]).half())
        self.pixels.extend(pixels)
        self.facts.extend(shown for _, shown in drawn)
        for kept in (self.pixels, self.features, self.facts):
            del kept[: -self.capacity]

    def choose(self, size: int) -> np.ndarray:
        """Numbers of images at random."""
        return self.rng.integers(len(self.facts), size=size)


class Losses:
    """What the two stages minimise."""

    def __init__(self, model: SmolVLMForConditionalGeneration, processor: Any, pictures: Pictures) -> None:
        self.model, self.processor, self.pictures = model, processor, pictures
        self.normalise = Normalization(MEAN, STD)
        self.spread = torch.stack(pictures.features).float().var(0).mean()
        fake, image = AROUND[0], "<image>"
        self.image = f"{fake}{AROUND[1]}{image * processor.image_seq_len}{fake}"

    def read(self, chosen: np.ndarray) -> Tensor:
        """(B, N, D), what the language model reads of images."""
        pixels = torch.stack([self.pictures.pixels[i] for i in chosen])
        found = self.model.model.get_image_features(self.normalise(pixels / 255).unsqueeze(1))
        return torch.stack(found.pooler_output)

    def features(self, read: Tensor, chosen: np.ndarray) -> Tensor:
        """Squared distance to what the LLaVA reads, in units of its variance."""
        wanted = torch.stack([self.pictures.features[i] for i in chosen]).float()
        return F.mse_loss(read, wanted) / self.spread

    def answers(self, read: Tensor, chosen: np.ndarray, around: Tensor) -> Tensor:
        """Mean negative log-likelihood of answers."""
        ids, labels = self.pictures.texts(chosen, self.processor.tokenizer, self.image)
        words = self.model.get_input_embeddings().weight
        words = torch.cat([words[: -len(around)], around])
        embeds = F.embedding(ids, words)
        embeds = embeds.masked_scatter((ids == self.model.config.image_token_id).unsqueeze(-1), read)
        hidden = self.model.model.text_model(inputs_embeds=embeds).last_hidden_state
        wanted = labels[:, 1:] != IGNORE
        return F.cross_entropy(hidden[:, :-1][wanted] @ words.T, labels[:, 1:][wanted])


def optimizer_of(
    model: SmolVLMForConditionalGeneration, around: torch.nn.Parameter, args: argparse.Namespace
) -> torch.optim.AdamW:
    """AdamW on what is trained; as usual only matrices decay, and neither embeddings nor the patch projection do."""
    named = [item for item in model.named_parameters() if item[1].requires_grad]
    decayed = [weight for name, weight in named if weight.ndim > 1 and "embedding" not in name]
    rest = [weight for name, weight in named if weight.ndim < 2 or "embedding" in name]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": [*rest, around], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), fused=True)


class Run:
    """A model, what it is shown, and what is learned of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.llava, llava_processor = load_llava()
        self.processor = build_processor(llava_processor.tokenizer, self.llava.config.image_seq_length)
        self.model = build_model(self.llava, self.processor.tokenizer, args)
        self.around = torch.nn.Parameter(self.model.get_input_embeddings().weight[-len(AROUND) :].clone())
        self.optimizer = optimizer_of(self.model, self.around, args)
        self.trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.pictures = Pictures(self.llava, llava_processor, args.seed, args.pool)
        self.steps = args.feature_steps + args.answer_steps

    def all_steps(self) -> None:
        """The loop."""
        self.pictures.compose(self.args.pool // 8)
        losses, started, shown = Losses(self.model, self.processor, self.pictures), time.time(), dict[str, float]()
        for step in range(self.steps):
            self.pictures.compose(self.args.fresh)
            for name, part in self.step(step, losses).items():
                shown[name] = 0.98 * shown.get(name, part.item()) + 0.02 * part.item()
            if (step + 1) % self.args.every == 0 or step + 1 == self.steps:
                text = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
                seconds = (time.time() - started) / (step + 1)
                print(f"step {step + 1} {text} {seconds:.2f} s/step {self.saved()}", flush=True)

    def step(self, step: int, losses: Losses) -> dict[str, Tensor]:
        """One update; the parts of its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, self.args.lr)
        chosen = self.pictures.choose(self.args.batch)
        read, asked = losses.read(chosen), self.args.answered
        parts = {"features": losses.features(read, chosen)}
        loss = parts["features"]
        if step >= self.args.feature_steps:
            parts["answers"] = losses.answers(read[:asked], chosen[:asked], self.around)
            loss = self.args.kept * loss + parts["answers"]
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return parts

    def saved(self) -> str:
        """Writes model and processor; what it answers on the validation style."""
        with torch.no_grad():
            self.model.get_input_embeddings().weight[-len(AROUND) :] = self.around
        self.model.save_pretrained(self.args.out / "smolvlm")
        self.processor.save_pretrained(self.args.out / "smolvlm")
        figures = validate(self.model.eval(), self.processor, VALIDATION_STYLE, QUESTIONS[:1])
        self.model.train()
        return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


def train(args: argparse.Namespace) -> None:
    """From random weights to a folder; nothing resumes, it takes about half an hour of one core."""
    torch.manual_seed(args.seed)
    run = Run(args)
    with matmul_patch_embedding(run.llava.model.vision_tower), matmul_patch_embedding(run.model.model.vision_model):
        run.all_steps()


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description="Trains the lab's SmolVLM around the language model of its LLaVA.")
    parser.add_argument("--out", type=Path, default=Path("outputs/lab-smolvlm"))
    parser.add_argument("--feature_steps", type=int, default=1500, help="first, on what the LLaVA reads")
    parser.add_argument("--answer_steps", type=int, default=400, help="then, on answers as well")
    parser.add_argument("--kept", type=float, default=0.3, help="weight of the features beside the answers")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--answered", type=int, default=32, help="images of a batch that are asked about")
    parser.add_argument("--fresh", type=int, default=16, help="new images composed a step")
    parser.add_argument("--pool", type=int, default=12_000, help="images that are kept")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight_decay", type=float, default=0.05)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
