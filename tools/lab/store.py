"""Puts trained lab models into the package, rounded to 16 bits: `python -m tools.lab.store clip FOLDER`.

Everything that is reported of a lab model is measured after this rounding, on what is shipped.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    Idefics3Processor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionTransformer

from fare_hf.attacks import ThreatModel
from fare_hf.evaluation import RobustnessReport
from fare_hf.hub import save_robust_encoder
from fare_hf.lab.models import ITS_LLAMA, LANGUAGE, TOWER, WORDS
from fare_hf.lab.names import ENCODERS, MODELS, TOWERS
from fare_hf.lab.saving import save_with_report
from fare_hf.pretrained.weight_files import SINGLE
from tools.lab.train_smolvlm import AROUND

NAMES = {"fare-2": "FARE-2", "fare-4": "FARE-4", "tecoa-2": "TeCoA-2", "tecoa-4": "TeCoA-4"}


def store_clip(source: Path, folder: Path = MODELS / "clip") -> None:
    """The CLIP that `tools.lab.train_clip` left in `source`, with tokenizer and image processor."""
    CLIPModel.from_pretrained(source, dtype=torch.float16).save_pretrained(folder)
    CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
    AutoImageProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)


def store_llava(source: Path, folder: Path = MODELS / "llava") -> None:
    """The LLaVA that `tools.lab.train_llava` left: projector and language model, without the tower.

    The tower is the lab CLIP's own, which `fare_hf.lab.load_llava` puts back.
    """
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    tower_config = model.config.vision_config
    assert isinstance(tower_config, PreTrainedConfig)
    tower_config._name_or_path = ""  # where the tower lay on the machine that trained
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    LlavaProcessor.from_pretrained(source).save_pretrained(folder)
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(TOWER)}
    kept.pop("lm_head.weight")  # tied to the token embeddings
    save_file({name: tensor.half().contiguous() for name, tensor in kept.items()}, folder / LANGUAGE)


def store_smolvlm(source: Path, folder: Path = MODELS / "smolvlm") -> None:
    """The SmolVLM that `tools.lab.train_smolvlm` left, in bf16: tower, connector, and the words that it alone has.

    The rest of its language model is the lab LLaVA's own, which `fare_hf.lab.load_smolvlm` puts back.
    """
    model = SmolVLMForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    Idefics3Processor.from_pretrained(source).save_pretrained(folder)
    weights = model.state_dict()
    kept = {name: weights[name] for name in weights if "vision_model." in name or "connector." in name}
    kept[ITS_LLAMA + WORDS] = weights[ITS_LLAMA + WORDS][-len(AROUND) :]
    rounded = {name: tensor.bfloat16().contiguous() for name, tensor in kept.items()}
    save_file(rounded, folder / SINGLE, metadata={"format": "pt"})


def store_tower(name: str, training: Path, folder: Path, report: RobustnessReport | None = None) -> Path:
    """A robust tower of the SmolVLM that `fare_hf.train` left, in bf16, with its recipe and figures on its card.

    Args:
        name: of `TOWERS`.
        training: output folder of the training.
        folder: where it goes; what is there is replaced.
        report: of the SmolVLM with both towers; None for a card without figures.
    """
    shutil.rmtree(folder, ignore_errors=True)
    return save_robust_encoder(
        SmolVLMVisionTransformer.from_pretrained(training / "encoder", dtype=torch.bfloat16),
        folder,
        processor=AutoImageProcessor.from_pretrained(MODELS / "smolvlm", backend="pil", trust_remote_code=False),
        base_model="fare_hf-lab-smolvlm",
        threat_model=ThreatModel("linf", f"{name[-1]}/255"),
        training=json.loads((training / "training.json").read_text()),
        report=report,
        report_model=f"SmolVLM + {name}" if report else None,
        license="apache-2.0",
        repo_id=f"fare_hf-lab-{name}",
    )


def store_encoder(name: str, training: Path, folder: Path, report: RobustnessReport | None = None) -> Path:
    """A robust encoder that `fare_hf.train` left, in fp16, with its recipe and what was measured of it on its card.

    Args:
        name: of `ENCODERS`, such as `fare-4`.
        training: output folder of the training (`encoder/` and `training.json`).
        folder: where it goes; what is there is replaced.
        report: of all lab models; None for a card without figures.
    """
    recipe = json.loads((training / "training.json").read_text())
    encoder = CLIPVisionModelWithProjection.from_pretrained(training / "encoder", dtype=torch.float16)
    named = {"eps": f"{name[-1]}/255", "shown": NAMES[name], "repo_id": f"fare_hf-lab-{name}"}
    return save_with_report(encoder, recipe, folder, report=report, **named)


def main() -> None:
    """Parses the command line and stores one model."""
    parser = argparse.ArgumentParser(description="Puts a trained lab model into the package, rounded to 16 bits.")
    parser.add_argument("kind", choices=["clip", "llava", "smolvlm", *ENCODERS, *TOWERS])
    parser.add_argument("source", type=Path, help="folder that the training left")
    parser.add_argument("--report", type=Path, default=None, help="report.json for the card of an encoder")
    args = parser.parse_args()
    if args.kind == "clip":
        store_clip(args.source)
    elif args.kind == "llava":
        store_llava(args.source)
    elif args.kind == "smolvlm":
        store_smolvlm(args.source)
    else:
        report = RobustnessReport.load(args.report) if args.report else None
        store = store_tower if args.kind in TOWERS else store_encoder
        store(args.kind, args.source, MODELS / args.kind, report)


if __name__ == "__main__":
    main()
