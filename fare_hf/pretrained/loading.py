"""`from_pretrained` of strangers' files: quiet, and in one sentence where they are damaged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.utils import AUDIO_TOKENIZER_NAME, PROCESSOR_NAME

from fare_hf.files.documents import read_object
from fare_hf.files.folders import check_links, check_model_name
from fare_hf.pretrained.configuration import check_image_processor, optional_file, read_configuration
from fare_hf.pretrained.foreign_code import foreign_files, own_code_refused
from fare_hf.pretrained.original_llava import OriginalLlavaError
from fare_hf.pretrained.validation import check_weights
from fare_hf.pretrained.weight_files import check_weight_files

__all__ = ["check_found", "load_processor", "load_tokenizer", "load_vlm", "load_with_findings", "vlm_configuration"]


def load_vlm(name_or_path: str, revision: str | None = None, **options: Any) -> Any:
    """A vision-language model in the dtype of its files, complete and finite.

    Args:
        name_or_path: folder or Hub name.
        revision: of a Hub repository.
        options: of `from_pretrained`.

    Raises:
        OSError: there is none.
        ValueError: its configuration, or files that do not fit it; weights that are not finite.
    """
    options = {"dtype": "auto", "revision": revision or "main", **options}
    vlm_configuration(name_or_path, revision)
    model, found = load_with_findings(AutoModelForImageTextToText, name_or_path, options)
    check_found(found, name_or_path, type(model).__name__)
    check_weights(model, f"{name_or_path!r}")
    return model


def vlm_configuration(name_or_path: str, revision: str | None = None) -> Any:
    """The configuration of a vision-language model, before anything large is fetched.

    Raises:
        ValueError: none there, one that no model can have, or another kind of model.
    """
    check_model_name(name_or_path)
    try:
        config = read_configuration(name_or_path, revision=revision or "main")
    except OSError as error:
        raise ValueError(
            f"{name_or_path!r} is neither a folder with a model nor found on the Hub; check the name "
            f"({str(error).splitlines()[0]})."
        ) from error
    except OriginalLlavaError:
        raise
    except ValueError as error:
        raise ValueError(f"{name_or_path!r} is not a vision-language model: {error}") from error
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{name_or_path!r} is a {config.model_type!r} model, not a vision-language model: name one.")
    return config


def load_processor(name_or_path: str, revision: str | None = None) -> Any:
    """The processor of a vision-language model; raises as `load_vlm`.

    Raises:
        ImportError: it reads videos too, as that of LLaVA-OneVision, for which transformers needs torchvision.
    """
    check_links(name_or_path)
    _check_no_other_model(name_or_path, revision or "main")
    try:
        processor = _preprocessing(AutoProcessor, name_or_path, revision, "processor")
    except ImportError as error:
        if "torchvision" not in str(error).lower():
            raise
        raise ImportError(
            f"the processor of {name_or_path!r} reads videos too, for which transformers needs torchvision: install "
            "the torchvision of your torch's release (pip install torchvision)."
        ) from error
    images = getattr(processor, "image_processor", None)
    if images is not None:
        check_image_processor(images, f"the image processor of {name_or_path!r}")
    return processor


def load_tokenizer(name_or_path: str, revision: str | None = None) -> Any:
    """The tokenizer of a repository or folder; raises as `load_vlm`."""
    return _preprocessing(AutoTokenizer, name_or_path, revision, "tokenizer")


def _preprocessing(cls: Any, name_or_path: str, revision: str | None, what: str) -> Any:
    check_links(name_or_path)
    fault, advice = f"{name_or_path!r} has no {what} that can be read", "its files are damaged, or of another model"
    with foreign_files(fault, advice, (ImportError, OSError)), own_code_refused(name_or_path):
        return cls.from_pretrained(name_or_path, revision=revision or "main", trust_remote_code=False)


def _check_no_other_model(name_or_path: str, revision: str) -> None:
    """A processor may name a model for sound, which transformers would fetch and open, wherever it is."""
    for name in (PROCESSOR_NAME, AUDIO_TOKENIZER_NAME):
        path = optional_file(name_or_path, name, revision=revision)
        if path is not None and (name == AUDIO_TOKENIZER_NAME or "audio_tokenizer" in read_object(path)):
            raise ValueError(
                f"{name_or_path!r} names another model in its {name} (audio_tokenizer), which is not opened: take it "
                "out."
            )


def check_found(found: Mapping[str, Any], name_or_path: str, kind: str, hint: str = "") -> None:
    """Every weight was in the files, in the shape that the configuration asks for; else it would be a random one.

    Args:
        found: of `load_with_findings`.
        name_or_path: what was loaded, for the message.
        kind: class of the model.
        hint: what to do where weights are missing.

    Raises:
        ValueError: the first that was not.
    """
    changed, missing = sorted(found["mismatched_keys"]), sorted(found["missing_keys"])
    if changed:
        key, stored, wanted = changed[0]
        raise ValueError(
            f"{name_or_path!r} holds {key!r} of shape {tuple(stored)}, and its config.json asks for {tuple(wanted)} "
            f"({len(changed)} such): weights and configuration are of different models."
        )
    if missing:
        hint = hint if any("visual_projection" in key for key in missing) else ""
        raise ValueError(
            f"{name_or_path!r} has no weights for {missing[0]!r} ({len(missing)} missing) of {kind}{hint}."
        )


def load_with_findings(cls: Any, name_or_path: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """`cls.from_pretrained`: the model, and its `missing_keys` and `mismatched_keys`, which the caller refuses.

    Args:
        cls: class of the model, or one of the Auto classes.
        name_or_path: folder or Hub name.
        options: of `from_pretrained`.

    Raises:
        ValueError: files that no such model can be read from, or that lie outside of a folder; code of the
            repository's own is asked for.
    """
    if options.get("trust_remote_code"):
        raise ValueError("trust_remote_code=True is given, and code of a repository is not run here: leave it out.")
    if Path(name_or_path).is_dir():
        check_weight_files(Path(name_or_path) / (options.get("subfolder") or ""))
    fault = f"{name_or_path!r} cannot be loaded as {cls.__name__}"
    advice = "its files are damaged, or of another model; download or save them again"
    passed = (ImportError, OSError, TypeError, ValueError, torch.OutOfMemoryError)
    with foreign_files(fault, advice, passed), _quiet_loading(), own_code_refused(name_or_path):
        found: Any = cls.from_pretrained(
            name_or_path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **{name: value for name, value in options.items() if name != "trust_remote_code"},
        )
        return found


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """No table of what a whole CLIP holds besides the part that is read (what is missing is an error here anyway), and
    no list of layers that were not sharded."""
    names = ("transformers.modeling_utils", "transformers.distributed.tensor_parallel")
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
