"""What makes a step fast, each as far as a test can see it; and the options that make it cheaper."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers.distributed.tiny_run import RandomPixels, tiny_trainer
from helpers.syncs import counted_syncs
from torch.nn import functional as F

from fare_hf.attacks import ThreatModel
from fare_hf.data.batches import collate_pixels, sample_generator
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, load_encoder, text_class_embeddings
from fare_hf.encoders.modes import blocks_of
from fare_hf.lab import encoder_folder, load_training_set
from fare_hf.objectives import FareObjective, TecoaObjective
from fare_hf.training import FareConfig
from fare_hf.training.attack import attack_steps_at
from fare_hf.training.logging.measurements import Window
from fare_hf.training.trainable import train_first_blocks


def test_a_step_of_the_attack_makes_no_host_wait(clip_folder: Path, tmp_path: Path) -> None:
    """Syncs of a whole training do not grow with the steps of its attack: so many for each batch, for its checks."""
    counts = []
    for steps in (1, 6):
        options: dict[str, Any] = {"attack_steps": steps, "max_steps": 3, "logging_strategy": "no"}
        trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
        with counted_syncs("cpu") as syncs:
            trainer.train()
        counts.append(syncs.count)
    assert counts[0] == counts[1] > 0


def test_the_defaults_are_fused_and_use_sdpa(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1)
    trainer.train()
    assert trainer.optimizer.optimizer.defaults["fused"]
    assert trainer.model.config._attn_implementation == "sdpa"
    config = FareConfig(str(tmp_path), use_cpu=True)
    assert config.accelerator_config.non_blocking == config.dataloader_pin_memory  # what is pinned is not waited for


def test_the_attack_sees_half_weights_under_mixed_precision(clip_folder: Path, tmp_path: Path) -> None:
    for options, wanted in (({"bf16": True}, 1), ({"attack_bf16": True}, 1), ({}, 0)):
        trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1, **options)
        layer, seen = trainer.model.vision_model.encoder.layers[0].mlp.fc1, []
        layer.register_forward_hook(lambda part, *_, seen=seen: seen.append(part.weight.dtype))
        trainer.train()
        measured = [torch.float32]  # clean images, for the last line of the log
        assert seen == [torch.bfloat16 if wanted else torch.float32] * 2 + [torch.float32] + measured


def test_the_attack_multiplies_in_eight_bits_and_the_update_does_not(clip_folder: Path, tmp_path: Path) -> None:
    options = {"max_steps": 1, "attack_steps": 2, "logging_steps": 9}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), attack_fp8=True, **options)
    layer, seen = trainer.model.vision_model.encoder.layers[0].mlp.fc1, []
    layer.register_forward_hook(lambda part, _, output: seen.append(("forward" in vars(part), output.dtype)))
    trainer.train()
    assert seen == [(True, torch.bfloat16)] * 2 + [(False, torch.float32)] * 2  # the update; what is logged of it


def test_an_attack_in_eight_bits_is_as_strong(tmp_path: Path) -> None:
    """On an encoder that was really trained; what it found is judged in fp32."""
    dataset, folder = load_training_set("drawings"), str(encoder_folder("fare-4"))
    batch = collate_pixels([dataset[number] for number in range(8)])
    options = {"train_dataset": dataset, "original": load_encoder(str(encoder_folder("clip")))}
    losses = []
    for eight in (False, True):
        trainer = tiny_trainer(folder, str(tmp_path), attack_step_size="3/255", attack_fp8=eight, **options)
        found = trainer.attack(trainer.model, trainer.original, batch, 0)
        with torch.no_grad():
            embeddings = trainer.reading.embed(load_encoder(folder).eval(), found.pixels)
            losses.append(FareObjective()(embeddings, found.targets).mean().item())
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.parametrize("options", [{"torch_compile": True, "dataloader_drop_last": True}, {"attack_bf16": True}])
def test_eight_bits_refuse_what_they_exclude(options: dict[str, Any], clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="attack_fp8=True .* excludes?"):
        tiny_trainer(str(clip_folder), str(tmp_path), attack_fp8=True, **options)


def test_compiled_once_and_not_again(clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_DYNAMO_MODE"):
        monkeypatch.setenv(name, "no")
    torch._dynamo.reset()
    options = {"torch_compile": True, "torch_compile_backend": "eager", "dataloader_drop_last": True}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=4, logging_steps=1, **options)
    graphs: list[int] = []
    inner = trainer.compute_loss

    def compute_loss(*args: Any, **kwargs: Any) -> Any:
        loss = inner(*args, **kwargs)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return loss

    trainer.compute_loss = compute_loss  # type: ignore[method-assign]
    trainer.train()
    assert graphs[0] > 0 and graphs[1] == graphs[-1]


def test_how_accelerate_compiles_is_taken_over_or_refused(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "reduce-overhead")
    asked: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: asked.append(options))
    tiny_trainer(str(clip_folder), str(tmp_path))
    blocks = len(blocks_of(load_encoder(str(clip_folder)))[1])
    assert blocks > 1
    assert asked == [{"backend": "inductor", "mode": "reduce-overhead", "dynamic": False}] * 2 * blocks
    tiny_trainer(str(clip_folder), str(tmp_path), torch_compile_mode="default", dataloader_drop_last=True)
    assert asked[-1]["mode"] == "default"
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "True")
    tiny_trainer(str(clip_folder), str(tmp_path))
    assert len(asked) == 3 * 2 * blocks
    for name in ("DYNAMIC", "FULLGRAPH"):
        with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"dynamo's .*{name.lower()} is not used"):
            patch.setenv(f"ACCELERATE_DYNAMO_USE_{name}", "True")
            tiny_trainer(str(clip_folder), str(tmp_path))


def test_a_schedule_of_steps_grows_in_equal_parts(tmp_path: Path) -> None:
    config = FareConfig(str(tmp_path), use_cpu=True, attack_steps=4, attack_step_size="2/255", attack_steps_start=1)
    plan = [attack_steps_at(config, number / 8) for number in range(8)]
    assert [steps.count for steps in plan] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert plan[-1].size == 2 / 255 and plan[2].size == 4 / 255 and plan[0].size == 5 / 255  # 1.25 radii at most


def test_only_the_first_blocks_move(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), trained_blocks=1, max_steps=1)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved and all(".layers.0." in name or "embeddings" in name or "pre_layrnorm" in name for name in moved)
    assert any("patch_embedding" in name for name in moved)
    with pytest.raises(ValueError, match="trained_blocks=9, but the encoder has 3 blocks"):
        train_first_blocks(trainer.model, 9)


def test_evaluation_tells_both_accuracies_and_its_share_of_time(clip_folder: Path, tmp_path: Path) -> None:
    classes = TecoaObjective(text_class_embeddings(str(clip_folder), RandomPixels.class_names))
    options = {"eval_dataset": RandomPixels(7), "eval_strategy": "steps", "eval_steps": 1, "eval_attack_steps": 2}
    options |= {"save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "robust_accuracy", "max_steps": 2}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), validation=classes, **options)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "eval_loss" in line]
    assert len(lines) == 2
    for line in lines:
        assert 0 <= line["eval_robust_accuracy"] <= line["eval_clean_accuracy"] <= 1
        assert 0 < line["eval_share_of_time"] < 1
    assert trainer.state.best_metric == max(line["eval_robust_accuracy"] for line in lines)


def test_the_accuracies_are_those_by_hand(clip_folder: Path, processor: Any, tmp_path: Path) -> None:
    """Plain torch on the same images: cosines with the texts, clean and after PGD from the evaluation's own starts."""
    batch, encoder = collate_pixels([RandomPixels()[n] for n in range(24)]), load_encoder(str(clip_folder)).eval()
    pixels, labels = batch["pixel_values"], batch["labels"]
    normalization = Normalization.from_processor(processor)
    common = F.normalize(embed(encoder, normalization(pixels)).detach().mean(0), dim=0)
    texts = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    texts = F.normalize(texts - (texts @ common)[:, None] * common, dim=1)  # else all images were of one class
    options: dict[str, Any] = {"eval_dataset": RandomPixels(24), "eval_attack_steps": 2, "eps": "1/255"}
    options |= {"attack_step_size": "1/255", "attack_steps": 2}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), validation=TecoaObjective(texts), **options)
    found = trainer.evaluate()
    threat_model, generators = ThreatModel("linf", "1/255"), [sample_generator(42, -1, n) for n in range(24)]
    start = torch.cat([threat_model.random_start(p[None], g) for p, g in zip(pixels, generators, strict=True)])

    def logits(points: torch.Tensor) -> torch.Tensor:
        return 100 * F.normalize(embed(encoder, normalization(points)), dim=-1) @ texts.T

    points = start
    for _ in range(2):
        points = points.detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(logits(points), labels, reduction="sum"), points)
        points = threat_model.project(points.detach() + slope.sign() / 255, pixels)
    right = [logits(images).argmax(1) == labels for images in (pixels, points)]
    assert found["eval_clean_accuracy"] == pytest.approx(right[0].float().mean().item())
    assert found["eval_robust_accuracy"] == pytest.approx((right[0] & right[1]).float().mean().item())
    assert 0 < found["eval_robust_accuracy"] < found["eval_clean_accuracy"] < 1


@pytest.mark.parametrize(
    ("processes", "limit", "expected"), [(1, 16, (16, 8)), (8, 128, (16, 1)), (4, 12, (8, 4)), (128, 16, (1, 1))]
)
def test_a_global_batch_is_divided(
    processes: int, limit: int, expected: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FareConfig, "world_size", processes)
    options = {"global_batch_size": 128, "per_device_train_batch_size": limit, "use_cpu": True}
    config = FareConfig(str(tmp_path), **options)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == expected


def test_operations_of_a_window_are_counted(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1)
    trainer.window.peak = 1e9
    counted = Counter[str]()
    count = trainer.window.count
    trainer.window.count = lambda images, flops: (counted.update(flops=flops), count(images, flops))[1]
    trainer.args.logging_steps = trainer.state.logging_steps = 1
    trainer.train()
    assert counted["flops"] == 8 * trainer.flops.step(2)


def test_a_line_of_the_log_divides_by_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 images and 500 operations in two seconds, on a device whose peak is 1,000 a second."""
    window = Window(torch.device("cpu"))
    window.peak = 1000.0
    times = iter((10.0, 12.0))
    monkeypatch.setattr("fare_hf.training.logging.measurements.time.perf_counter", lambda: next(times))
    window.begin()
    window.count(24, 500)
    values = torch.tensor([[3.0, 2.0, 0.9, 0.5], [1.0, 2.0, 0.7, 0.3]])
    window.add(values)
    line = window.close(Accelerator(cpu=True))
    measured = {"attack_gain": 1.0, "cosine_clean": 0.8, "cosine_adversarial": 0.4}
    assert line == pytest.approx({**measured, "images_per_second": 12, "mfu": 0.25, "memory_gib": line["memory_gib"]})
    assert 0.05 < line["memory_gib"] < 64  # torch alone takes as much


@pytest.mark.parametrize(
    ("options", "half"), [({}, False), ({"bf16": True}, True), ({"attack_bf16": True}, True)], ids=str
)
def test_a_utilisation_is_of_the_precision_that_is_multiplied_in(
    options: dict[str, Any], half: bool, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        "fare_hf.training.logging.measurements.peak_flops", lambda device, half: asked.append(half) or 1e12
    )
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1, logging_steps=1, **options)
    trainer.train()
    assert asked == [half] and any("mfu" in line for line in trainer.state.log_history)


def test_images_of_all_processes_are_counted(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path))
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    batch = trainer.data_collator([RandomPixels()[number] for number in range(8)])
    trainer.compute_loss(trainer.model, batch)
    assert trainer.window.images == 24
