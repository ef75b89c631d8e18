"""Trains the lab's LLaVA on its frozen CLIP: `python -m tools.lab.train_llava --out outputs/lab-llava`.

A `LlavaForConditionalGeneration` with a small Llama, trained as LLaVA is (Liu et al., 2023) with the tower frozen, so
that the composed images are embedded once. It learns captions, yes/no questions, counting, and to repeat a sentence
that the text asks for: without the last, no attack could make it say anything but a caption.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from fare_hf.data.pixels import Normalization
from fare_hf.encoders import load_encoder, matmul_patch_embedding
from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES
from fare_hf.lab.drawings import TRAIN_STYLES, VALIDATION_STYLE, drawings, main_concepts, stack_pixels
from fare_hf.lab.names import MODELS, QUESTION_SETS
from fare_hf.lab.questions import load_question_set
from fare_hf.vlm import generate_text
from tools.lab import sentences
from tools.lab.train_clip import SampleSource, learning_rate

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
IGNORE = -100


def build_tokenizer(vocab_size: int = 1700) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with LLaVA's special tokens, trained on the lab's conversations."""
    concepts = sorted({drawing.concept for style in TRAIN_STYLES for drawing in drawings(style)})
    words = [*map(captions.with_article, concepts), *FASHION_CLASSES, *DIGIT_CLASSES]
    templates = (*captions.TEMPLATES, *captions.FASHION_TEMPLATES, *captions.DIGIT_TEMPLATES)
    corpus = [
        captions.chat(captions.CAPTION_PROMPT, t.format(f"{word} and {word}, {word}"))
        for t in templates
        for word in words
    ]
    corpus += [captions.chat(captions.yes_no_prompt(concept), "yes no") for concept in concepts]
    corpus += [captions.chat(sentences.repeat_prompt(s), s) for s in sentences.SENTENCES] * 60 + [
        captions.chat(sentences.COUNT_PROMPT, "one two three four")
    ]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL), initial_alphabet=alphabet)
    backend.train_from_iterator(corpus, trainer)
    pad, bos, eos, _ = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, padding_side="left",
        extra_special_tokens={"image_token": "<image>"}, model_max_length=256,
    )  # fmt: skip


def build_processor(tokenizer: PreTrainedTokenizerFast, clip: Path, patch_size: int) -> LlavaProcessor:
    """LLaVA's processor around the lab CLIP's own image processor."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessor.from_pretrained(clip),
        tokenizer=tokenizer,
        patch_size=patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def build_model(tower: Any, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA with a random projector and a random Llama (192 x 4 layers) on the given tower."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    side = tower.config.image_size // tower.config.patch_size
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        image_seq_length=side * side,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    return model


class Conversations:
    """Composes images, keeps their tower features and talks about them."""

    def __init__(self, tower: CLIPVisionModel, processor: CLIPImageProcessor, seed: int, capacity: int) -> None:
        self.source, self.tower, self.capacity = SampleSource(seed), tower, capacity
        self.rng = self.source.rng
        self.normalise = Normalization.from_processor(processor)
        self.features: list[Tensor] = []
        self.facts: list[tuple[str, list[str]]] = []

    def compose(self, count: int) -> None:
        """Adds `count` images: 67 % single drawings, 27 % scenes, the rest clothes and digits."""
        images, facts = [], []
        for _ in range(count):
            image, caption, concepts = self.draw()
            images.append(image)
            facts.append((caption, concepts))
        pixels = torch.from_numpy(stack_pixels(images)) / 255
        with torch.no_grad():
            hidden = self.tower(self.normalise(pixels), output_hidden_states=True).hidden_states[-2]
        self.features.extend(hidden[:, 1:].half())
        self.facts.extend(facts)
        self.features, self.facts = self.features[-self.capacity :], self.facts[-self.capacity :]

    def draw(self) -> tuple[Image.Image, str, list[str]]:
        """An image, its caption and the drawings in it."""
        kind = self.rng.random()
        if kind < 0.94:
            count = 1 if kind < 0.67 else int(self.rng.integers(2, 4))
            chosen = [self.source.pick(0.85) for _ in range(count)]
            names = [drawing.concept for drawing in chosen]
            pictures = [drawing.image for drawing in chosen]
            variation = scenes.PRETRAINING
            draw = scenes.single(pictures[0], self.rng, variation) if count == 1 else None
            image = draw or scenes.several(pictures, self.rng, variation)
            return image, f"a photo of {sentences.enumerate_words(names)}", names
        sample = self.source.grey_sample("fashion" if kind < 0.98 else "digits")
        name = sample.key.split(":")[1]
        digit = sample.key.startswith("digits")
        templates = captions.DIGIT_TEMPLATES if digit else captions.FASHION_TEMPLATES
        return sample.image, templates[0].format(name if digit else captions.with_article(name)), []

    def turns(self, caption: str, concepts: list[str]) -> list[tuple[str, str]]:
        """What is asked about one image, with the answers: of half of the images, what is in it, else two other turns.

        The two kinds are not mixed: a caption in the text would answer the question of what is there, and the reverse.
        """
        if concepts and self.rng.random() < 0.5:
            return self.yes_no_turns(concepts)
        first = second = self.turn(caption, concepts)
        while first[0] == second[0]:
            second = self.turn(caption, concepts)
        return [first, second]

    def yes_no_turns(self, concepts: list[str]) -> list[tuple[str, str]]:
        """Three questions of what is there, no thing twice; half are yes while there is something to say yes to."""
        there, turns = list(dict.fromkeys(concepts)), []
        absent = [name for name in main_concepts() if name not in there]
        for _ in range(3):
            present = bool(there) and self.rng.random() < 0.5
            pool = there if present else absent
            name = pool.pop(int(self.rng.integers(len(pool))))
            turns.append((captions.yes_no_prompt(name), "yes" if present else "no"))
        return turns

    def turn(self, caption: str, concepts: list[str]) -> tuple[str, str]:
        """One question about an image, and its answer."""
        kind = self.rng.random()
        if kind < 0.6 or not concepts:
            return (captions.CAPTION_PROMPT, caption) if kind < 0.9 else self.repeat()
        if kind < 0.7:
            return sentences.COUNT_PROMPT, ("one", "two", "three", "four")[len(concepts) - 1]
        return self.repeat()

    def repeat(self) -> tuple[str, str]:
        """A sentence to repeat: one of the fixed ones or words in random order."""
        if self.rng.random() < 0.6:
            sentence = sentences.SENTENCES[self.rng.integers(len(sentences.SENTENCES))]
        else:
            words = " ".join(sentences.SENTENCES).split() + list(main_concepts())
            sentence = " ".join(words[i] for i in self.rng.integers(len(words), size=self.rng.integers(2, 7)))
        return sentences.repeat_prompt(sentence), sentence

    def batch(self, size: int, tokenizer: PreTrainedTokenizerFast, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """`size` one- or two-turn conversations: ids and labels (right padded), tower features of their images."""
        chosen = self.rng.integers(len(self.facts), size=size)
        ids, labels = self.texts(chosen, tokenizer, "<image>" * tokens)
        return ids, labels, torch.stack([self.features[i] for i in chosen]).float()

    def texts(self, chosen: np.ndarray, tokenizer: PreTrainedTokenizerFast, image: str) -> tuple[Tensor, Tensor]:
        """Ids and labels (right padded) of one conversation about each of the chosen images."""
        rows = [self.encode(self.turns(*self.facts[i]), tokenizer, image) for i in chosen]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full((len(rows), width), IGNORE)
        for row, (token_ids, targets) in enumerate(rows):
            ids[row, : len(token_ids)] = torch.tensor(token_ids)
            labels[row, : len(targets)] = torch.tensor(targets)
        return ids, labels

    def encode(
        self, turns: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, image: str
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels; only answers carry a loss, and each answer ends with `</s>`.

        Args:
            turns: questions and answers about one image.
            tokenizer: of the model.
            image: what the processor writes in the place of `<image>`.
        """
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            prompt = captions.chat(question, image=number == 0).replace("<image>", image)
            prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
            answer_ids = tokenizer(f" {answer}", add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
            ids += prompt_ids + answer_ids
            labels += [IGNORE] * len(prompt_ids) + answer_ids
        return ids, labels


def language_loss(model: LlavaForConditionalGeneration, ids: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    """Mean negative log-likelihood of the answers, the tower's features given."""
    inner = model.model
    embeds = inner.get_input_embeddings()(ids)
    visual = inner.multi_modal_projector(features)
    mask = (ids == model.config.image_token_id).unsqueeze(-1)
    embeds = embeds.masked_scatter(mask, visual)
    hidden = inner.language_model(inputs_embeds=embeds).last_hidden_state
    wanted = labels[:, 1:] != IGNORE
    logits = model.lm_head(hidden[:, :-1][wanted])
    return F.cross_entropy(logits, labels[:, 1:][wanted])


def validate(
    model: PreTrainedModel, processor: ProcessorMixin, style: str, question_sets: Sequence[str] = QUESTION_SETS
) -> dict[str, float]:
    """Parts of the captions that name the concept, of the sentences repeated on request, of the right yes and no."""
    rng = np.random.default_rng(77)
    chosen = drawings(style)
    pixels = torch.from_numpy(stack_pixels([scenes.single(drawing.image, rng) for drawing in chosen])) / 255
    texts = generate_text(model, processor, pixels, captions.chat(captions.CAPTION_PROMPT), max_new_tokens=14)
    wanted = [f"a photo of {captions.with_article(drawing.concept)}" for drawing in chosen]
    right = sum(text == caption for text, caption in zip(texts, wanted, strict=True))
    sentence = sentences.SENTENCES[1]
    prompt = captions.chat(sentences.repeat_prompt(sentence))
    said = generate_text(model, processor, pixels[:24], prompt, max_new_tokens=14)
    echoed = sum(sentence in text for text in said)
    figures = {"captions": right / len(chosen), "echo": echoed / len(said)}
    for name in question_sets:
        asked = load_question_set(name, style)
        texts = generate_text(model, processor, asked.pixels, asked.prompts, max_new_tokens=2)
        figures[name] = sum(text == answer for text, answer in zip(texts, asked.answers, strict=True)) / len(asked)
    return figures


def train(args: argparse.Namespace) -> None:
    """The loop; a checkpoint and a line of validation every `args.every` steps."""
    torch.manual_seed(args.seed)
    tower: Any = load_encoder(str(args.clip), "tokens").eval()
    tokenizer = build_tokenizer()
    processor = build_processor(tokenizer, args.clip, tower.config.patch_size)
    model = build_model(tower, tokenizer)
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    state_file, first = args.out / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    talks = Conversations(tower, processor.image_processor, args.seed + first, args.pool)
    tokens = model.config.image_seq_length
    started, running = time.time(), 0.0
    with matmul_patch_embedding(tower):
        talks.compose(args.pool // 8)
        for step in range(first, args.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args.steps, args.lr)
            talks.compose(args.fresh)
            model.train()
            loss = language_loss(model, *talks.batch(args.batch, tokenizer, tokens))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            running = 0.98 * running + 0.02 * loss.item() if step > first else loss.item()
            if (step + 1) % args.every == 0 or step + 1 == args.steps:
                seconds = (time.time() - started) / (step + 1 - first)
                figures = validate(model.eval(), processor, VALIDATION_STYLE)
                text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
                print(f"step {step + 1} loss {running:.3f} {seconds:.2f} s/step {text}", flush=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                torch.save(state, args.out / "state.tmp")
                (args.out / "state.tmp").replace(state_file)
                model.save_pretrained(args.out / "llava")
                processor.save_pretrained(args.out / "llava")


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description="Trains the lab's LLaVA on the lab's frozen CLIP.")
    parser.add_argument("--clip", type=Path, default=MODELS / "clip")
    parser.add_argument("--out", type=Path, default=Path("outputs/lab-llava"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--fresh", type=int, default=24, help="new images composed a step")
    parser.add_argument("--pool", type=int, default=40_000, help="images whose features are kept")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
