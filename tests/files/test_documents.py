"""Documents of strangers: too large, too deep, without an end, unfolding; each is one sentence, soon."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fare_hf.files.documents import (
    front_matter,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_object,
    read_text,
    read_yaml,
)

LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {k0: 0}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}], k{i}: 0}}\n" for i in range(1, 40)
)


def test_what_never_ends_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        for read in (read_bytes, read_text, read_json, read_yaml):
            with pytest.raises(ValueError, match="is no file"):
                read(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")


def test_sizes(tmp_path: Path) -> None:
    path = tmp_path / "card"
    path.write_bytes(b"x" * 1000)
    assert read_text(path, 1000) == "x" * 1000
    with pytest.raises(ValueError, match="card' is larger than"):
        read_text(path, 999)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte: only its beginning may be read
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        read_text(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_text(path)


@pytest.mark.parametrize("levels", [70, 900, 100_000])
def test_depth(levels: int) -> None:
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        with pytest.raises(ValueError, match="x is nested deeper than 64 levels"):
            parse_json(text, "x")
        with pytest.raises(ValueError, match="x is nested deeper than 64 levels"):
            parse_yaml(text.replace(":", ": "), "x")
    assert parse_json("[" * 60 + "]" * 60, "x") == parse_yaml("[" * 60 + "]" * 60, "x")


@pytest.mark.parametrize("text", [LAUGHS, MERGED, "&a [*a]", "&a {b: *a}", "a: &a [*b]\nb: &b [*a]"])
def test_what_unfolds(text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match="x is not YAML"):
        parse_yaml(text, "x")
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize(
    "text",
    [
        "!!int ''",
        "!!bool x",
        "!!timestamp x",
        "2020-99-99",
        "9" * 5000,
        "!!python/name:os.system",
        "a: b: c",
        "*a",
        "a: 1\na: 2",
    ],
)
def test_broken_yaml_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="x is not YAML") as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value)


def test_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("[1]", "1", '"a"', "null"):
        path.write_text(text)
        with pytest.raises(ValueError, match="holds no JSON object"):
            read_object(path)
    path.write_text('{"a": 1,}')
    with pytest.raises(ValueError, match="a.json' is not valid JSON"):
        read_json(path)


def test_plain_documents_are_read_as_ever() -> None:
    text = "base: &base {eps: [2/255, 4/255], steps: 10}\njobs:\n- {<<: *base, kind: drift}\n- *base\n"
    assert parse_yaml(text, "x") == yaml.safe_load(text)
    assert parse_yaml("", "x") is None


def test_heads_of_cards() -> None:
    assert front_matter("---\nlicense: mit\n---\n# x\n---\n", "x") == {"license": "mit"}
    assert front_matter("\n---\r\nlicense: mit\r\n---\r\n", "x") == {"license": "mit"}
    assert front_matter("# no head\n---\n", "x") == front_matter("---\n---\n", "x") == {}
    for head in ("- a", "a", LAUGHS, "a: [b"):
        with pytest.raises(ValueError, match="^x "):
            front_matter(f"---\n{head}\n---\n", "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(VALUES)
def test_values_come_back(value: object) -> None:
    assert parse_yaml(yaml.safe_dump(value), "x") == yaml.safe_load(yaml.safe_dump(value))


@given(st.text(alphabet="ab &*[]{}:-\n!<>|'\"#?,\t01", max_size=40))
def test_any_text_is_a_value_or_a_sentence(text: str) -> None:
    for parse in (parse_json, parse_yaml):
        try:
            parse(text, "x")
        except ValueError as error:
            assert str(error).startswith("x ")
