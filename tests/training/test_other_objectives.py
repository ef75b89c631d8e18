"""Trainings with the objectives of other papers: through the real Trainer, the command line and a checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.distributed.tiny_run import tiny_trainer
from helpers.train_command import refusal, run
from transformers import AutoImageProcessor

from fare_hf.encoders import embed, load_encoder
from fare_hf.encoders.reading import EncoderReading
from fare_hf.objectives import OBJECTIVES, BoundedFareObjective, FareObjective, SimClipObjective
from fare_hf.training import FareConfig, FareTrainer
from fare_hf.training.estimate import estimate


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a class, two noise images each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for number in range(2):
            Image.effect_noise((36, 40), 90).convert("RGB").save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("name", ["sim-clip", "agft", "bounded-fare", "anchored-fare"])
def test_the_command_line_trains_it_and_the_card_says_so(
    name: str, clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    run(clip_folder, images, tmp_path / name, "--objective", name, "--max_steps", "1")
    card = (tmp_path / name / "encoder" / "README.md").read_text()
    assert f"| objective | {name} |" in card and OBJECTIVES[name].citation in card
    assert OBJECTIVES[name].description in " ".join(card.split())
    said = {"sim-clip": "", "agft": "| softening | 0.4 |", "bounded-fare": "| clean bound | 0.1 |"}
    said |= {"anchored-fare": "| anchor weight | 1.0 |"}
    assert said[name] in card and ("| prompts |" in card) is (name in ("agft", "anchored-fare"))


class Recorded(BoundedFareObjective):
    """Keeps what the update was given and what it answered."""

    def update(self, embeddings: torch.Tensor, targets: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        self.seen = (embeddings, targets, clean)
        self.losses = super().update(embeddings, targets, clean)
        return self.losses


def test_the_update_gets_clean_embeddings_of_the_trained_encoder_and_its_loss_is_minimised(
    clip_folder: Path, tmp_path: Path
) -> None:
    objective = Recorded(bound=1e-6, multiplier=7.0)
    options = {"max_steps": 3, "learning_rate": 1e-2, "eps": "64/255", "logging_steps": 1, "optim": "sgd"}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), objective=objective, **options)
    batches: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []

    def remember(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        pixels = kwargs.get("pixel_values", args[0] if isinstance(args, tuple) and args else None)
        if module.training and pixels is not None and len(pixels) == 16:  # the update's: eight images, twice
            batches.append((pixels.detach().clone(), {k: v.clone() for k, v in module.state_dict().items()}))

    trainer.model.register_forward_pre_hook(remember, with_kwargs=True)
    trainer.train()
    assert len(batches) == 3
    pixels, weights = batches[-1]
    trainer.model.load_state_dict(weights)
    attacked, targets, clean = objective.seen
    with torch.no_grad():
        both = trainer.model(pixels).image_embeds
        original = trainer.original(pixels[8:]).image_embeds
    assert torch.allclose(torch.cat([attacked, clean]), both, atol=1e-5) and not torch.equal(attacked, clean)
    assert torch.allclose(targets, original, atol=1e-5) and clean.requires_grad
    lines = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert lines[-1] == pytest.approx(objective.losses.mean().item(), rel=1e-3)
    assert objective.losses.mean() > 1.01 * objective(attacked, targets).mean()  # the penalty is in it


def test_sim_clip_lowers_its_loss(clip_folder: Path, tmp_path: Path) -> None:
    options = {"objective": SimClipObjective(), "max_steps": 12, "logging_steps": 3, "learning_rate": 1e-3}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    trainer.train()
    lines = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert 0 < lines[-1] < 0.9 * lines[0]


def test_a_clean_image_in_the_update_costs_as_much_as_an_attacked_one(clip_folder: Path, tmp_path: Path) -> None:
    costs = {}
    for name in ("fare", "bounded-fare"):
        args = FareConfig(str(tmp_path), objective=name, max_steps=2, warmup_steps=0, use_cpu=True)
        costs[name] = estimate("openai/clip-vit-base-patch32", args)
    fare, bounded = costs["fare"], costs["bounded-fare"]
    # In units of a forward: 1 for the target, 10 steps of about 2, an update of about 3, and another one.
    assert bounded.flops / fare.flops == pytest.approx(27 / 24, rel=0.01)
    assert bounded.memory.update == 2 * fare.memory.update and bounded.memory.attack == fare.memory.attack


def test_tokens_and_embedding_train_together_with_their_weight_on_the_card(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    joined = ("--embedding", "projected+tokens", "--patch_weight", "0.5")
    run(clip_folder, images, tmp_path / "run", *joined, "--save_strategy", "steps", "--save_steps", "1")
    card = (tmp_path / "run" / "encoder" / "README.md").read_text()
    assert "| embedding | projected+tokens |" in card and "| patch weight | 0.5 |" in card
    shutil.rmtree(tmp_path / "run" / "encoder")
    resume = ("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2"))
    said = refusal(clip_folder, images, tmp_path / "run", *joined[:3], "2", *resume)
    assert "patch_weight 0.5 there and 2.0 here" in said
    said = refusal(clip_folder, images, tmp_path / "out", *joined[2:])
    assert "patch_weight=0.5 is not read by embedding='projected'; leave it out" in said
    said = refusal(clip_folder, images, tmp_path / "out", *joined[:3], "0")
    assert "patch_weight=0.0 is not positive; give 1, or leave it out" in said


def test_the_trainer_minimises_the_weighted_sum_of_both_distances(clip_folder: Path, tmp_path: Path) -> None:
    options = {"embedding": "projected+tokens", "patch_weight": 3.0, "max_steps": 4, "learning_rate": 1e-3}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    trainer.train()
    pixels, (model, original) = torch.rand(3, 3, 32, 32), (trainer.model, trainer.original)
    fare, normalised = (
        FareObjective(),
        EncoderReading.of(model, "tokens", trainer.processing_class).normalization(pixels),
    )
    apart = [
        fare(*(embed(encoder, normalised, name) for encoder in (model, original))) for name in ("projected", "tokens")
    ]
    joined = trainer.objective(*(trainer.reading.embed(encoder, pixels) for encoder in (model, original)))
    assert torch.allclose(joined, apart[0] + 3 * apart[1], rtol=1e-4) and apart[1].min() > 0


def test_a_bound_is_of_the_run_and_of_the_objective_that_reads_it(
    clip_folder: Path, images: Path, tmp_path: Path
) -> None:
    bounded = ("--objective", "bounded-fare", "--clean_bound", "0.05")
    saving = ("--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1")
    run(clip_folder, images, tmp_path / "run", *bounded, *saving)
    assert "| clean bound | 0.05 |" in (tmp_path / "run" / "encoder" / "README.md").read_text()
    shutil.rmtree(tmp_path / "run" / "encoder")
    other = (*bounded[:3], "0.2", *saving, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-1"))
    assert "clean_bound 0.05 there and 0.2 here" in refusal(clip_folder, images, tmp_path / "run", *other)
    said = refusal(clip_folder, images, tmp_path / "out", "--clean_bound", "0.05")
    assert "clean_bound=0.05 is not read by objective='fare'; leave it out" in said
    said = refusal(clip_folder, images, tmp_path / "out", *bounded[:3], "0")
    assert "clean_bound=0.0 is not positive; give 0.1, or leave it out" in said
    config = FareConfig(str(tmp_path), objective="bounded-fare", clean_bound=0.05, use_cpu=True)
    processor = AutoImageProcessor.from_pretrained(clip_folder)
    with pytest.raises(ValueError, match="args.clean_bound=0.05 is not objective.bound=0.1; leave it out"):
        encoder = load_encoder(str(clip_folder))
        FareTrainer(encoder, config, processing_class=processor, objective=BoundedFareObjective(0.1))
    assert FareTrainer(encoder, config, processing_class=processor).objective.settings()["clean bound"] == 0.05
