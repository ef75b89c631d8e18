"""`fare-hf estimate`: what a training will cost, before it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fare_hf.cli.console import hide_notices, one_sentence, program_of
from fare_hf.cli.recipe_files import expand_config
from fare_hf.cli.training_options import OptionParser, build_parser
from fare_hf.encoders.flops import ASSUMED_MFU
from fare_hf.training.estimate import GPUS, Estimate, estimate

__all__ = ["EXAMPLES", "main", "parser_of", "report"]

ABOUT = """\
What a training will cost, before it runs: operations, memory and hours. Reads the encoder's configuration and no
weights; the shapes of the five encoders of examples/recipes are known without a network. The hours are arithmetic:
operations over the device's peak, at a utilisation that you state."""
EXAMPLES = """\
fare-hf estimate --model openai/clip-vit-large-patch14-336 --bf16 --gpus H100 A100 --num_processes 4
fare-hf estimate --config examples/recipes/vit-l-14-336.yaml examples/recipes/fare-4.yaml --gpus H100 "RTX 4090"
"""


def report(found: Estimate, gpus: Sequence[str], mfu: float) -> str:
    """Lines for people."""
    memory, giga = found.memory, 1e9
    lines = [
        f"{found.parameters / 1e6:.0f} M parameters; {found.images:,} images; {found.flops / 1e18:.3g} EFLOP",
        f"memory of a process: {memory.peak / giga:.1f} GB: weights, gradients, copies {memory.weights / giga:.1f}, "
        f"optimizer {memory.optimizer / giga:.1f}, activations {max(memory.update, memory.attack) / giga:.1f}",
    ]
    if found.evaluation is not None:
        lines.append(f"evaluations: {found.evaluation:.1%} of the training's operations, in addition")
    peak = "half precision" if found.half else "fp32 (--bf16 is many times faster)"
    for gpu in gpus:
        hours = found.hours(gpu, mfu)
        lines.append(f"{found.processes} x {gpu}: {hours:.1f} hours at an MFU of {mfu:.0%} (assumed) in {peak}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None, prog: str = "fare-hf estimate") -> None:
    """The command line: the options of a training, `--gpus`, `--mfu` and `--num_processes`."""
    hide_notices()
    words = [*(sys.argv[1:] if arguments is None else arguments), "--use_cpu"]  # nothing runs on a device here
    parser = parser_of(prog, everything="--help_all" in words)
    with one_sentence(program_of(prog)):
        known = {action.dest for action in parser._actions} - {"config"}
        script, config, own = parser.parse_args_into_dataclasses(expand_config(words, known))
        if not 0 < own.mfu <= 1 or own.num_processes < 1:
            raise ValueError(f"mfu={own.mfu}, num_processes={own.num_processes}: give an MFU in (0, 1] and a GPU.")
        print(report(estimate(script.model, config, own.num_processes, script.image_side), own.gpus, own.mfu))


def parser_of(prog: str, everything: bool = False) -> OptionParser:
    """The parser of the command: that of a training, of which only the model is needed."""
    parser = build_parser(prog, ABOUT, EXAMPLES, everything=everything)
    parser.usage = f"{prog} --model MODEL [options of fare-hf train] [--gpus GPU [GPU ...]]"
    for action in parser._actions:
        action.required = action.dest == "model"
    parser.set_defaults(dataset="none", output_dir="none")
    group = parser.add_argument_group("estimate")
    group.add_argument("--gpus", nargs="+", default=list(GPUS), help="names of GPUs whose peak is known")
    group.add_argument("--mfu", type=float, default=ASSUMED_MFU, help="share of the peak that is reached, in (0, 1]")
    group.add_argument("--num_processes", type=int, default=1, help="GPUs, from 1")
    parser._action_groups.insert(2, parser._action_groups.pop())  # what is its own comes first
    return parser


if __name__ == "__main__":
    main()
