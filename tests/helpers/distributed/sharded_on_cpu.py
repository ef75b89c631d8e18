"""FSDP2 over gloo on CPUs, which accelerate never selects by itself.

accelerate shards for the kinds of devices that a list in `AcceleratorState.__init__` names, and `MULTI_CPU` is not
among them: `accelerate launch --config_file examples/accelerate/fsdp.yaml` with `--use_cpu` is DDP. PyTorch's FSDP2
itself runs on CPUs. `shard_on_cpu` adds that one name to accelerate's list and changes nothing else: the plugin, the
wrapping, the precision and the optimizer are accelerate's own, from the same file that GPUs use. fare_hf refuses FSDP
on a CPU for that reason (`checks.WHOLE`): there too one name changes.
"""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import accelerate.state
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

from fare_hf.training import FareTrainer, checks

LAST = "DistributedType.MULTI_NEURON,\n"
"""The last name in accelerate's list."""


def shard_on_cpu() -> None:
    """Adds `MULTI_CPU` to the kinds of devices that accelerate shards on, in this process; again does nothing."""
    if "cpu" not in checks.WHOLE:
        return
    source = textwrap.dedent(inspect.getsource(AcceleratorState.__init__))
    assert source.count(LAST) == 1, "accelerate's list of devices that FSDP runs on is another"
    code = compile(source.replace(LAST, LAST + "DistributedType.MULTI_CPU,\n"), accelerate.state.__file__, "exec")
    found: dict[str, Any] = {}
    exec(code, vars(accelerate.state), found)
    AcceleratorState.__init__ = found["__init__"]  # type: ignore[method-assign]
    checks.WHOLE.discard("cpu")


def how_it_ran(trainer: FareTrainer) -> dict[str, Any]:
    """What a run was, as JSON values: whether FSDP was on, which weights were sharded, how many a process held."""
    parameters = list(trainer.model.parameters())
    shards = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    return {
        "fsdp": trainer.is_fsdp_enabled,
        "sharded": len(shards) == len(parameters),
        "share": sum(shard.to_local().numel() for shard in shards) / sum(p.numel() for p in parameters),
    }
