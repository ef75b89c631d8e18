"""Is a robust figure real, or do useless gradients hide the attack? (Athalye et al. 2018; Carlini et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fare_hf.attacks import (
    ClassifierLoss,
    ThreatModel,
    apgd,
    check_pixels,
    class_stages,
    ensemble_name,
    format_eps,
    predicted_classes,
    square,
)
from fare_hf.evaluation.attack_loop import Stage, attack_nested, check_plan
from fare_hf.evaluation.report.intervals import wilson_interval
from fare_hf.evaluation.report.rows import Row, fraction_row
from fare_hf.evaluation.result import Evaluation
from fare_hf.evaluation.resume import SavedBatches, images_digest, labels_digest
from fare_hf.evaluation.zero_shot.classification import Attacks, clean_pass

__all__ = ["MaskingCheck", "MaskingReport", "check_gradient_masking"]

LogitsFn = Callable[[Tensor], Tensor]
WIDE = "32/255"


@dataclass(frozen=True)
class MaskingCheck:
    """One check.

    Attributes:
        name: "more steps", "black box", "wide ball" or "transfer".
        passed: whether the direct attack holds against it.
        accuracy: robust accuracy that the check measured.
        limit: what it must not fall below ("wide ball": must not exceed).
        fooled_alone: samples that this attack fools and the direct one does not.
        sentence: the finding in words.
    """

    name: str
    passed: bool
    accuracy: float
    limit: float
    fooled_alone: int
    sentence: str


@dataclass(frozen=True, kw_only=True)
class MaskingReport(Evaluation):
    """All checks beside the figure they are about; rows: the direct attack, then one a check.

    Attributes:
        accuracy: robust accuracy under the direct attack.
        ci: its 95 % Wilson interval.
        n: samples.
        attack: name of the direct attack.
        threat_model: its ball, as text.
        checks: in the order they were run.
    """

    accuracy: float
    ci: tuple[float, float]
    n: int
    attack: str
    threat_model: str
    checks: list[MaskingCheck]

    @property
    def passed(self) -> bool:
        """Whether no check found the direct attack wanting."""
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        names = ("accuracy", "ci", "n", "attack", "threat_model")
        checks = [asdict(check) for check in self.checks]
        return {name: getattr(self, name) for name in names} | {"checks": checks, "passed": self.passed}

    def to_markdown(self) -> str:
        """The figure, and one line a check."""
        low, high = self.ci
        head = f"Robust accuracy {100 * self.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}] % "
        lines = [f"- {'ok' if check.passed else 'FAILED'}, {check.name}: {check.sentence}" for check in self.checks]
        return "\n".join([f"{head}under {self.attack}, {self.threat_model}, n = {self.n}.", "", *lines]) + "\n"


def check_gradient_masking(
    logits_of: LogitsFn,
    pixels: Tensor,
    labels: Tensor,
    threat_model: ThreatModel,
    *,
    surrogate: LogitsFn | None = None,
    steps: int = 100,
    restarts: int = 1,
    target_classes: int = 9,
    queries: int = 5000,
    more: int = 4,
    batch_size: int = 128,
    seed: int = 0,
    model: str = "classifier",
    dataset: str = "images",
    folder: str | Path | None = None,
    distributed: bool = False,
) -> MaskingReport:
    """Run the `paper` ensemble, then four attempts that must not do better than it.

    - more steps: `more` times the steps do not lower the accuracy below the interval of the figure;
    - black box: Square, without a gradient, is not stronger than the white-box attack;
    - wide ball: at eps = 32/255 (linf; under l2 eight times the radius) nothing better than chance is left;
    - transfer: what fools `surrogate` is not stronger than the direct attack.

    "Not stronger" means: robust accuracy not below the lower end of the direct figure's 95 % interval. All attacks run
    on the same samples, and `fooled_alone` counts those that only the other attack fools.

    Args:
        logits_of: pixels (B, C, H, W) in [0, 1] to logits (B, K); freeze the model around the call.
        pixels: clean images (N, C, H, W) in [0, 1].
        labels: (N,) true classes.
        threat_model: of the figure in question.
        surrogate: logits of another model, say the original CLIP; None leaves the transfer check out.
        steps, restarts, target_classes: of the direct attack.
        queries: of Square.
        more: factor on the steps, at least 2.
        batch_size, seed: as named.
        model, dataset: names for the rows.
        folder: of this call alone, where each finished batch of each attack is written down, so that an interrupted
            call, made again, goes on after the last one with the same result; delete it when the result is kept.
        distributed: divide the batches among the processes of accelerate or torchrun, which must all call this; every
            one of them gets what one process alone would.

    Returns:
        The checks, each with what was found and whether it is as it should be.

    Raises:
        ValueError: a factor below 2, a folder of another run, and what the attacks raise.

    Example:
        >>> logits_of = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> pixels = torch.rand(4, 3, 8, 8)
        >>> labels = logits_of(pixels).argmax(1)
        >>> threat = ThreatModel("linf", "8/255")
        >>> report = check_gradient_masking(logits_of, pixels, labels, threat, steps=5, queries=20)
        >>> len(report.checks) > 0
        True
    """
    if more < 2:
        raise ValueError(f"more {more} does not make the attack longer: pass a factor of at least 2.")
    check_pixels(pixels)
    counts = {"steps": steps, "restarts": restarts, "batch_size": batch_size, "queries": queries}
    check_plan(len(pixels), [threat_model], None, seed, {"model": model, "dataset": dataset}, **counts)
    names = {"model": model, "task": "gradient masking", "dataset": dataset}
    told: dict[str, Any] = {"threat_model": threat_model.to_dict(), "target_classes": target_classes, "more": more}
    told |= {"seed": seed, "labels": labels_digest(labels)} | names | counts
    saved = SavedBatches.claimed(folder, lambda: told | {"images": images_digest(pixels)})
    if folder is not None:
        _check_models(saved, {"model": logits_of, "surrogate": surrogate}, pixels[:batch_size], distributed)
    victim = _Victim(logits_of, pixels, labels, batch_size, seed, saved, distributed)
    stages = class_stages(victim.classes, target_classes, "paper")[0]
    name = ensemble_name(stages)

    def ensemble(check: str, ball: ThreatModel, length: int) -> Tensor:
        effort = {"steps": length, "restarts": restarts, "queries": queries}
        return victim.fooled(ball, [victim.attacks(check).run(one, at, **effort) for at, one in enumerate(stages)])

    def row(metric: str, other: Tensor, attack: str, length: int, ball: ThreatModel = threat_model) -> Row:
        used = {"name": attack, "steps": length, "restarts": restarts, "seed": seed}
        facts: dict[str, Any] = {**names, "metric": metric, "threat_model": ball, "attack": used}
        return fraction_row((~other).tolist(), None, seed, **facts)

    fooled = ensemble("direct", threat_model, steps)
    direct = row("accuracy", fooled, name, steps)
    checks, rows = [], [direct]

    def add(check: str, other: Tensor, attack: str, length: int, what: str) -> None:
        accuracy, alone = 1 - other.float().mean().item(), int((other & ~fooled).sum())
        sentence = f"{what} leaves {100 * accuracy:.1f} %, and fools {alone} samples that the direct attack does not"
        passed = accuracy >= direct.ci[0] - 1e-9
        checks.append(MaskingCheck(check, passed, accuracy, direct.ci[0], alone, sentence))
        rows.append(row(f"accuracy, {check}", other, attack, length))

    other = ensemble("more steps", threat_model, more * steps)
    add("more steps", other, name, more * steps, f"{name} with {more * steps} steps")
    other = victim.fooled(threat_model, [victim.square(queries)])
    add("black box", other, "square", queries, f"Square with {queries} queries")
    wide = ThreatModel(threat_model.norm, WIDE if threat_model.norm == "linf" else 8 * threat_model.eps)
    other = ensemble("wide ball", wide, steps)
    checks.append(_wide_ball(wide, other, 1 / victim.classes))
    rows.append(row("accuracy, wide ball", other, name, steps, wide))
    if surrogate is not None:
        what = f"APGD-CE on the surrogate ({steps} steps), replayed,"
        other = victim.fooled(threat_model, [victim.transfer(surrogate, steps)])
        add("transfer", other, "apgd-ce on the surrogate", steps, what)
    facts = {"accuracy": direct.value, "ci": direct.ci, "n": direct.n, "attack": name}
    return MaskingReport.of_rates(rows, seed, threat_model=str(threat_model), checks=checks, **facts)


def _check_models(
    saved: SavedBatches, models: Mapping[str, LogitsFn | None], pixels: Tensor, distributed: bool
) -> None:
    """Refuses a run that began with other models, of which nothing is known but what they say of some images."""
    with torch.no_grad():
        for name, logits_of in models.items():
            said = torch.zeros(1) if logits_of is None else logits_of(pixels)
            saved.check_same(name, said, distributed=distributed)


def _wide_ball(ball: ThreatModel, fooled: Tensor, chance: float) -> MaskingCheck:
    left = int((~fooled).sum())
    low, accuracy = wilson_interval(left, len(fooled))[0], left / len(fooled)
    sentence = f"at eps = {format_eps(ball.eps)} {100 * accuracy:.1f} % are left, chance is {100 * chance:.1f} %"
    return MaskingCheck("wide ball", low <= chance, accuracy, chance, 0, sentence)


class _Victim:
    """A classifier with the samples it is attacked on. Arguments as for `check_gradient_masking`."""

    def __init__(
        self,
        logits_of: LogitsFn,
        pixels: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        saved: SavedBatches,
        distributed: bool,
    ) -> None:
        first_pass = partial(clean_pass, logits_of, pixels, labels, pixels.device, batch_size, distributed)
        clean = saved.once("clean", first_pass, distributed=distributed)
        logits, self.truth = clean["logits"].to(pixels.device), clean["labels"].to(pixels.device)
        self.classes, self.right = logits.shape[1], (predicted_classes(logits) == self.truth).tolist()
        self.all = Attacks(logits_of, pixels, logits, self.truth, seed, saved, distributed)
        self.options: dict[str, Any] = {"batch_size": batch_size, "distributed": distributed}

    def attacks(self, check: str) -> Attacks:
        """Those of one check, with files of their own."""
        return replace(self.all, saved=self.all.saved.part(check.replace(" ", "-")))

    def fooled(self, ball: ThreatModel, stages: Sequence[Stage]) -> Tensor:
        """Who is fooled by one attack after the other, (N,) bool; clean mistakes count too."""
        alive = [index for index, right in enumerate(self.right) if right]
        (outcome,) = attack_nested(alive, [ball], stages, **self.options)
        return ~torch.tensor(outcome.robust(len(self.right)))

    def square(self, queries: int) -> Stage:
        """Square on the margin."""

        def attack(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
            loss = ClassifierLoss(self.all.logits_of, self.truth[batch], "margin")
            return square(loss, pixels, threat, queries=queries, generator=rng).pixels

        return self.attacks("black box").stage(0, attack)

    def transfer(self, surrogate: LogitsFn, steps: int) -> Stage:
        """Points of the highest loss on the surrogate, not the first that fool it: they carry over better."""

        def attack(pixels: Tensor, batch: list[int], threat: ThreatModel, rng: torch.Generator) -> Tensor:
            loss = ClassifierLoss(surrogate, self.truth[batch])
            return apgd(lambda points: loss(points)[0], pixels, threat, steps=steps, generator=rng).pixels

        return self.attacks("transfer").stage(0, attack)
