"""Trains the lab's LLaVA on its frozen CLIP: `python -m tools.lab.train_llava --out outputs/lab-llava`.

A `LlavaForConditionalGeneration` with a small Llama, trained as LLaVA is (Liu et al., 2023) with the tower frozen, so
that the composed images are embedded once. It learns captions, yes/no questions, counting, and to repeat a sentence
that the text asks for: without the last, no attack could make it say anything but a caption. In a second stage it
learns questions about clothes and digits too, of which the first has captions alone:

    python -m tools.lab.train_llava --start outputs/lab-llava/llava
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
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from fare_hf.encoders import load_encoder, matmul_patch_embedding
from fare_hf.lab import captions, scenes
from fare_hf.lab.concepts import DIGIT_CLASSES, FASHION_CLASSES
from fare_hf.lab.drawings import TRAIN_STYLES, VALIDATION_STYLE, drawings, grey_images, stack_pixels
from fare_hf.lab.names import MODELS
from fare_hf.lab.questions import load_question_set
from fare_hf.lab.sets import GREY_CONTRAST
from fare_hf.vlm import generate_text
from tools.lab import sentences
from tools.lab.conversations import FIRST, IGNORE, SECOND, Conversations
from tools.lab.train_clip import learning_rate

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
QUESTIONS = ("yes-no", "pope")
"""About drawings."""
STAGES = {
    "steps": (2500, 800),
    "lr": (2e-3, 4e-4),
    "seed": (0, 11),
    "every": (250, 100),
    "out": (Path("outputs/lab-llava"), Path("outputs/lab-llava-2")),
}
"""Of the first stage and the second."""


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
    model: PreTrainedModel, processor: ProcessorMixin, style: str, question_sets: Sequence[str] = QUESTIONS
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
    return figures | validate_grey(model, processor)


def validate_grey(model: PreTrainedModel, processor: ProcessorMixin, count: int = 200) -> dict[str, float]:
    """The same of clothes and digits: of training images, faded as those of the test sets are."""
    figures: dict[str, float] = {}
    for kind, classes in (("fashion", FASHION_CLASSES), ("digits", DIGIT_CLASSES)):
        rng = np.random.default_rng(5)
        images, concepts = grey_images(kind, "train")
        chosen = rng.choice(len(images), count, replace=False)
        shown = [concepts[number] for number in chosen]
        pixels = torch.from_numpy(stack_pixels([scenes.fade(images[n], GREY_CONTRAST) for n in chosen])) / 255
        others = [[name for name in classes if name != concept] for concept in shown]
        asked = [
            concept if number % 2 == 0 else other[rng.integers(len(other))]
            for number, (concept, other) in enumerate(zip(shown, others, strict=True))
        ]
        prompts = [captions.chat(captions.yes_no_prompt(concept)) for concept in asked]
        said = generate_text(model, processor, pixels, prompts, max_new_tokens=2)
        right = [text == ("yes" if number % 2 == 0 else "no") for number, text in enumerate(said)]
        named = generate_text(model, processor, pixels, captions.chat(captions.CAPTION_PROMPT), max_new_tokens=14)
        found = [concept in text for text, concept in zip(named, shown, strict=True)]
        figures |= {f"yes-no-{kind}": sum(right) / count, f"captions of {kind}": sum(found) / count}
    return figures


def started(args: argparse.Namespace) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A new model on the lab's CLIP, or that of the first stage."""
    if args.start is not None:
        model = LlavaForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
        return model, LlavaProcessor.from_pretrained(args.start)
    tower: Any = load_encoder(str(args.clip), "tokens").eval()
    tokenizer = build_tokenizer()
    return build_model(tower, tokenizer), build_processor(tokenizer, args.clip, tower.config.patch_size)


def train(args: argparse.Namespace) -> None:
    """The loop; a checkpoint and a line of validation every `args.every` steps."""
    torch.manual_seed(args.seed)
    model, processor = started(args)
    tower, tokenizer = model.model.vision_tower, processor.tokenizer
    tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.02, betas=(0.9, 0.98), fused=True)
    state_file, first = args.out / "state.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["start"] != str(args.start):
            raise SystemExit(f"{state_file} is of a training with --start {state['start']}: name another --out.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    mixture = FIRST if args.start is None else SECOND
    talks = Conversations(tower, processor.image_processor, args.seed + first, args.pool, mixture)
    tokens = model.config.image_seq_length
    begun, running = time.time(), 0.0
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
                seconds = (time.time() - begun) / (step + 1 - first)
                figures = validate(model.eval(), processor, VALIDATION_STYLE)
                text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
                print(f"step {step + 1} loss {running:.3f} {seconds:.2f} s/step {text}", flush=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                state["start"] = str(args.start)
                torch.save(state, args.out / "state.tmp")
                (args.out / "state.tmp").replace(state_file)
                model.save_pretrained(args.out / "llava")
                processor.save_pretrained(args.out / "llava")


def main() -> None:
    """Parses the command line and trains."""
    parser = argparse.ArgumentParser(description="Trains the lab's LLaVA on the lab's frozen CLIP.")
    parser.add_argument("--clip", type=Path, default=MODELS / "clip")
    parser.add_argument("--out", type=Path, help="outputs/lab-llava, of the second stage outputs/lab-llava-2")
    parser.add_argument("--start", type=Path, help="LLaVA of the first stage; then this is the second")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--fresh", type=int, default=24, help="new images composed a step")
    parser.add_argument("--pool", type=int, default=40_000, help="images whose features are kept")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--every", type=int, help="steps between two validations")
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    for name, choices in STAGES.items():
        if getattr(args, name) is None:
            setattr(args, name, choices[args.start is not None])
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
