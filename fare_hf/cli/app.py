"""`fare-hf app`."""

from __future__ import annotations

import argparse

from fare_hf.app.serving import check_address, serve
from fare_hf.cli.console import positive, refuse_given, refuse_missing, whole_prompt
from fare_hf.lab.names import is_in_lab

__all__ = ["EXAMPLES", "GOING_ON", "PURPOSE", "add_options", "check", "run"]

PURPOSE = "a page in the browser: attack an image before a model and its robust version (needs gradio)"
EXAMPLES = """\
fare-hf app   # offline
fare-hf app --vlm llava-hf/llava-1.5-7b-hf --encoder chs20/fare4-clip
"""
GOING_ON = "the same command opens the page again"
VLM, ENCODER = "lab:llava", "lab:fare-4"
HIGHEST_PORT = 65_535


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--vlm", default=VLM, help=f"folder or repository of a LLaVA or a relative (default: {VLM})")
    robust = f"folder or repository of a robust encoder for it, or lab:NAME (default, for {VLM}: {ENCODER})"
    parser.add_argument("--encoder", help=robust)
    parser.add_argument(
        "--template",
        type=whole_prompt,
        help="prompt with {} for the question, for processors without a chat template",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", type=positive, default=7860, help="which must be free (default: 7860)")


def check(args: argparse.Namespace) -> None:
    """The address, and paths that lead nowhere."""
    if args.port > HIGHEST_PORT:
        raise ValueError(f"--port {args.port}: give 1 to {HIGHEST_PORT}.")
    if is_in_lab(args.vlm):
        refuse_given(args, ["template"], f"is for other models than {args.vlm}, which has its own: leave it out.")
    elif args.encoder is None:
        raise ValueError(f"--vlm {args.vlm} needs an --encoder: name the robust one that goes into it.")
    refuse_missing("--vlm", args.vlm)
    refuse_missing("--encoder", args.encoder or ENCODER)
    check_address(args.host, args.port)


def run(args: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C."""
    serve(args.vlm, args.encoder or ENCODER, host=args.host, port=args.port, template=args.template)
