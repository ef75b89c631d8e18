"""FareTrainer: its step against plain torch, and one test for each trap of the Trainer that it closes."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.distributed.tiny_run import RandomPixels, WithoutLabels, tiny_trainer
from transformers import AutoImageProcessor, CLIPImageProcessor, CLIPVisionModel, PreTrainedModel, TrainerCallback

from fare_hf.attacks import ThreatModel, pgd
from fare_hf.data.batches import collate_pixels, sample_generator
from fare_hf.data.pixels import Normalization
from fare_hf.encoders import embed, freeze, load_encoder, matmul_patch_embedding, text_class_embeddings
from fare_hf.objectives import FareObjective, TecoaObjective
from fare_hf.training import FareConfig, FareTrainer

# With its usual 1e-8, AdamW's first step is the sign of the gradient, and rounding decides where the gradient is 0.
EPSILON = 1e-2


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def step_by_hand(
    folder: Path, processor: CLIPImageProcessor, embedding: str, samples: list[int], norm: str, eps: str, size: str
) -> PreTrainedModel:
    """One FARE step in plain torch: PGD-2 from per-sample starts, then AdamW."""
    encoder = load_encoder(str(folder), embedding)
    original = freeze(copy.deepcopy(encoder))
    normalization, threat_model = Normalization.from_processor(processor), ThreatModel(norm, eps)
    pixels = collate_pixels([RandomPixels()[index] for index in samples])["pixel_values"]
    target = embed(original, normalization(pixels), embedding).detach()

    def loss_fn(points: torch.Tensor) -> torch.Tensor:
        distance = (embed(encoder, normalization(points), embedding) - target).square().sum(-1)
        return distance if distance.ndim == 1 else distance.mean(1)

    generators = [sample_generator(42, 0, index) for index in samples]
    start = [threat_model.random_start(p[None], g) for p, g in zip(pixels, generators, strict=True)]
    parameters = [parameter for parameter in encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, eps=EPSILON)
    # The trainer's form of the patch embedding: of the other, whose gradients differ in the last digits, a pixel whose
    # gradient is nearly 0 could take the step in the other direction. That both agree is in test_encoders.
    with matmul_patch_embedding(encoder):
        adversarial = pgd(loss_fn, pixels, threat_model, steps=2, step_size=size, start=torch.cat(start))
        loss_fn(adversarial).mean().backward()
    optimizer.step()
    return encoder


class Recorder(TrainerCallback):
    """Keeps the sample indices of the batches, by wrapping compute_loss."""

    def __init__(self, trainer: FareTrainer) -> None:
        self.samples: list[list[int]] = []
        inner = trainer.compute_loss

        def compute_loss(model: Any, inputs: Any, **kwargs: Any) -> Any:
            self.samples.append(inputs["index"].tolist())
            return inner(model, inputs, **kwargs)

        trainer.compute_loss = compute_loss  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("embedding", "attack"),
    [
        ("projected", ("linf", "4/255", "2/255")),
        ("pooled", ("linf", "4/255", "2/255")),
        ("tokens", ("linf", "4/255", "2/255")),
        ("projected", ("linf", "8/255", "3/255")),
        ("projected", ("l2", "0.5", "0.3")),
    ],
)
def test_one_step_is_the_step_by_hand(
    embedding: str, attack: tuple[str, str, str], clip_folder: Path, processor: CLIPImageProcessor, tmp_path: Path
) -> None:
    options = {"embedding": embedding, "max_steps": 1, "lr_scheduler_type": "constant", "adam_epsilon": EPSILON}
    options |= dict(zip(("norm", "eps", "attack_step_size"), attack, strict=True))
    options["weight_decay"] = 0.1  # large enough to see that biases and norms decay too, as in the paper
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    recorder = Recorder(trainer)
    trainer.train()
    expected = weights(step_by_hand(clip_folder, processor, embedding, recorder.samples[0], *attack))
    trained = weights(trainer.model)
    for name in trained:
        torch.testing.assert_close(trained[name], expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("embedding", ["projected", "pooled", "tokens"])
def test_every_parameter_that_should_move_moves_and_no_other(
    embedding: str, clip_folder: Path, tmp_path: Path
) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), embedding=embedding, max_steps=2)
    before = weights(trainer.model)
    original = weights(trainer.original)
    trainer.train()
    unused = ("post_layernorm", "encoder.layers.2") if embedding == "tokens" else ()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert torch.equal(parameter, before[name]) == name.startswith(unused or ("-",)), name
    assert all(torch.equal(parameter, original[name]) for name, parameter in trainer.original.named_parameters())
    assert all(parameter.grad is None for parameter in trainer.original.parameters())


def test_training_lowers_the_robust_loss_and_logs_what_it_did(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=12, logging_steps=4)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert {"attack_gain", "cosine_clean", "cosine_adversarial", "images_per_second", "grad_norm"} <= set(line)
        assert line["attack_gain"] > 1
        assert line["cosine_adversarial"] < line["cosine_clean"] <= 1 + 1e-6
        assert line["images_per_second"] > 0


def test_clean_forwards_happen_at_logging_steps_only(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=4, logging_steps=4, logging_first_step=True)
    calls: list[int] = []
    trainer.model.register_forward_hook(lambda *_: calls.append(trainer.state.global_step))
    trainer.train()
    assert [calls.count(step) for step in range(4)] == [4, 3, 3, 4]  # two attack steps, the update, the measurement


def test_accumulation_changes_nothing_where_the_last_batch_is_smaller(clip_folder: Path, tmp_path: Path) -> None:
    """Ten images: batches of 4, 4 and 2 make one update, which is a mean over images."""
    weights = []
    for batch, accumulation in ((10, 1), (4, 3)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        options |= {"optim": "sgd", "learning_rate": 1e-2, "max_steps": 2, "logging_steps": 1}
        trainer = tiny_trainer(str(clip_folder), str(tmp_path), RandomPixels(10), **options)
        trainer.train()
        weights.append((trainer.model.state_dict(), trainer.state.log_history))
    for name, value in weights[0][0].items():
        torch.testing.assert_close(weights[1][0][name], value, rtol=1e-5, atol=1e-7)
    losses = [[line["loss"] for line in history if "loss" in line] for _, history in weights]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[0]) == 2


def test_accumulation_changes_nothing_even_with_labels(clip_folder: Path, tmp_path: Path) -> None:
    """Fails without `loss_is_scaled_for_ga = False`: gradients four times too large."""
    results = []
    for name, batch, accumulation in (("one", 8, 1), ("four", 2, 4)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        options |= {"optim": "sgd", "learning_rate": 1e-2, "weight_decay": 0.0}
        trainer = tiny_trainer(str(clip_folder), str(tmp_path / name), max_steps=3, **options)
        trainer.train()
        results.append((weights(trainer.model), [x for x in trainer.state.log_history if "loss" in x][0]))
    (one, line_one), (four, line_four) = results
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=0, atol=1e-6, msg=name)
    for key in ("loss", "grad_norm", "cosine_clean", "attack_gain"):
        assert line_four[key] == pytest.approx(line_one[key], rel=1e-4)


def test_evaluation_without_labels_is_the_robust_loss_of_every_sample(clip_folder: Path, tmp_path: Path) -> None:
    """Fails without `prediction_step`: the Trainer returns no eval_loss; and a smaller last batch counts fairly."""
    losses = []
    for batch in (3, 10):
        trainer = tiny_trainer(
            str(clip_folder),
            str(tmp_path),
            eval_dataset=WithoutLabels(10),
            per_device_eval_batch_size=batch,
        )
        with torch.no_grad():
            trainer.model.visual_projection.weight.mul_(1.1)
        metrics = trainer.evaluate()
        assert metrics["eval_attack_gain"] > 1
        assert metrics["eval_cosine_adversarial"] < metrics["eval_cosine_clean"] <= 1 + 1e-6
        losses.append(metrics["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    trainer.state.global_step = 7
    assert trainer.evaluate()["eval_loss"] == losses[1]


@pytest.mark.parametrize("batch", [4, 16])
def test_evaluation_is_of_every_image_where_training_leaves_some_out(
    batch: int, clip_folder: Path, tmp_path: Path
) -> None:
    """`dataloader_drop_last`, as torch_compile wants it, would leave out two images of ten, or all of them."""
    losses = []
    for drop_last in (False, True):
        options = {"dataloader_drop_last": drop_last, "per_device_eval_batch_size": batch}
        trainer = tiny_trainer(str(clip_folder), str(tmp_path), eval_dataset=WithoutLabels(10), **options)
        losses.append(trainer.evaluate()["eval_loss"])
        assert trainer.args.dataloader_drop_last is drop_last
    assert losses[0] == losses[1]


def test_evaluation_does_not_touch_training(clip_folder: Path, tmp_path: Path) -> None:
    results = []
    for strategy in ("no", "steps"):
        options = {"eval_strategy": strategy, "eval_steps": 1, "eval_dataset": WithoutLabels(5)}
        trainer = tiny_trainer(str(clip_folder), str(tmp_path / strategy), max_steps=3, **options)
        trainer.train()
        evaluations = [line["step"] for line in trainer.state.log_history if "eval_loss" in line]
        assert evaluations == ([] if strategy == "no" else [1, 2, 3])
        results.append(weights(trainer.model))
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


@pytest.mark.parametrize("embedding", ["pooled", "projected"])
def test_resume_restores_weights_of_legacy_names(embedding: str, legacy_vision_folder: Path, tmp_path: Path) -> None:
    """Fails without `_load_from_checkpoint`: for `CLIPVisionModel` the Trainer loads nothing and only warns."""
    options = {"embedding": embedding, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options)
    whole.train()
    resumed = tiny_trainer(str(legacy_vision_folder), str(tmp_path), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    expected = weights(whole.model)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed.model).items())


def test_best_model_is_really_loaded(legacy_vision_folder: Path, tmp_path: Path) -> None:
    """Fails without `_load_best_model`; the loss is made to grow, so that the first checkpoint is the best. It is also
    what a run ends with that was cut off after its last checkpoint, and resumed."""

    class Worse(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
            metrics["eval_loss"] = float(state.global_step)

    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    options |= {"load_best_model_at_end": True, "eval_dataset": WithoutLabels(4), "callbacks": [Worse()]}
    options |= {"save_total_limit": 3}
    trainer = tiny_trainer(str(legacy_vision_folder), str(tmp_path), embedding="pooled", **options)
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    expected = CLIPVisionModel.from_pretrained(best).state_dict()
    assert best.endswith("checkpoint-1")
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    moved = (tmp_path / "checkpoint-1").parent.rename(tmp_path.with_name("moved"))
    longer = options | {"callbacks": [Worse()], "save_total_limit": 1}
    going_on = tiny_trainer(str(legacy_vision_folder), str(moved), embedding="pooled", **longer)
    going_on.train(resume_from_checkpoint=str(moved / "checkpoint-2"))
    assert going_on.state.best_model_checkpoint == str(moved / "checkpoint-1")
    assert all(torch.equal(value, expected[name]) for name, value in going_on.model.state_dict().items())
    resumed = tiny_trainer(str(legacy_vision_folder), str(moved), embedding="pooled", **options)
    resumed.train(resume_from_checkpoint="latest")
    assert resumed.state.global_step == 3
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    shutil.rmtree(moved / "checkpoint-1")
    with pytest.raises(ValueError, match="the best checkpoint 'checkpoint-1' is not in .*; put it back, or set"):
        tiny_trainer(str(legacy_vision_folder), str(moved), embedding="pooled", **options).train("latest")


def test_a_trainer_takes_a_name_for_its_encoder_and_processor(clip_folder: Path, tmp_path: Path) -> None:
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "attack_steps": 1, "use_cpu": True, "report_to": []}
    named = FareTrainer(str(clip_folder), FareConfig(str(tmp_path / "a"), **options), RandomPixels())
    loaded = FareTrainer(
        load_encoder(str(clip_folder)),
        FareConfig(str(tmp_path / "b"), **options),
        RandomPixels(),
        processing_class=AutoImageProcessor.from_pretrained(clip_folder),
    )
    for trainer in (named, loaded):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(named.model.parameters(), loaded.model.parameters(), strict=True))


def test_saved_configuration_has_no_use_cache(clip_folder: Path, tmp_path: Path) -> None:
    """Fails without `_save`: `Trainer.train` writes use_cache into the configuration."""
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1)
    trainer.train()
    trainer.save_model()
    assert "use_cache" not in json.loads((tmp_path / "config.json").read_text())


def test_a_nan_stops_training_with_step_and_sample(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), train_dataset=RandomPixels(32, poison=17))
    recorder = Recorder(trainer)
    with pytest.raises(ValueError, match=r"samples with index \[17\]") as caught:
        trainer.train()
    step = len(recorder.samples)
    assert 17 in recorder.samples[-1]
    assert str(caught.value).startswith(f"step {step}: ")


def test_a_diverged_encoder_stops_training(clip_folder: Path, tmp_path: Path) -> None:
    """Fails without the check: the Trainer would go on and log nan."""
    trainer = tiny_trainer(str(clip_folder), str(tmp_path))
    with torch.no_grad():
        trainer.model.visual_projection.weight.fill_(1e30)
    with pytest.raises(ValueError, match=r"step 1: the loss is not finite.*lower learning_rate"):
        trainer.train()


def test_a_loss_that_is_nan_after_a_sound_attack_stops_training(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path))

    class Broken(FareObjective):
        """FARE, and then NaN."""

        def __call__(self, *given: Any) -> torch.Tensor:
            return super().__call__(*given) * float("nan")

    trainer.objective = Broken()  # the attack has its own
    with pytest.raises(ValueError, match=r"step 1: the loss is not finite, samples with index"):
        trainer.train()


def test_random_starts_depend_on_seed_step_and_sample_alone(clip_folder: Path, tmp_path: Path) -> None:
    """Fails with the global generator, which `set_seed` makes the same on all ranks, and with one of the batch."""
    trainer = tiny_trainer(str(clip_folder), str(tmp_path))
    pixels = torch.full((3, 3, 32, 32), 0.5)
    state = torch.get_rng_state()
    batch = trainer.attack.random_start(pixels, torch.tensor([4, 9, 4]), 0)
    alone = trainer.attack.random_start(pixels[:1], torch.tensor([9]), 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(batch[1], alone[0])
    assert not torch.equal(batch[0], batch[1])
    assert not torch.equal(trainer.attack.random_start(pixels[:1], torch.tensor([9]), 1), alone)
    trainer.args.seed += 1
    assert not torch.equal(trainer.attack.random_start(pixels[:1], torch.tensor([9]), 0), alone)


def test_modes_flags_and_forwards_are_restored_after_a_step(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=1, logging_strategy="no")
    modes: list[bool] = []
    trainer.model.vision_model.encoder.layers[0].register_forward_hook(lambda m, *_: modes.append(m.training))
    trainer.train()
    assert modes == [False, False, True]
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    assert "forward" not in vars(trainer.model.vision_model.embeddings.patch_embedding)


def test_activation_checkpointing_changes_nothing(clip_folder: Path, tmp_path: Path) -> None:
    results = []
    for name, flag in (("off", False), ("on", True)):
        trainer = tiny_trainer(str(clip_folder), str(tmp_path / name), max_steps=2, activation_checkpointing=flag)
        forwards: list[bool] = []
        norm = trainer.model.vision_model.encoder.layers[0].layer_norm1
        norm.register_forward_hook(lambda part, *_, seen=forwards: seen.append(part.training))
        trainer.train()
        assert forwards.count(True) == (4 if flag else 2)  # of each update's forward, again in its backward pass
        results.append(weights(trainer.model))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=1e-6, msg=name)


def test_bf16_autocast_keeps_fp32_weights_and_pixels(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), max_steps=2, bf16=True)
    seen: list[torch.dtype] = []
    layer = trainer.model.vision_model.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_tecoa_learns_the_classes_under_attack(clip_folder: Path, tmp_path: Path) -> None:
    objective = TecoaObjective(text_class_embeddings(str(clip_folder), RandomPixels.class_names), logit_scale=10)
    options = {"objective": objective, "train_dataset": RandomPixels(8), "max_steps": 12, "logging_steps": 3}
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), **options)
    trainer.train()
    lines = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert lines[-1] < 0.9 * lines[0]


def test_epochs_reach_a_data_set_that_wants_them(clip_folder: Path, tmp_path: Path) -> None:
    trainer = tiny_trainer(str(clip_folder), str(tmp_path), train_dataset=RandomPixels(8), max_steps=3)
    trainer.train()
    assert trainer.train_dataset.epochs == {0, 1, 2}
