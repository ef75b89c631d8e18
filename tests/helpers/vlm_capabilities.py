"""What each family can do, each thing tried: the checks behind the table of `fare_hf/vlm/FAMILIES.md`.

`PYTHONPATH=tests python tests/helpers/vlm_capabilities.py` writes the table; `test_families.py` runs them as tests
and compares the table with what is possible.
"""

from __future__ import annotations

import copy
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers.paths import ROOT
from helpers.tiny_llava import SIZE, WORDS
from helpers.tiny_vlms import TINY, Tiny, images
from helpers.vlm_features import own_features, saved, wide_floats, without_rounding
from PIL import Image
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoProcessor, pipeline
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from fare_hf.attacks import ThreatModel, apgd
from fare_hf.data.pixels import StoredPixels, quantize, to_pil
from fare_hf.encoders import frozen
from fare_hf.evaluation import evaluate_vlm_on_data
from fare_hf.vlm import VlmLoss, generate_text, robust_pipeline, swap_vision_tower, tower_of, towers_of
from fare_hf.vlm.families import table as families
from fare_hf.vlm.families.family import join
from fare_hf.vlm.families.refused import REFUSED, reason_for
from fare_hf.vlm.families.towers import kind_of

DOCUMENT = ROOT / "fare_hf" / "vlm" / "FAMILIES.md"
OTHER = 48
TEXTS = ["a red cat", "a photo of a green bird"]


class NotClaimed(Exception):
    """A capability that the family does not have, with the reason."""


def logits(model: Any, tiny: Tiny, processor: Any, picture: Image.Image) -> torch.Tensor:
    """What the model says of a picture through its processor."""
    with torch.no_grad():
        return model(**inputs_of(processor, picture, tiny.prompt)).logits


def inputs_of(processor: Any, picture: Image.Image, text: str) -> dict[str, torch.Tensor]:
    """The processor's own output, without anything of fare_hf."""
    if type(processor).__name__ == "IdeficsProcessor":
        before, after = text.split("<image>")
        return dict(processor(text=[[before, picture, after]], return_tensors="pt"))
    inputs = dict(processor(images=picture, text=text, return_tensors="pt"))
    inputs.pop("labels", None)  # PaliGemma's, all ignored
    return inputs


def made(tiny: Tiny) -> tuple[Any, Any]:
    """Model and processor."""
    return tiny.model(), tiny.processor()


def picture_of(height: int = 50, width: int = 70) -> Image.Image:
    """A random picture."""
    return to_pil(images(1, height, width, seed=7))[0]


def swap(tiny: Tiny) -> None:
    """The towers compute what the encoder computes, to the bit, and nothing else changes."""
    model, processor = made(tiny)
    encoder = tiny.encoder()
    inside = tuple(f"{path}." for path in families.family_of(model).towers)
    others = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith(inside)}
    report = swap_vision_tower(model, encoder, processor)
    assert report.probe_difference == 0.0 and report.changed > 0
    vision = getattr(encoder, "vision_model", encoder)
    inputs = kind_of(tower_of(model)).inputs(vision.config, images(2).sub(0.5))
    with torch.no_grad():
        expected = vision(**inputs, output_hidden_states=True)
        for tower in towers_of(model).values():
            assert torch.equal(tower(**inputs).last_hidden_state, expected.last_hidden_state)
            if hasattr(tower, "dtype"):
                found = tower(**inputs, output_hidden_states=True)
                assert all(torch.equal(a, b) for a, b in zip(found.hidden_states, expected.hidden_states, strict=True))
                if kind_of(tower).own and expected.get("pooler_output") is not None:
                    assert torch.equal(found.pooler_output, expected.pooler_output)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in others.items())


def other_resolution(tiny: Tiny) -> None:
    """An encoder of 48 px in place of 32: the whole model runs on what its processor makes, with more tokens."""
    model, processor = made(tiny)
    if kind_of(tower_of(model)).own:
        raise NotClaimed("its own tower")
    encoder = tiny.encoder(image_size=OTHER)
    if not families.family_of(model).any_size:
        try:
            swap_vision_tower(model, encoder, processor)
        except ValueError as error:
            raise NotClaimed("a fixed number of patches") from error
    report = swap_vision_tower(model, encoder, processor)
    assert report.resolution == (SIZE, OTHER) and report.image_tokens is not None
    assert model.config.vision_config.image_size == OTHER == tower_of(model).config.image_size
    made_pixels = inputs_of(processor, picture_of(), tiny.prompt)
    values = next(made_pixels[name] for name in ("pixel_values", "pixel_values_images") if name in made_pixels)
    assert values.shape[-2:] == (OTHER, OTHER)
    assert logits(model, tiny, processor, picture_of()).isfinite().all()
    if type(processor).__name__ == "AyaVisionProcessor":  # tiles of other numbers, of four and of nine tokens
        assert all(count and count % tokens == 0 for count, tokens in zip(report.image_tokens, (4, 9), strict=True))
    elif report.image_tokens[1] and not families.family_of(model).any_resolution:
        assert report.image_tokens == (16, 36)


def put_back(tiny: Tiny) -> None:
    """After a swap, of the same and of another resolution, everything is as it was."""
    model, processor = made(tiny)
    before = logits(model, tiny, processor, picture_of())
    config, state = model.config.to_dict(), {n: t.clone() for n, t in model.state_dict().items()}
    settings = copy.deepcopy(processor.to_dict()), copy.deepcopy(processor.image_processor.to_dict())
    for size in (SIZE, OTHER) if families.family_of(model).any_size else (SIZE,):
        with swap_vision_tower(model, tiny.encoder(image_size=size), processor):
            assert not torch.equal(logits(model, tiny, processor, picture_of()), before)
        assert torch.equal(logits(model, tiny, processor, picture_of()), before)
        assert model.config.to_dict() == config
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert (processor.to_dict(), processor.image_processor.to_dict()) == settings


def save_and_reload(tiny: Tiny) -> None:
    """A saved swapped model, of another resolution where there is one, loads with plain transformers."""
    model, processor = made(tiny)
    size = OTHER if families.family_of(model).any_size else SIZE
    swap_vision_tower(model, tiny.encoder(image_size=size), processor)
    expected = logits(model, tiny, processor, picture_of())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = AutoModelForImageTextToText.from_pretrained(folder).eval()
        if not type(processor).__name__.startswith("ImageOnly"):  # these need torchvision
            processor.save_pretrained(folder)
            processor = AutoProcessor.from_pretrained(folder)
        assert torch.equal(logits(again, tiny, processor, picture_of()), expected)


def in_pipeline(tiny: Tiny) -> None:
    """`image-text-to-text`: one call, batches, several images, a chat."""
    model, processor = made(tiny)
    with tempfile.TemporaryDirectory() as folder:
        if type(processor).__name__.startswith("ImageOnly"):
            swap_vision_tower(model, tiny.encoder(), processor)
            pipe: Any = pipeline("image-text-to-text", model=model, processor=processor)
        else:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            pipe = robust_pipeline(folder, tiny.encoder())
            assert pipe.swap_report.changed
    options = {"max_new_tokens": 3, "return_full_text": False}
    pictures = [picture_of(), picture_of(40, 32)]
    idefics = type(processor).__name__ == "IdeficsProcessor"  # writes the placeholders itself
    prompt = "describe the image :" if idefics else tiny.prompt
    one = pipe(images=pictures[0], text=prompt, **options)
    assert isinstance(one[0]["generated_text"], str)
    if idefics:
        return
    assert len(pipe(images=[[picture] for picture in pictures], text=[prompt] * 2, batch_size=2, **options)) == 2
    both = f"user : {tiny.image} and {tiny.image} assistant :"
    assert pipe(images=pictures, text=[both], **options)
    content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "describe the image"}]
    assert pipe(text=[{"role": "user", "content": content}], **options)


def own_loss(model: Any, processor: Any, picture: Image.Image, prompt: str, text: str) -> float:
    """The model's own loss on its processor's output, the prompt's labels ignored."""
    if type(processor).__name__ == "PaliGemmaProcessor":  # its labels end with an end of text, which is left out
        made_inputs = dict(processor(images=picture, text=prompt, suffix=text, return_tensors="pt"))
        inputs = {name: value if name == "pixel_values" else value[:, :-1] for name, value in made_inputs.items()}
        labels = inputs.pop("labels")
    else:
        inputs = inputs_of(processor, picture, join(prompt, text))
        labels = inputs["input_ids"].clone()
        labels[:, : inputs_of(processor, picture, prompt)["input_ids"].shape[1]] = -100
    with torch.no_grad():
        return float(model(**inputs, labels=labels).loss)


def loss_gradient(tiny: Tiny) -> None:
    """`VlmLoss` is the model's own loss (1e-5; 5e-2 where the processor rounds to bytes), and its slope is right."""
    model, processor = made(tiny)
    for (height, width), tolerance in (((SIZE, SIZE), 1e-5), ((50, 70), 5e-2), ((96, 31), 5e-2)):
        tiles = ("image_grid_pinpoints", "max_image_size")
        if tolerance == 1e-5 and any(hasattr(processor.image_processor, name) for name in tiles):
            tolerance = 5e-2  # tiles are larger than the image: it is resized
        pixels = images(2, height, width, seed=3).mul(255).round().div(255)
        losses = VlmLoss(model, processor, tiny.prompt, TEXTS)(pixels)
        expected = [own_loss(model, processor, p, tiny.prompt, t) for p, t in zip(to_pil(pixels), TEXTS, strict=True)]
        torch.testing.assert_close(losses.detach(), torch.tensor(expected), rtol=tolerance, atol=tolerance)
    _check_slope(model, processor, tiny.prompt)


def _check_slope(model: Any, processor: Any, prompt: str) -> None:
    """Directional derivatives against central differences in fp64."""
    without_rounding(model)
    loss = VlmLoss(model, processor, prompt, TEXTS)
    pixels = images(2, 40, 56, seed=4).double().mul(0.5).add(0.25)  # away from 0 and 1, where resizing is clamped
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(3)).double()
    with frozen(model), wide_floats():
        point = pixels.clone().requires_grad_()
        slope = (torch.autograd.grad(loss(point).sum(), point)[0] * direction).flatten(1).sum(1)
        h = 1e-4  # Cohere 2 rotates its queries in fp32: a smaller step would drown in its rounding
        with torch.no_grad():
            difference = (loss(pixels + h * direction) - loss(pixels - h * direction)) / (2 * h)
    assert slope.abs().min() > 1e-6
    torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-7)


def features(tiny: Tiny) -> None:
    """What is read of the tower, from its files alone, is what the whole model makes of its processor's output."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, tower, reading = saved(folder, tiny)
        except ValueError as error:
            raise NotClaimed("no `get_image_features`") from error
    pixels = quantize(images(2, seed=3))
    found, expected = reading.embed(tower, pixels), own_features(model, tiny.processor(), pixels)
    assert found.shape == expected.shape and found.shape[0] == 2 and found.std() > 0
    # Tiles are resized, which rounds to bytes in the processor.
    tiles = any(hasattr(reading.settings, name) for name in ("image_grid_pinpoints", "max_image_size"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05 if tiles else 1e-5)
    assert type(tower).__name__ in reading.family.tower_classes


def own_answer(model: Any, processor: Any, inputs: dict[str, torch.Tensor], length: int) -> str:
    """Greedily, as transformers generates it."""
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    return str(processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def talking(tiny: Tiny) -> tuple[Any, Any]:
    """Model and processor; the model says words alone, as special tokens are not seen in an answer."""
    model, processor = made(tiny)
    known = set(processor.tokenizer.convert_tokens_to_ids([word for word in WORDS if word.isalpha()]))
    known.discard(processor.tokenizer.unk_token_id)
    rows = model.get_output_embeddings().weight.shape[0]
    model.generation_config.suppress_tokens = [number for number in range(rows) if number not in known]
    return model, processor


def answers(tiny: Tiny) -> None:
    """A padded batch of prompts is answered as each alone by the model's own `generate`.

    Of images that are resized it is given what it would be without rounding to bytes, which changes single words.
    """
    model, processor = talking(tiny)
    family = families.family_of(model)
    prompts = [tiny.prompt, f"{tiny.image} :", tiny.prompt.replace("describe the image", "a photo of a red cat")]
    for height, width in ((SIZE, SIZE), (50, 70)):
        pixels, expected = quantize(images(3, height, width, seed=3)), []
        for number, prompt in enumerate(prompts):
            inputs = inputs_of(processor, to_pil(pixels)[number], prompt)
            if (height, width) != (SIZE, SIZE):
                inputs |= family.inputs(family.settings(processor), pixels[number : number + 1])
                inputs = {name.replace("pixel_values_images", "pixel_values"): v for name, v in inputs.items()}
            expected.append(own_answer(model, processor, inputs, 5))
        found = generate_text(model, processor, pixels, prompts, max_new_tokens=5)
        assert found == expected and all(found)
        assert len(set(found)) > 1 or tiny.name == "PaliGemma"  # whose random weights know one word


def measured(tiny: Tiny) -> None:
    """Captions and strings of pictures of two sizes, in batches: an attack lowers scores, and forces a word."""
    model, processor = talking(tiny)
    template = tiny.prompt.replace("describe the image", "{}")
    pictures = [to_pil(images(1, *sides, seed=3))[0] for sides in ((40, 56), (48, 36), (40, 56))]
    asked = template.replace("{}", "a photo")
    said = [own_answer(model, processor, inputs_of(processor, picture, asked), 3) for picture in pictures]
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures):
            picture.save(Path(folder) / f"{number}.png")
        lines = [
            json.dumps({"file_name": f"{number}.png", "question": "a photo", "answer": text})
            for number, text in enumerate(said)
        ]
        (Path(folder) / "metadata.jsonl").write_text("\n".join(lines))
        options = {"template": template, "eps": ["200/255"], "steps": 2, "batch_size": 2, "prompt": "a photo"}
        options |= {"max_new_tokens": 3}
        questions = evaluate_vlm_on_data((model, processor), folder, "vqa", **options | {"prompt": "{}"})
        read = {"caption_column": "answer", "steps": 1}
        captions = evaluate_vlm_on_data((model, processor), folder, "captions", **options | read)
        forced = evaluate_vlm_on_data((model, processor), folder, "targeted", targets=[said[1]], **options)
    assert questions.rows[1].value < questions.rows[0].value == 1.0
    assert captions.rows[0].value > captions.rows[1].value or len(set(said)) == 1  # CIDEr counts what is rare alone
    assert [row.n for row in forced.rows] == [3, 3] and forced.rows[1].value >= forced.rows[0].value
    loss, clean = VlmLoss(model, processor, asked, said[1:2]), StoredPixels()(pictures[0])["pixel_values"]
    with frozen(model):
        found = apgd(lambda pixels: -loss(pixels), clean, ThreatModel("linf", "8/255"), steps=10).pixels
        with torch.no_grad():
            assert loss(found) < loss(clean)


CAPABILITIES: dict[str, Callable[[Tiny], None]] = {
    "swap": swap,
    "other resolution": other_resolution,
    "put back": put_back,
    "save and reload": save_and_reload,
    "pipeline": in_pipeline,
    "VlmLoss = own loss, gradient = finite differences": loss_gradient,
    "features": features,
    "answers = own": answers,
    "captions, questions, strings": measured,
}


def table() -> str:
    """Run everything; the table as Markdown."""
    lines = ["| family | " + " | ".join(CAPABILITIES) + " |", "|---|" + "---|" * len(CAPABILITIES)]
    for name, tiny in TINY.items():
        cells = []
        for check in CAPABILITIES.values():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(tiny)
                cells.append("yes")
            except NotClaimed as reason:
                cells.append(f"no ({reason})")
            except Exception as error:
                cells.append(f"FAILED: {type(error).__name__}")
                print(name, check.__name__, repr(error)[:400], file=sys.stderr)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def refused() -> str:
    """The classes of transformers that are refused, as Markdown: those with a reason, then those by their towers."""
    reasons = dict.fromkeys(REFUSED.values())
    starts = {reason: [f"`{start}...`" for start, other in REFUSED.items() if other == reason] for reason in reasons}
    rows = [f"| {', '.join(names)} | {reason} |" for reason, names in starts.items()]
    rows += [f"| {', '.join(sorted(names))} | {reason} |" for reason, names in _by_tower().items()]
    return "\n".join(rows)


def _by_tower() -> dict[str, set[str]]:
    """Classes whose configuration says why."""
    found: dict[str, set[str]] = {}
    for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        family = any(row.vlm_class == name for row in families.FAMILIES)
        if family or any(name.startswith(start) for start in REFUSED):
            continue
        reason = str(reason_for([name], CONFIG_MAPPING[kind]()))
        found.setdefault(re.sub(r"'\w+'", "transformer of its own", reason), set()).add(f"`{name}`")
    return found


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    for mark, content in (("table", table()), ("refused", refused())):
        begin, end = f"<!-- {mark}:begin -->", f"<!-- {mark}:end -->"
        head, tail = text.split(begin)[0], text.split(end)[1]
        title = "| class | why |\n|---|---|\n" if mark == "refused" else ""
        text = f"{head}{begin}\n{title}{content}\n{end}{tail}"
    DOCUMENT.write_text(text)
    print(text)
