"""lmms-eval's tasks on a vision-language model with a robust tower.

    lmms-eval --model fare_llava --model_args pretrained=llava-hf/llava-1.5-7b-hf,vision_tower=user/fare4 --tasks pope

lmms-eval finds `MANIFEST` by the entry point `lmms_eval.models` of this package. Nothing else of fare_hf imports this
module, which needs lmms-eval 0.7 or newer; fare_hf itself does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm.auto import tqdm

from fare_hf.evaluation.processes import leave_group_at_exit
from fare_hf.pretrained.loading import load_processor, load_vlm
from fare_hf.vlm import swap_vision_tower
from fare_hf.vlm.prompts import start_device

__all__ = ["MANIFEST", "FareLlava"]

MANIFEST = ModelManifest(model_id="fare_llava", chat_class_path=f"{__name__}.FareLlava")

SAMPLING = ("temperature", "top_p", "top_k", "num_beams", "max_new_tokens", "min_new_tokens", "repetition_penalty")
"""What of a task's generation settings `generate` is given; others are settings of other models."""


class FareLlava(lmms):
    """A LLaVA or one of its relatives, its tower swapped, that answers lmms-eval's requests in batches.

    Args:
        pretrained: repository or folder of the vision-language model with its processor.
        vision_tower: the robust encoder, as `swap_vision_tower` takes it; None leaves the model's own tower.
        revision, vision_tower_revision: of the two on the Hub.
        base: for a bare open_clip file, the CLIP it was fine-tuned from.
        device: None is accelerate's, one process per device under `accelerate launch`.
        device_map: how `from_pretrained` spreads the model instead; the tower must not be offloaded.
        dtype: of the model; "auto" is that of its files.
        attn_implementation: as transformers names it.
        chat_template: a Jinja template or a file with one, for processors without.
        batch_size: requests that are answered together.
        max_batch_size: given by lmms-eval, not used.

    Raises:
        ValueError: no chat template, a batch size that is no positive whole number; as `swap_vision_tower`.
        TypeError: a setting that is not listed here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        vision_tower: str | None = None,
        *,
        revision: str | None = None,
        vision_tower_revision: str | None = None,
        base: str | None = None,
        device: str | None = None,
        device_map: str | None = None,
        dtype: str = "auto",
        attn_implementation: str | None = None,
        chat_template: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size {batch_size!r} is no whole number of at least 1: give one.")
        self.batch_size = int(batch_size)
        leave_group_at_exit()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.processor = _processor(pretrained, revision, chat_template)
        options = {"attn_implementation": attn_implementation, "device_map": device_map}
        given = {name: value for name, value in options.items() if value is not None}
        self.vlm = load_vlm(pretrained, revision, dtype=dtype, **given).eval()
        if device_map is None:
            self.vlm.to(_device(device, self.accelerator))
        self.swap_report = None
        if vision_tower is not None:
            self.swap_report = swap_vision_tower(
                self.vlm, vision_tower, self.processor, revision=vision_tower_revision, base=base
            )

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return start_device(self.vlm)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of the requests; those with equal settings are answered in batches."""
        answers: list[str] = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="answers") as bar:
            for batch, settings in self._batches(requests):
                for number, answer in zip(batch, self._answer([requests[i] for i in batch], settings), strict=True):
                    answers[number] = answer
                bar.update(len(batch))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not there: the tasks of lmms-eval that show images to chat models generate."""
        raise NotImplementedError("fare_llava generates: choose tasks whose output_type is generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not there."""
        raise NotImplementedError("fare_llava answers one question at a time: choose tasks of one round.")

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Indices of requests that are answered together, with their settings."""
        groups: dict[str, tuple[list[int], dict[str, Any]]] = {}
        for number, request in enumerate(requests):
            settings = dict(request.args[2])
            groups.setdefault(repr(sorted(settings.items())), ([], settings))[0].append(number)
        for numbers, settings in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size], settings

    def _answer(self, requests: Sequence[Any], settings: dict[str, Any]) -> list[str]:
        """Answers to one batch; questions without a picture are asked apart from those with one."""
        answers: list[str] = [""] * len(requests)
        chats = [self._messages(request) for request in requests]
        for pictured in (True, False):
            chosen = [number for number, chat in enumerate(chats) if bool(chat.extract_media()[0]) == pictured]
            if chosen:
                texts = self._generate([chats[number].to_hf_messages() for number in chosen], settings)
                for number, text in zip(chosen, texts, strict=True):
                    answers[number] = text
        return answers

    def _messages(self, request: Any) -> ChatMessages:
        _, messages_of, _, document, task, split = request.args
        return ChatMessages(messages=messages_of(self.task_dict[task][split][document]))

    @torch.inference_mode()
    def _generate(self, chats: list[Any], settings: dict[str, Any]) -> list[str]:
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.device, self.vlm.dtype)
        tokens = self.vlm.generate(**inputs, **_sampling(settings), pad_token_id=_padding(self.processor.tokenizer))
        texts = self.processor.tokenizer.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [_until(text, settings.get("until") or []).strip() for text in texts]


def _processor(pretrained: str, revision: str | None, chat_template: str | None) -> Any:
    processor = load_processor(pretrained, revision)
    processor.tokenizer.padding_side = "left"  # answers begin where prompts end
    if chat_template is not None:
        path = Path(chat_template)
        processor.chat_template = path.read_text(encoding="utf-8") if path.is_file() else chat_template
    if getattr(processor, "chat_template", None) is None:
        raise ValueError(
            f"the processor of {pretrained!r} has no chat template: add chat_template=FILE to --model_args, with the "
            "Jinja template that the model was trained on."
        )
    return processor


def _device(device: str | None, accelerator: Accelerator) -> torch.device:
    """The device asked for; one for each process where there are several."""
    return torch.device(device) if device and accelerator.num_processes == 1 else accelerator.device


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """A task's settings as `generate` takes them: greedy unless the temperature is above 0."""
    chosen = {name: settings[name] for name in SAMPLING if settings.get(name) is not None}
    chosen.setdefault("max_new_tokens", 1024)
    if chosen.get("temperature", 0) > 0:
        return {**chosen, "do_sample": True}
    return {**chosen, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}


def _padding(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def _until(text: str, stops: str | Sequence[str]) -> str:
    """The text up to the first of the strings that end an answer."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
