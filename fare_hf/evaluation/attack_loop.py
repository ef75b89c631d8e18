"""The loop that every evaluation shares: attack in full batches, recheck, drop who is fooled, go on with the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fare_hf.attacks import ThreatModel
from fare_hf.attacks.gradient import check_steps
from fare_hf.attacks.threat_model import check_threat_model
from fare_hf.evaluation.processes import counted, divided

__all__ = [
    "Attack",
    "Outcome",
    "Stage",
    "attack_batch",
    "attack_nested",
    "check_plan",
    "chunks",
    "gather",
    "in_their_order",
    "read",
    "same_sized",
    "screening_steps",
]

Attack = Callable[[torch.Tensor, list[int], ThreatModel, torch.Generator], torch.Tensor]
"""(clean pixels, sample indices, threat model, generator) -> adversarial pixels."""
Batches = Callable[[Sequence[int], int], Iterable[list[int]]]
"""(sample indices, size) -> batches of at most that size."""


@dataclass(frozen=True)
class Stage:
    """One attack on those who are left, batch by batch.

    Attributes:
        run: (sample indices, threat model, number of the batch) -> what was found, by the one process that has the
            batch.
        attacks: sample index -> whether the attack is for this sample; those it is not for stay.
        take: (what was found, sample indices, threat model) -> for each sample, whether it is fooled; in every
            process, batch after batch.
    """

    run: Callable[[list[int], ThreatModel, int], Any]
    attacks: Callable[[int], bool] = lambda index: True
    take: Callable[[Any, list[int], ThreatModel], list[bool]] = lambda found, batch, threat_model: found


@dataclass
class Outcome:
    """Which samples one threat model fooled.

    Attributes:
        threat_model: the set the perturbations were searched in.
        survivors: indices of the attacked samples that were never fooled, ascending.
    """

    threat_model: ThreatModel
    survivors: list[int] = field(default_factory=list)

    def robust(self, n: int) -> list[bool]:
        """For each of all n samples of the data set, whether it was attacked and survived."""
        alive = set(self.survivors)
        return [index in alive for index in range(n)]


def chunks(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    """Split indices into batches of at most `size`."""
    if size < 1:
        raise ValueError(f"batch_size {size} must be at least 1.")
    for start in range(0, len(indices), size):
        yield list(indices[start : start + size])


def same_sized(indices: Sequence[int], size: int, images: Any) -> list[list[int]]:
    """Batches of at most `size` samples, each of images of one height and width; sizes come as they are met.

    Args:
        indices: which samples.
        size: of a batch.
        images: see `gather`; those of a list, and of a data set with `sizes`, may differ.
    """
    sizes = getattr(images, "sizes", None)
    if isinstance(images, list):
        sizes = [_pixels_of(item).shape[-2:] for item in images]
    groups: dict[Any, list[int]] = {}
    for index in indices:
        groups.setdefault(None if sizes is None else sizes[index], []).append(index)
    return [batch for group in groups.values() for batch in chunks(group, size)]


def in_their_order(batches: Sequence[Sequence[int]], found: Iterable[Iterable[Any]]) -> list[Any]:
    """What each batch gave for each of its samples, in the order of the samples."""
    given: dict[int, Any] = {}
    for batch, results in zip(batches, found, strict=True):
        given.update(zip(batch, results, strict=True))
    return [given[index] for index in sorted(given)]


def gather(images: Any, indices: Sequence[int], device: torch.device) -> torch.Tensor:
    """Pixels (B, 3, H, W) of some samples, fp32, on `device`.

    Args:
        images: a tensor (N, 3, H, W), a list of tensors (3, H, W), or a map-style data set whose items hold
            `pixel_values` (3, H, W) in [0, 1].
        indices: which.
        device: where to.

    Raises:
        ValueError: images of several sizes.
    """
    if isinstance(images, torch.Tensor):
        pixels = images[list(indices)]
    else:
        pixels = torch.stack(_of_one_size([_pixels_of(images[index]) for index in indices]))
    return pixels.to(device=device, dtype=torch.float32)


def _pixels_of(item: Any) -> torch.Tensor:
    """Of one image of a list or a data set."""
    return item if isinstance(item, torch.Tensor) else item["pixel_values"]


def _of_one_size(pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The images; ValueError where they cannot be one batch."""
    if len(sizes := {tuple(image.shape[-2:]) for image in pixels}) > 1:
        several = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:3])
        raise ValueError(
            f"images of {len(sizes)} sizes ({several}, height x width) make no batch: resize them to one, or take "
            "them one at a time (batch_size=1)."
        )
    return list(pixels)


def read(
    images: Any, indices: Sequence[int], device: torch.device, labels: Sequence[int] | torch.Tensor | None = None
) -> tuple[torch.Tensor, list[int]]:
    """Pixels as `gather`, with the labels given or, for None, those of the data set's items (each item read once).

    Raises:
        ValueError: neither `labels` nor `labels` in the items.
        TypeError: a label that is no integer.
    """
    if labels is not None:
        return gather(images, indices, device), [class_number(labels[index]) for index in indices]
    if isinstance(images, torch.Tensor):
        raise ValueError("labels are missing: pass labels with a tensor of pixels.")
    items = [images[index] for index in indices]
    if any("labels" not in item for item in items):
        raise ValueError("the data set gives no labels: name its label column, or pass labels.")
    pixels = torch.stack(_of_one_size([item["pixel_values"] for item in items])).to(device=device, dtype=torch.float32)
    return pixels, [class_number(item["labels"]) for item in items]


def screening_steps(steps: int) -> list[int]:
    """Steps of the runs before the full ones: a tenth, or none below 20 steps.

    Most samples of an undefended model fall within a few steps; the full runs then see only the others.
    """
    return [steps // 10] if steps >= 20 else []


def check_plan(
    samples: int,
    threat_models: Sequence[ThreatModel],
    groups: Sequence[Hashable] | None,
    seed: int,
    names: Mapping[str, str],
    **counts: int,
) -> None:
    """Refuse before any attack what the rows would refuse after it.

    Args:
        samples: number of images.
        threat_models, groups, seed: of the evaluation.
        names: what its rows are called.
        counts: whole numbers that are at least 1, such as `steps`.

    Raises:
        TypeError: a threat model or count of another kind.
        ValueError: no images, an empty name, a seed below 0 or no integer, another number of groups than images, a
            repeated threat model, a count below 1.
    """
    if not samples:
        raise ValueError("the data set is empty: pass at least one image.")
    for field_name, count in counts.items():
        check_steps(count, field_name)
    for field_name, name in names.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{field_name} {name!r} is no name: give one for the rows.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed {seed!r} is no integer from 0: give one.")
    if groups is not None and len(groups) != samples:
        raise ValueError(f"{len(groups)} groups for {samples} images: give one group per image.")
    check_threat_models(threat_models)


def check_threat_models(threat_models: Sequence[ThreatModel]) -> None:
    """Raises TypeError for what is no `ThreatModel`, ValueError where two are the same."""
    for threat_model in threat_models:
        check_threat_model(threat_model)
    if len(set(threat_models)) != len(threat_models):
        raise ValueError(f"threat models {[str(t) for t in threat_models]} repeat one another: give each once.")


def class_number(label: Any) -> int:
    """A label as an integer. Raises TypeError for 1.5 and 1.0 alike."""
    try:
        return operator.index(label)
    except TypeError:
        raise TypeError(f"label {label!r} is no class number: pass integers.") from None


def attack_batch(
    images: Any,
    batch: Sequence[int],
    threat_model: ThreatModel,
    attack: Attack,
    device: torch.device,
    seeds: Sequence[int],
) -> torch.Tensor:
    """Points that an attack finds for some samples, held against ball and box on the very pixels that are judged.

    Args:
        images: see `gather`.
        batch: sample indices.
        threat_model, attack: which.
        device: where the attack runs.
        seeds: the run's, the stage and the batch; the generator is seeded from them, never from the global RNG.

    Raises:
        ValueError: a perturbation outside its threat model.
    """
    clean = gather(images, batch, device)
    points = attack(clean, list(batch), threat_model, torch.Generator().manual_seed(mix(*seeds)))
    threat_model.check(points, clean)
    return points


def attack_nested(
    alive: Sequence[int],
    threat_models: Sequence[ThreatModel],
    stages: Sequence[Stage],
    *,
    batch_size: int,
    distributed: bool = False,
    batches: Batches = chunks,
) -> list[Outcome]:
    """Attack samples under each threat model, stage after stage, each stage only who survived so far.

    Of one norm, radii are attacked in ascending order and a sample fooled within a smaller ball is fooled within every
    larger one, as that ball contains the perturbation found.

    Args:
        alive: indices to attack, say those classified correctly.
        threat_models: without repetition.
        stages: in order.
        batch_size: survivors are packed to full batches again before each stage.
        distributed: divide the batches of a stage among the processes that accelerate or torchrun started; all must
            call this with the same arguments, and get what one process alone would.
        batches: how samples are packed.

    Returns:
        One outcome per threat model, in the order given.

    Raises:
        ValueError: a repeated threat model.
    """
    check_threat_models(threat_models)
    left: dict[str, list[int]] = {}
    outcomes: dict[ThreatModel, Outcome] = {}
    for threat_model in sorted(threat_models, key=lambda t: (t.norm, t.eps)):
        survivors = left.get(threat_model.norm, list(alive))
        for number, stage in enumerate(stages, 1):
            what = f"{threat_model}, attack {number} of {len(stages)}"
            packed = list(batches([index for index in survivors if stage.attacks(index)], batch_size))
            survivors = _run_stage(stage, survivors, packed, threat_model, distributed, what)
        left[threat_model.norm] = survivors
        outcomes[threat_model] = Outcome(threat_model, survivors)
    return [outcomes[threat_model] for threat_model in threat_models]


def _run_stage(
    stage: Stage, alive: list[int], packed: list[list[int]], threat_model: ThreatModel, distributed: bool, what: str
) -> list[int]:
    """One attack over all who are still alive, in batches; returns who survives it."""
    batches = list(enumerate(packed))
    found = divided(batches, lambda part: stage.run(part[1], threat_model, part[0]), distributed=distributed)
    fooled: set[int] = set()
    for (_, batch), one in zip(batches, counted(found, len(batches), what), strict=True):
        fooled |= {index for index, out in zip(batch, stage.take(one, batch, threat_model), strict=True) if out}
    return [index for index in alive if index not in fooled]


def mix(*numbers: int) -> int:
    """One seed from several numbers (a hash that is the same in every process)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 1_000_003 + number + 1) % (2**63)
    return mixed
