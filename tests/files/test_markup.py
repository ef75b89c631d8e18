"""Texts of strangers on cards and in reports: whatever they are, the page around them stays what it is."""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.hub import FOUR, encoder, report, save
from helpers.tiny_clip import tiny_processor
from hypothesis import given, settings
from hypothesis import strategies as st

from fare_hf.evaluation import RobustnessReport
from fare_hf.evaluation.report.tables import markdown
from fare_hf.files.credentials import names_secret
from fare_hf.files.markup import inline, is_link, literal
from fare_hf.hub.base_model import inherited_license
from fare_hf.hub.card.render import BREAKS, CardContent, render_card
from fare_hf.hub.licenses import LICENSES
from fare_hf.hub.merge.card import merge_card
from fare_hf.hub.merge.plan import Merge

NASTY = [
    "a|b|c",
    "a\\|b",
    "back\\",
    "line\nbreak | x |\n|---|\n",
    "`code` ``` \n```python\nimport os\n```",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/pixel.png)",
    "*bold* __bold__ ~~gone~~ $x$",
    "&lt;b&gt; &#60;",
    "# title",
    '"); import os; os.system("x") #',
    "\u202eevil\u202c \u2028 \x1b[31m \x7f",
    "name: x\n---\nlicense: mit",
    "{{ card_data }} {% raw %}",
    "'\"\\'",
]
TEXTS = st.sampled_from(NASTY) | st.text(min_size=1, max_size=60)
NAMES = TEXTS.filter(lambda text: text.strip() and not text.startswith("/"))


def cells(line: str) -> int:
    """Columns of a line of a table, as GitHub counts them."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line))


def check_page(page: str) -> None:
    """Every table has one number of columns, every Python block parses, and no markup came in."""
    head, _, body = page.removeprefix("---\n").partition("\n---\n")
    fences = re.split(r"^```", body, flags=re.MULTILINE)
    assert len(fences) % 2 == 1
    for code in fences[1::2]:
        if code.startswith("python\n"):
            ast.parse(code.removeprefix("python\n"))
    prose = "\n".join(fences[::2])
    for table in re.findall(r"(?:^\|.*\n?)+", prose, re.MULTILINE):
        assert len({cells(line) for line in table.splitlines()}) == 1, table
    assert not re.search(r"<(?!https?:)", prose)
    for target in re.findall(r"(?<!\\)\]\(([^)]*)\)", prose):
        assert re.match(r"https?://|results\.png$", target), target
    assert yaml.safe_load(head)["library_name"] == "transformers"


@given(TEXTS)
def test_literals_are_what_they_stand_for(text: str) -> None:
    assert ast.literal_eval(literal(text)) == text
    assert "\n" not in literal(text)


@pytest.mark.parametrize("text", NASTY)
def test_inline_texts_begin_nothing(text: str) -> None:
    shown = inline(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|]|[<>\n\r]", shown) and shown.isprintable()


def test_usual_names_stay_as_they_are() -> None:
    for name in ("fare4-clip_vit-large", "FARE, 4/255", "./clip", "PGD, 10 steps (l2)", "lr 1e-5; a, b: 0.9", "50 %"):
        assert inline(name) == name
    assert len(inline("x" * 10_000)) < 400


@settings(max_examples=20, deadline=None)
@given(NAMES, NAMES, NAMES, st.dictionaries(NAMES, NAMES, max_size=3))
def test_any_name_gives_a_whole_card(name: str, base: str, vlm: str, training: dict[str, str]) -> None:
    rows = [dataclasses.replace(row, model=name, dataset=base, task=vlm) for row in report(0.5).rows]
    rows = [dataclasses.replace(row, attack=row.attack and {**row.attack, "name": vlm}) for row in rows]
    content = CardContent(
        name=name,
        base_model=f"./{base}",
        class_name="CLIPVisionModelWithProjection",
        threat_model=FOUR,
        training={key: value for key, value in training.items() if key != "objective" and not names_secret(key)},
        report=RobustnessReport(rows),
        license="other",
        license_name=base,
        license_link="https://example.org/licence",
        vlm=vlm,
        plot="results.png",
    )
    for shown in (content, dataclasses.replace(content, text_encoder=True)):
        page = render_card(shown)
        check_page(page)
        head = yaml.safe_load(page.split("\n---\n")[0].removeprefix("---\n"))
        assert head["license_name"] == base.translate(BREAKS)
        assert head["model-index"][0]["name"] == name.rsplit("/", 1)[-1].translate(BREAKS)
        assert head["model-index"][0]["results"][0]["dataset"]["name"] == base.translate(BREAKS)


@settings(max_examples=20, deadline=None)
@given(NAMES, NAMES, st.lists(NAMES, max_size=2), st.dictionaries(st.sampled_from(["license", "license_link"]), TEXTS))
def test_any_name_gives_a_whole_card_of_a_merge(out: str, parent: str, files: list[str], card: dict[str, str]) -> None:
    names = {field.name for field in dataclasses.fields(Merge)}
    made: dict[str, Any] = {name: None for name in names}
    made |= {"vlm": parent, "encoder": out, "out": out, "tensors": 3, "cosine": 0.5, "resolution": (224, 336)}
    made |= {"rewritten": tuple(files), "left_out": tuple(files)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a licence that the Hub does not know, which is left out
        page = merge_card(Merge(**made), "LlavaForConditionalGeneration", card, None)
    check_page(page)
    head = yaml.safe_load(page.split("\n---\n")[0].removeprefix("---\n"))
    assert head.get("license") == (card.get("license") if card.get("license") in LICENSES else None)
    assert "javascript" not in str(head.get("license_link"))


def test_reports_hold_their_tables() -> None:
    for text in NASTY:
        rows = [dataclasses.replace(row, model=text, dataset=text) for row in report(0.5).rows]
        check_page("---\nlibrary_name: transformers\n---\n" + markdown(rows))


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", "data:text/html,x", "https://a) [x](b", "https://a b", "ftp://a", "https://", ""]
)
def test_links_are_of_the_web(link: str, tmp_path: Path) -> None:
    assert not is_link(link)
    if link:
        with pytest.raises(ValueError, match="is no http"):
            save(tmp_path / "fare4", license="other", license_link=link)
    folder = tmp_path / "base"
    encoder().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    head = yaml.safe_dump({"license": "other", "license_name": "x", "license_link": link})
    (folder / "README.md").write_text(f"---\n{head}---\n")
    assert inherited_license(str(folder)) == {"license": "other", "license_name": "x"}


def test_a_card_that_unfolds_or_never_ends_hands_on_nothing(tmp_path: Path) -> None:
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 30))
    (tmp_path / "README.md").write_text(f"---\n{laughs}license: mit\n---\n")
    assert inherited_license(str(tmp_path)) == {}
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").symlink_to("/dev/zero")
    assert inherited_license(str(tmp_path)) == {}
