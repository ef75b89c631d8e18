"""Whether a loaded model is one: finite weights, and answers to images that are finite and differ.

Shapes cannot show all: an encoder whose configuration says 2 heads where 4 were trained has the same weights. What was
saved by this package carries its architecture beside them, and is held to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fare_hf.pretrained.configuration import optional_file, read_json_object
from fare_hf.pretrained.foreign_code import foreign_files

__all__ = [
    "ARCHITECTURE",
    "RECORD",
    "architecture_of",
    "check_answer",
    "check_answers",
    "check_model",
    "check_recorded",
    "check_tokens",
    "check_weights",
    "is_here",
    "recorded_architecture",
]

RECORD = "fare_hf.json"
"""What this package writes beside the weights of an encoder that it saves."""

ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "image_size",
    "hidden_act",
    "layer_norm_eps",
    # Of towers of their own.
    "spatial_merge_size",
    "window_size",
    "fullatt_block_indexes",
    "deepstack_visual_indexes",
)
"""What decides what weights compute; the number of heads, the activation and the epsilon leave no trace in them."""

ARGMAX = 2
"""The eos_token_id of the first CLIPs: pool at the highest id, whatever it is."""

OUTPUTS = ("image_embeds", "text_embeds", "pooler_output", "last_hidden_state")


def check_model(model: nn.Module, where: str) -> None:
    """`check_weights` and `check_answers`: what must hold before a model is published, measured or built upon.

    Raises:
        ValueError: as these.
    """
    check_weights(model, where)
    check_answers(model, where)


def check_weights(model: nn.Module, where: str) -> None:
    """Every weight and buffer is finite, read once and without a copy.

    Args:
        model: loaded, in any floating-point type; what is on the meta device (offloaded) is passed over.
        where: names it, for the message.

    Raises:
        ValueError: the first that holds NaN or infinity.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and tensor.numel() and not is_finite(tensor):
            raise ValueError(
                f"{where} holds NaN or infinity in its weights {name!r}: take a checkpoint whose training did not "
                "diverge."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are, by the smallest and the largest, which are NaN where a value is."""
    tensor = tensor.detach() if tensor.dtype.itemsize > 1 else tensor.detach().float()
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


@torch.no_grad()
def check_answers(model: nn.Module, where: str, device: torch.device | None = None) -> None:
    """Two images give finite embeddings that differ; of a whole CLIP, two texts too.

    Args:
        model: CLIP, SigLIP or DINOv2, whole or the vision encoder, not sharded.
        where: names it, for the message.
        device: of the images, for a model whose weights come to it module by module; None is that of the weights,
            and a model without weights (on the meta device, partitioned by DeepSpeed) is passed over, as is one for
            attention kernels of a device that it is not on yet.

    Raises:
        ValueError: an embedding that is not finite, or the same for both.
    """
    if device is None and not is_here(model):
        return
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    fault, advice = f"{where} cannot answer an image", "its config.json is of another model"
    try:
        with foreign_files(fault, advice, (torch.OutOfMemoryError,)):
            answers: Any = model(**_probes(model, device))
    finally:
        for part, training in modes:
            part.training = training
    given = {name: getattr(answers, name, None) for name in OUTPUTS}
    if not any(isinstance(answer, Tensor) for answer in given.values()):
        raise ValueError(f"{where} answers without names (return_dict in its config.json): take that out.")
    for name, answer in given.items():
        if answer is not None:
            check_answer(answer, f"{where} answers with {name}", next(model.parameters()).dtype)


def architecture_of(config: Any) -> dict[str, Any]:
    """What `check_recorded` compares, of a configuration, to be stored beside the weights."""
    vision = getattr(config, "vision_config", config)
    found = {name: getattr(vision, name) for name in ARCHITECTURE if hasattr(vision, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def check_recorded(config: Any, recorded: Any, where: str) -> None:
    """The configuration says what it said when the encoder was saved.

    Args:
        config: that stands beside the weights.
        recorded: `architecture_of` at that time, or None where it was not stored.
        where: names the encoder, for the message.

    Raises:
        ValueError: a field that was changed since.
    """
    if recorded is None:
        return
    if not isinstance(recorded, dict):
        raise ValueError(f"{where} has the architecture {recorded!r:.80} in its {RECORD}, no object: save it again.")
    found = architecture_of(config)
    for name, value in recorded.items():
        if name in found and found[name] != value:
            raise ValueError(
                f"{where} has {name} {found[name]!r} in its config.json and was saved with {value!r}: its weights "
                "compute something else with that; put the old value back, or save the encoder again."
            )


def recorded_architecture(name_or_path: str, **options: Any) -> Any:
    """The architecture in the `fare_hf.json` of a folder or repository, or None.

    Args:
        name_or_path: folder or Hub name.
        options: as for `fare_hf.pretrained.configuration.read_configuration`.

    Raises:
        ValueError: it is no JSON object.
    """
    path = optional_file(name_or_path, RECORD, **options)
    return None if path is None else read_json_object(path).get("architecture")


def check_tokens(ids: Tensor, config: Any, where: str) -> None:
    """A tokenizer's ids are words that the text encoder has, and end as it expects.

    CLIP pools where the end of the text stands; where it stands nowhere, it pools the first word in silence.

    Args:
        ids: (B, N) token ids.
        config: of the text encoder.
        where: names the model, for the message.

    Raises:
        ValueError: an id beyond the vocabulary, or a text without the end that the configuration names.
    """
    last = int(ids.max())
    if last >= config.vocab_size:
        raise ValueError(
            f"the tokenizer gives the id {last}, and the text encoder of {where} has vocab_size {config.vocab_size}: "
            "load both from the same repository."
        )
    end: Any = getattr(config, "eos_token_id", None)
    if config.model_type == "clip_text_model" and end != ARGMAX and not bool(ids.eq(end).any(dim=-1).all()):
        raise ValueError(
            f"the tokenizer ends no text with the id {end}, the eos_token_id of the text encoder of {where}: load "
            "both from the same repository."
        )


def is_here(model: Any) -> bool:
    """Whether a forward pass of this process alone works: all weights are there, whole, with kernels for them."""
    plain = getattr(model.config, "_attn_implementation", None) in (None, "eager", "sdpa")
    weights = list(model.parameters())
    return plain and all(w.numel() and w.device.type != "meta" and not hasattr(w, "full_tensor") for w in weights)


def _probes(model: nn.Module, device: torch.device | None) -> dict[str, Tensor]:
    """Two images, normalised as most are, and two texts of two words for a model that reads both."""
    config: Any = model.config
    vision, parameter = getattr(config, "vision_config", config), next(model.parameters())
    size = vision.image_size
    shape = (vision.num_channels, *((size, size) if isinstance(size, int) else size))
    steps = torch.arange(1.0, 1 + torch.Size(shape).numel()).view(shape)
    images = torch.stack([torch.sin(steps), torch.sin(0.37 * steps)])  # no random number is drawn
    device = device or parameter.device
    found = {"pixel_values": images.to(device, parameter.dtype)}
    if config is not vision:
        words = config.text_config.vocab_size
        found["input_ids"] = torch.tensor([[0, words - 1], [1, words - 1]], device=device)
    return found


def check_answer(answer: Tensor, begin: str, dtype: torch.dtype) -> None:
    """What a model makes of at least two images is finite, and not the same for the first two.

    Args:
        answer: (B, ...).
        begin: of the sentence: whose answer it is.
        dtype: in which it was computed.

    Raises:
        ValueError: it is neither.
    """
    if not is_finite(answer):
        raise ValueError(
            f"{begin} that hold NaN or infinity, computed in {str(dtype).removeprefix('torch.')}, from weights that "
            "are finite: load it in a wider dtype, such as float32, or do not use it."
        )
    if torch.equal(answer[0], answer[1]):
        raise ValueError(f"{begin} that are the same for different inputs: its weights are of no trained encoder.")
