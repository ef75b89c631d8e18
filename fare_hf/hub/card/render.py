"""The model card of a robust encoder, from `card_template.md`: nothing on it is left to fill in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from fare_hf.attacks import ThreatModel
from fare_hf.encoders.reading import FEATURES
from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.report.rows import Row
from fare_hf.evaluation.report.tables import markdown
from fare_hf.files.credentials import find_secret, names_secret
from fare_hf.files.markup import inline, is_link, literal
from fare_hf.hub.base_model import is_hub_id
from fare_hf.hub.licenses import check_license
from fare_hf.objectives import OBJECTIVES, FareObjective
from fare_hf.pretrained.encoder_families import PUBLISHED, EncoderFamily
from fare_hf.vlm.families.towers import KINDS, TOWERS

__all__ = ["PLOT", "CardContent", "own_rows", "render_card"]

PLOT = "results.png"
"""The picture of the report, beside the card."""
TEMPLATE = Path(__file__).with_name("template.md")
LONGEST_NAME = 300
BREAKS = dict.fromkeys(map(ord, "\x85\u2028\u2029"), " ")  # PyYAML writes these as it does not read them
VALUE = 1000  # characters of a value in the table of the recipe

APGD = """@inproceedings{croce2020reliable,
  title     = {Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks},
  author    = {Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}"""
OWN_OBJECTIVE = (
    "The attacked image's embedding was trained on an objective that is none of fare_hf's own; the table names it."
)
TASKS = {"zero-shot": "zero-shot-image-classification"}
TASKS |= {"k-NN": "image-classification", "linear probe": "image-classification"}
"""Of rows, without what is in brackets -> the Hub's names."""
SEEN_THROUGH = {kind.family for kind in KINDS}
"""Families of encoders that vision-language models have as towers."""
NORMS = {
    "linf": "every colour value of every pixel may change by at most {eps} of its range (l-infinity norm)",
    "l2": "the change of the whole image may have Euclidean length {eps} at most, colours in [0, 1] (l2 norm)",
}


@dataclass(frozen=True)
class CardContent:
    """What a card is made of.

    Attributes:
        name: repository or folder, as the snippets load it.
        base_model: the encoder that was fine-tuned, as `base_name` gives it; a folder (`./clip`) is in no metadata.
        class_name: transformers class of the published encoder.
        threat_model: what it was trained against.
        training: the recipe: every parameter and version that matters.
        report: measured figures, or None.
        report_model: name under which the report's rows measure this encoder, or several, such as one for each VLM
            that sees through it; only these enter the metadata (the table shows all, and the card says which rows it
            is). None: all rows if the report measures a single model, else none.
        license: identifier such as "mit", or None to say nothing.
        license_name: of a licence whose identifier is "other".
        license_link: its text.
        vlm: LLaVA named in the snippet.
        datasets: what it was trained on, as the Hub knows it.
        text_encoder: whether the repository also holds the original's text encoder and tokenizer.
        plot: file name of the picture of the report beside the card, or None where there is none.
        architecture: on no card, but in `fare_hf.json`: what `fare_hf.pretrained.validation.check_recorded` compares.
    """

    name: str
    base_model: str
    class_name: str
    threat_model: ThreatModel
    training: Mapping[str, Any] = field(default_factory=dict)
    report: RobustnessReport | None = None
    report_model: str | Sequence[str] | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    vlm: str = "llava-hf/llava-1.5-7b-hf"
    datasets: Sequence[str] = ()
    text_encoder: bool = False
    plot: str | None = None
    architecture: Mapping[str, Any] | None = None

    @property
    def family(self) -> EncoderFamily | None:
        """Of the encoder's class; None of a tower of a class of its own."""
        return PUBLISHED.get(self.class_name)

    @property
    def compared(self) -> bool:
        """Whether its outputs are compared with texts, as in zero-shot classification."""
        return self.family is not None and self.family.compares(self.class_name)

    @property
    def own(self) -> bool:
        """Whether it is the tower of one vision-language model, in a class of its own."""
        return self.class_name in TOWERS

    @property
    def features(self) -> bool:
        """Whether it was trained on what the language model of `vlm` reads."""
        return self.own or self.training.get("embedding") == FEATURES


def render_card(content: CardContent) -> str:
    """Fill the template.

    Raises:
        ValueError: the recipe holds a secret, or names an objective that is none of `OBJECTIVES` without saying what
            it is; an unknown licence; a `report_model` that the report does not measure; a class that is not
            published, a link that is none of the web, a name that is longer than any repository's.
    """
    _check_content(content)
    family = content.family
    explanation, citation = _objective(content.training)
    threat = content.threat_model
    eps = threat.to_dict()["eps"]
    reach = NORMS[threat.norm].format(eps=eps)
    card = ModelCard.from_template(
        _metadata(content),
        template_path=str(TEMPLATE),
        name=inline(content.name),
        base_model=inline(content.base_model),
        class_name=content.class_name,
        threat_model=content.threat_model,
        linked="/" in content.base_model and is_hub_id(content.base_model),
        threat_text=f"The attacker knows all weights and chooses any image near the clean one: {reach}; values stay "
        "valid colours. The encoder was trained against this.",
        snippet_transformers=_snippet_transformers(content),
        host=_host(content),
        features=content.features,
        snippet_llava=_snippet_host(content),
        snippet_zero_shot=_snippet_zero_shot(content) if content.compared else "",
        objective_text=explanation,
        keeps_embedding=_keeps_embedding(content.training),
        recipe=_recipe(content.training, threat),
        results=markdown(content.report.rows).strip()
        if content.report
        else "No figures were measured for this encoder.",
        own_row=_own_row(content),
        plot=content.plot if content.report else None,
        license_text=_license_text(content),
        citation="\n".join([citation, *([family.citation] if family else []), *_attack_citations(content)]),
    )
    return str(card)


def _check_content(content: CardContent) -> None:
    """What goes into code as it is, into links, and into the head."""
    if content.license:
        check_license(content.license)
    if content.class_name not in (*PUBLISHED, *TOWERS):
        known = ", ".join((*PUBLISHED, *TOWERS))
        raise ValueError(f"class_name {content.class_name!r} is not one of {known}: name one.")
    if content.license_link and not is_link(content.license_link):
        raise ValueError(
            f"license_link {content.license_link[:200]!r} is no http(s) address: give one, or leave it out."
        )
    names = [(name, getattr(content, name)) for name in ("name", "base_model", "vlm", "license_name")]
    for name, value in [*names, *(("report_model", own) for own in _own_names(content))]:
        if value is not None and len(value) > LONGEST_NAME:
            raise ValueError(f"{name} {value[:60]!r}... has {len(value)} characters: give at most {LONGEST_NAME}.")


def _objective(training: Mapping[str, Any]) -> tuple[str, str]:
    """What is said of the objective, and its BibTeX; see `fare_hf.training.objective_facts`."""
    name = str(training.get("objective", FareObjective.name))
    if kind := OBJECTIVES.get(name):
        return kind.description, kind.citation
    if "objective is" not in training:
        raise ValueError(
            f"training objective {name!r} is unknown to the card: pass {' or '.join(map(repr, OBJECTIVES))}, or "
            "say in training['objective is'] what it minimises."
        )
    citation = str(training.get("objective citation", "")).strip()
    own = citation if citation.startswith("@") and "```" not in citation else FareObjective.citation
    return OWN_OBJECTIVE, own


def _keeps_embedding(training: Mapping[str, Any]) -> bool:
    """Whether the card may say that the embedding space is the original's."""
    kind = OBJECTIVES.get(str(training.get("objective", FareObjective.name)))
    return kind is not None and kind.keeps_embedding


def _metadata(content: CardContent) -> ModelCardData:
    """The YAML head; the licence appears only when it is given."""
    family = content.family
    results = [_eval_result(row, of_several=len(_own_names(content)) > 1) for row in own_rows(content)]
    stated = {name: getattr(content, name) for name in ("license", "license_name", "license_link")}
    extra: dict[str, Any] = {name: value.translate(BREAKS) for name, value in stated.items() if value}
    if is_hub_id(content.base_model):
        extra |= {"base_model": content.base_model, "base_model_relation": "finetune"}
    if content.datasets:
        extra["datasets"] = list(content.datasets)
    if results:
        extra |= {"eval_results": results, "model_name": content.name.rsplit("/", 1)[-1].translate(BREAKS)}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification" if content.text_encoder else "image-feature-extraction",
        tags=[*(["robust-clip"] if family else []), "adversarial-robustness", *_kind(family), "fare_hf"],
        **extra,
    )


def _attack_citations(content: CardContent) -> list[str]:
    """Of the attacks that the report's figures come from."""
    attacks = [row.attack for row in content.report.rows] if content.report else []
    return [APGD] if any(attack and "apgd" in attack["name"].lower() for attack in attacks) else []


def _license_text(content: CardContent) -> str:
    if content.license is None:
        return (
            f"No licence was found for {inline(content.base_model)} or given for this encoder: ask before you use it."
        )
    name = inline(content.license_name or content.license)
    return f"The licence is {f'[{name}]({content.license_link})' if content.license_link else name}."


def own_rows(content: CardContent) -> list[Row]:
    """Rows that measure this encoder: a baseline's figures must not be listed as its own."""
    rows = content.report.rows if content.report else []
    models = {row.model for row in rows}
    if content.report_model is None:
        return rows if len(models) == 1 else []
    names = _own_names(content)
    if missing := [name for name in names if name not in models]:
        raise ValueError(f"report_model {missing[0]!r} is not in the report: it measures {sorted(models)}.")
    return [row for row in rows if row.model in names]


def _own_names(content: CardContent) -> list[str]:
    """What the report calls this encoder."""
    if content.report_model is None or isinstance(content.report_model, str):
        return [] if content.report_model is None else [content.report_model]
    return list(content.report_model)


def _own_row(content: CardContent) -> str:
    """Which line of the tables is this encoder; empty where there are none."""
    if content.report is None or not content.report.rows:
        return ""
    if not (own := own_rows(content)):
        return "Which row is this encoder was not said: no figure here counts as its own."
    names = [f"**{inline(name)}**" for name in dict.fromkeys(row.model for row in own)]
    which = f"row {names[0]}" if len(names) == 1 else f"rows {', '.join(names[:-1])} and {names[-1]}"
    return f"This encoder is the {which}; every other row measures another model."


def _eval_result(row: Row, of_several: bool) -> EvalResult:
    """One row as the Hub's model index has it; threat model and attack are part of the metric's name, and what was
    measured, where that is the encoder alone and in VLMs."""
    conditions = f"{row.threat_model}, {row.attack_text}" if row.threat_model else "clean"
    conditions = f"{row.model}, {conditions}" if of_several else conditions
    return EvalResult(
        task_type=TASKS.get(row.task.split(" (")[0], "image-text-to-text"),
        dataset_type=re.sub(r"\W+", "-", row.dataset.lower()),
        dataset_name=row.dataset.translate(BREAKS),
        metric_type=row.metric.replace(" ", "_"),
        metric_name=f"{row.metric} ({conditions})".translate(BREAKS),
        metric_value=row.value,
    )


def _recipe(training: Mapping[str, Any], threat_model: ThreatModel) -> Sequence[tuple[str, str]]:
    """Parameters as table rows, in the order given."""
    for key, value in training.items():
        if names_secret(key) or find_secret(str(value)):
            raise ValueError(f"the training recipe's {key!r} looks like a secret: leave it out of the model card.")
    threat = ("threat model", str(threat_model))
    shown = [(key, value) for key, value in training.items() if key != "objective citation" and (key, value) != threat]
    return [threat, *((inline(key), inline(value, VALUE)) for key, value in shown)]


def _snippet_transformers(content: CardContent) -> str:
    if content.own:
        module = TOWERS[content.class_name].own_class.__module__
        return f"""from {module} import {content.class_name}

tower = {content.class_name}.from_pretrained({literal(content.name)}).eval()"""
    return f"""from PIL import Image
import torch
from transformers import AutoImageProcessor, {content.class_name}

encoder = {content.class_name}.from_pretrained({literal(content.name)}).eval()
processor = AutoImageProcessor.from_pretrained({literal(content.name)})
inputs = processor(images=Image.open("image.png").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    embedding = encoder(**inputs).{_output(content)}"""


def _host(content: CardContent) -> str:
    """What sees through the encoder."""
    if content.features:
        return "the vision-language model that it was trained in"
    return "a LLaVA" if content.family and content.family.projecting else "a vision-language model"


def _kind(family: EncoderFamily | None) -> list[str]:
    """The tag of a family."""
    return [family.whole or family.tower] if family else []


def _snippet_host(content: CardContent) -> str:
    """Empty where no vision-language model has such a tower."""
    if content.features or content.family is None:
        return _snippet_vlm(content)
    if content.family not in SEEN_THROUGH:
        return ""
    return _snippet_llava(content) if content.family.projecting else _snippet_vlm(content)


def _snippet_llava(content: CardContent) -> str:
    return f"""from transformers import LlavaForConditionalGeneration
from fare_hf.vlm import swap_vision_tower

llava = LlavaForConditionalGeneration.from_pretrained({literal(content.vlm)})
swap_vision_tower(llava, {literal(content.name)})"""


def _loadable(base_model: str) -> str:
    """The original in code: a folder's name is of the machine that trained, so whoever reads puts a path there."""
    return base_model.replace("./", "path/to/", 1) if base_model.startswith("./") else base_model


def _snippet_vlm(content: CardContent) -> str:
    return f"""from transformers import AutoModelForImageTextToText
from fare_hf.vlm import swap_vision_tower

model = AutoModelForImageTextToText.from_pretrained({literal(content.vlm)})
swap_vision_tower(model, {literal(content.name)})"""


def _snippet_zero_shot(content: CardContent) -> str:
    if content.text_encoder:
        return f"""from transformers import pipeline

classifier = pipeline("zero-shot-image-classification", model={literal(content.name)})
scores = classifier("image.png", candidate_labels=["cat", "dog", "car"])"""
    assert content.family is not None and content.family.text_class is not None
    text, kind, output = content.family.text_class, content.class_name, _output(content)
    whole = content.family.sigmoid  # see there
    sentence = "this is a photo of {name}." if whole else "a photo of a {name}."
    padding = 'padding="max_length", max_length=text.config.max_position_embeddings' if whole else "padding=True"
    tokens = "prompts.input_ids" if whole else "prompts.input_ids, prompts.attention_mask"
    last = "likeliest = names[int((embedding @ classes.T).argmax())]"
    last = last if whole else "probabilities = (100 * embedding @ classes.T).softmax(dim=-1)"
    return f"""from PIL import Image
import torch
from transformers import AutoImageProcessor, AutoTokenizer, {text.__name__}, {kind}

encoder = {kind}.from_pretrained({literal(content.name)}).eval()
processor = AutoImageProcessor.from_pretrained({literal(content.name)})
text = {text.__name__}.from_pretrained({literal(_loadable(content.base_model))}).eval()
tokenizer = AutoTokenizer.from_pretrained({literal(_loadable(content.base_model))})

names = ["cat", "dog", "car"]
prompts = tokenizer([f"{sentence}" for name in names], {padding}, return_tensors="pt")
image = processor(images=Image.open("image.png").convert("RGB"), return_tensors="pt")
with torch.no_grad():
    classes = torch.nn.functional.normalize(text({tokens}).{"pooler_output" if whole else "text_embeds"}, dim=-1)
    embedding = torch.nn.functional.normalize(encoder(**image).{output}, dim=-1)
{last}"""


def _output(content: CardContent) -> str:
    """What of the encoder's output is its embedding."""
    projects = content.family is not None and content.family.projects(content.class_name)
    return "image_embeds" if projects else "pooler_output"
