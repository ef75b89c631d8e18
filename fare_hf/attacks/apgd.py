"""Auto-PGD (Croce and Hein, ICML 2020, arXiv 2003.01690, algorithm 1): PGD that chooses its own step sizes.

Each sample starts with step 2 eps and momentum 0.75. At checkpoints (22 % of the steps, then ever closer, never closer
than 6 %) a sample whose loss stopped rising halves its step and goes back to its best point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from fare_hf.attacks.gradient import AttackedLoss, LossFn, check_steps, select
from fare_hf.attacks.state import open_state, seal_state
from fare_hf.attacks.threat_model import ThreatModel, check_pixels, check_start, check_threat_model

_MOMENTUM = 0.75  # alpha in the paper
_RHO = 0.75  # share of steps since the last checkpoint that must have raised the loss

Save = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True)
class ApgdResult:
    """What `apgd` found for each sample.

    Attributes:
        pixels: adversarial pixels (B, C, H, W), fp32, inside the threat model: the fooling point of the highest loss
            where one was found, else the point of the highest loss.
        loss: (B,) fp32, the loss at these pixels.
        success: (B,) bool, fooled at these pixels; None when `loss_fn` gives no success.
    """

    pixels: Tensor
    loss: Tensor
    success: Tensor | None


def apgd(
    loss_fn: LossFn,
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    stop_fooled: bool = False,
    save: Save | None = None,
    save_every: int = 100,
    resume: Mapping[str, Tensor] | None = None,
) -> ApgdResult:
    """Maximise each sample's loss with Auto-PGD, and keep its best point.

    A run makes `steps` forward-backward passes and one forward pass. Every run sees the whole batch; a sample fooled
    in one keeps its point in those that follow, and these stop once all samples are fooled. Works inside
    `torch.no_grad()`; no `param.grad` is touched.

    Args:
        loss_fn: `(B, C, H, W) fp32 in [0, 1] -> (B,)`, to be maximised, or `-> (loss, success)`; a sample's result
            must depend on its own pixels only.
        pixels: clean images (B, C, H, W) in [0, 1]; fp16 and bf16 are cast to fp32.
        threat_model: what is allowed.
        steps: steps of each run, at least 1.
        restarts: number of runs, at least 1, each from a new random start.
        generator: source of the random starts; None is a fresh one with seed 0 (the global RNG never moves).
        start: where the first run starts instead, (B, C, H, W); projected onto the threat model first.
        stop_fooled: leave a sample out of the batch from its first fooling point on, which is then its result, at
            one host sync a step. `loss_fn` must give `success` and have `select(rows)`.
        save: called with the state of the run after every `save_every` steps, to go on from it one day.
        save_every: see `save`.
        resume: a state that `save` was given for the same images, steps, threat model and `stop_fooled` (one restart
            only): the run goes on from there, to the same result. It is sealed: any other state is refused.

    Returns:
        The best points, (B, 3, H, W), their losses, and for a loss that says who is fooled, who was.

    Raises:
        TypeError, ValueError: wrong pixels, start, steps or restarts; a state of another run, or one that was changed;
            a loss of the wrong shape; a NaN loss or a NaN or infinite gradient (noticed at the end of a run, naming
            the first step and its samples); a result outside the threat model.

    Example:
        >>> loss = lambda pixels: pixels.flatten(1).sum(1)
        >>> found = apgd(loss, torch.full((1, 3, 8, 8), 0.5), ThreatModel("linf", "4/255"), steps=10)
        >>> round(float(found.pixels.min() * 255 - 127.5), 3)
        4.0
    """
    check_steps(steps)
    check_steps(restarts, "restarts")
    check_steps(save_every, "save_every")
    check_threat_model(threat_model)
    check_pixels(pixels)
    if start is not None:
        check_start(start, pixels)
    if restarts > 1 and (save is not None or resume is not None):
        raise ValueError(f"restarts {restarts} with a saved state: save and resume runs one at a time.")
    if resume is not None and not isinstance(resume, Mapping):
        raise TypeError(f"resume {resume!r} is a {type(resume).__name__}: pass a state that save was given.")
    clean = pixels.detach().float()
    generator = generator or torch.Generator().manual_seed(0)
    best: ApgdResult | None = None
    for run in range(restarts):
        given = start if run == 0 else None
        first = threat_model.random_start(clean, generator) if given is None else threat_model.project(given, clean)
        if best is not None and stop_fooled and best.success is not None:
            found = _on_survivors(best, loss_fn, clean, first, threat_model, steps)
        else:
            attacked = AttackedLoss(loss_fn, len(clean), clean.device)
            climb = _Run(attacked, clean, first, threat_model, steps, stop_fooled, resume)
            found = climb.finish(save, save_every)
        best = found if best is None else _merge(best, found)
        if best.success is not None and run + 1 < restarts and bool(best.success.all()):
            break
    assert best is not None
    threat_model.check(best.pixels, clean)
    return best


def check_state(
    saved: Mapping[str, Tensor],
    pixels: Tensor,
    threat_model: ThreatModel,
    *,
    steps: int,
    stop_fooled: bool = False,
    where: str = "the saved state",
) -> dict[str, Tensor]:
    """The tensors of a state that `apgd` may go on from; arguments as there.

    Raises:
        ValueError: it is of another run, or was changed; the message begins with `where`.
    """
    clean, settings = pixels.detach().float(), _settings(steps, stop_fooled)
    if "step" in saved and saved["step"].shape == (2,) and (found := saved["step"].tolist()[1]) != steps:
        raise ValueError(f"{where} is of {found} steps, asked for are {steps}: resume the run that was saved.")
    return open_state(saved, clean, threat_model, settings, names=_NEEDED, optional=_OPTIONAL, where=where)


def _settings(steps: int, stop_fooled: bool) -> str:
    return f"{steps} steps, stop_fooled={stop_fooled}"


def checkpoints(steps: int) -> list[int]:
    """The steps after which step sizes are reviewed: the paper's `ceil(p_j * steps)`, 0 not included.

    `p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06)`, in whole percent to be exact.
    """
    percents = [0, 22]
    while percents[-1] < 100:
        percents.append(percents[-1] + max(percents[-1] - percents[-2] - 3, 6))
    return sorted({-(-percent * steps // 100) for percent in percents[1:] if percent <= 100})


@dataclass
class _State:
    """Everything a run remembers of each sample, first dimension B (b once fooled samples were left out).

    `peak` is the paper's x_max (by loss alone); `best` prefers points that fool. The paper's condition 2 compares with
    the step size of the checkpoint before, and there is none at first: `just_halved` begins true.
    """

    points: Tensor
    previous: Tensor
    gradient: Tensor
    peak_points: Tensor
    peak_gradient: Tensor
    peak_loss: Tensor
    best_points: Tensor
    best_loss: Tensor
    best_success: Tensor | None
    sizes: Tensor
    rises: Tensor
    last_loss: Tensor
    last_best: Tensor
    just_halved: Tensor

    def select(self, rows: Tensor) -> _State:
        """Some samples."""
        parts: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            parts[field.name] = None if value is None else value[rows]
        return _State(**parts)


_OPTIONAL = ("best_success", "done_pixels", "done_loss", "done_success")
_NEEDED = ("step", "rows", *(field.name for field in fields(_State) if field.name not in _OPTIONAL))


class _Run:
    """One run of the algorithm from one point."""

    def __init__(
        self,
        attacked: AttackedLoss,
        clean: Tensor,
        points: Tensor,
        threat_model: ThreatModel,
        steps: int,
        stop_fooled: bool = False,
        resume: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.attacked, self.clean, self.threat_model, self.steps = attacked, clean, threat_model, steps
        self.stop_fooled = stop_fooled
        self.step = 0
        self._reviews = checkpoints(steps)
        self._project = threat_model.projector(clean)
        self._done: ApgdResult | None = None
        if resume is not None:
            self._load(resume)
            return
        loss, success, gradient = attacked.gradient(points)
        if stop_fooled and success is None:
            raise ValueError("loss_fn gives no success to stop at: return (loss, success), or stop_fooled=False.")
        peak, best = (points, gradient, loss), (points, loss, success)
        schedule = (torch.full_like(loss, 2 * threat_model.eps), torch.zeros_like(loss), loss, loss)
        fresh = torch.ones_like(loss, dtype=torch.bool)
        self.state = _State(points, points, gradient, *peak, *best, *schedule, fresh)

    def finish(self, save: Save | None = None, save_every: int = 100) -> ApgdResult:
        """All steps that are left."""
        while self.step < self.steps:
            if self.stop_fooled and not self._drop_fooled():
                break
            self._advance()
            if save is not None and self.step % save_every == 0:
                self.attacked.raise_if_bad()  # a state does not remember it
                save(self._saved())
        self.attacked.raise_if_bad()
        return self._result()

    def _advance(self) -> None:
        now, self.step = self.state, self.step + 1
        moved = self._project(now.points + _each(now.sizes) * self.threat_model.direction(now.gradient))
        if self.step > 1:
            step, last = _MOMENTUM * (moved - now.points), (1 - _MOMENTUM) * (now.points - now.previous)
            moved = self._project(now.points + step + last)
        now.previous, now.points = now.points, moved
        if self.step == self.steps:  # nothing follows that would need the gradient
            self._keep_best(*self.attacked.value(moved))
            return
        loss, success, now.gradient = self.attacked.gradient(moved)
        self._keep_best(loss, success)
        higher = loss > now.peak_loss
        now.peak_points = torch.where(_each(higher), moved, now.peak_points)
        now.peak_gradient = torch.where(_each(higher), now.gradient, now.peak_gradient)
        now.peak_loss = torch.maximum(loss, now.peak_loss)
        self._review(loss)

    def _keep_best(self, loss: Tensor, success: Tensor | None) -> None:
        now = self.state
        better = loss > now.best_loss
        if success is not None and now.best_success is not None:
            better = (success & ~now.best_success) | ((success == now.best_success) & better)
            now.best_success = torch.where(better, success, now.best_success)
        now.best_points = torch.where(_each(better), now.points, now.best_points)
        now.best_loss = torch.where(better, loss, now.best_loss)

    def _review(self, loss: Tensor) -> None:
        """Count a step; at a checkpoint, halve where conditions 1 and 2 of the paper say so, and go back there."""
        now = self.state
        now.rises = now.rises + (loss > now.last_loss)
        now.last_loss = loss
        if self.step not in self._reviews:
            return
        last = max([0, *(review for review in self._reviews if review < self.step)])
        few_rises = now.rises < _RHO * (self.step - last)
        stuck = ~now.just_halved & (now.peak_loss <= now.last_best)
        halved = few_rises | stuck
        now.sizes = torch.where(halved, now.sizes / 2, now.sizes)
        now.just_halved, now.last_best = halved, now.peak_loss
        now.rises = torch.zeros_like(now.rises)
        now.points = torch.where(_each(halved), now.peak_points, now.points)
        now.gradient = torch.where(_each(halved), now.peak_gradient, now.gradient)

    def _drop_fooled(self) -> bool:
        """Leave fooled samples out of the batch; returns whether any sample is left."""
        fooled = self.state.best_success
        assert fooled is not None
        left = (~fooled).nonzero().flatten()
        if len(left) == len(fooled):
            return True
        self._done = self._result()
        if len(left):
            self.attacked.keep(left)
            self.state = self.state.select(left)
            self._project = self.threat_model.projector(self.clean[self.attacked.rows])
        return bool(len(left))

    def _result(self) -> ApgdResult:
        """The best points of all samples, those left out included."""
        now, rows = self.state, self.attacked.rows
        if self._done is None:
            return ApgdResult(now.best_points, now.best_loss, now.best_success)
        done = self._done
        assert done.success is not None and now.best_success is not None
        return ApgdResult(
            done.pixels.index_copy(0, rows, now.best_points),
            done.loss.index_copy(0, rows, now.best_loss),
            done.success.index_copy(0, rows, now.best_success),
        )

    def _saved(self) -> dict[str, Tensor]:
        """Tensors alone, on the CPU: step, rows, state, and what is done."""
        parts = {field.name: getattr(self.state, field.name) for field in fields(self.state)}
        parts |= {"step": torch.tensor([self.step, self.steps]), "rows": self.attacked.rows}
        if self._done is not None:
            parts |= {
                "done_pixels": self._done.pixels,
                "done_loss": self._done.loss,
                "done_success": self._done.success,
            }
        state = {name: value.detach().cpu().clone() for name, value in parts.items() if value is not None}
        return seal_state(state, self.clean, self.threat_model, _settings(self.steps, self.stop_fooled))

    def _load(self, saved: Mapping[str, Tensor]) -> None:
        options = {"steps": self.steps, "stop_fooled": self.stop_fooled}
        state = check_state(saved, self.clean, self.threat_model, **options)  # type: ignore[arg-type]
        parts: dict[str, Any] = {name: value.to(self.clean.device) for name, value in state.items()}
        step = parts.pop("step").tolist()[0]
        rows = parts.pop("rows")
        done = [parts.pop(f"done_{name}", None) for name in ("pixels", "loss", "success")]
        parts.setdefault("best_success", None)
        self.step, self.state = step, _State(**parts)
        if done[0] is not None and done[1] is not None:
            self._done = ApgdResult(done[0], done[1], done[2])
            self.attacked.keep(rows)
            self._project = self.threat_model.projector(self.clean[rows])


def _on_survivors(
    best: ApgdResult, loss_fn: LossFn, clean: Tensor, first: Tensor, threat_model: ThreatModel, steps: int
) -> ApgdResult:
    """A later run for those alone who were not fooled yet; the others' entries are what they were."""
    assert best.success is not None
    left = (~best.success).nonzero().flatten()
    attacked = AttackedLoss(select(loss_fn, left), len(left), clean.device)
    found = _Run(attacked, clean[left], first[left], threat_model, steps, True).finish()
    assert found.success is not None
    return ApgdResult(
        best.pixels.index_copy(0, left, found.pixels),
        best.loss.index_copy(0, left, found.loss),
        best.success.index_copy(0, left, found.success),
    )


def _merge(best: ApgdResult, other: ApgdResult) -> ApgdResult:
    """Merge a later run. What is fooled stays: when the others are must not change a sample."""
    better = other.loss > best.loss
    success = best.success
    if other.success is not None and success is not None:
        better = ~success & (other.success | better)
        success = torch.where(better, other.success, success)
    points = torch.where(_each(better), other.pixels, best.pixels)
    return ApgdResult(points, torch.where(better, other.loss, best.loss), success)


def _each(values: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
