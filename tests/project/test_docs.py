"""The docs are true: generated pages are what the code says now, the index has every page, quoted errors exist."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import yaml
from helpers.in_process import run_command
from helpers.pages import blocks
from helpers.paths import EXAMPLES, ROOT

from fare_hf.files.documents import front_matter
from fare_hf.objectives import OBJECTIVES
from fare_hf.suites.suite import KINDS
from fare_hf.training.config import CHEAPER
from tools.docs import INSERTIONS, PAGES, text_of, write_pages
from tools.docs.docstrings import listed, section

DOCS = ROOT / "docs"


@pytest.mark.parametrize("name", [*PAGES, *INSERTIONS])
def test_generated_pages_are_up_to_date(name: str) -> None:
    """Else `python -m tools.docs` writes them again."""
    assert (ROOT / name).read_text(encoding="utf-8") == text_of(name)


def test_what_was_edited_is_written_again(tmp_path: Path) -> None:
    for name in INSERTIONS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text().replace("| 10 steps |", "| 9 steps |"))
    (tmp_path / "docs/gallery.md").write_text("edited")
    changed = {path.relative_to(tmp_path).as_posix() for path in write_pages(tmp_path)}
    assert changed == {*PAGES, *INSERTIONS} and "| 10 steps |" in (tmp_path / "docs/experimental.md").read_text()
    assert write_pages(tmp_path) == []


def test_a_page_says_every_setting_option_and_kind() -> None:
    jobs, training = (text_of(f"docs/reference/{name}.md") for name in ("jobs", "training"))
    for name, kind in KINDS.items():
        assert f"## `{name}`" in jobs and all(f"| `{setting}` |" in jobs for setting in kind.settings())
    assert all(f"| `--{name}` |" in training for name in (*CHEAPER, "eps", "objective", "resume_from_checkpoint"))
    assert all(line.split("|")[4].strip() for line in jobs.splitlines() if line.startswith("| `"))


def test_a_section_is_taken_apart() -> None:
    def example() -> None:
        """Text.

        Args:
            a, b: of both,
                on two lines.
            c: alone.

        Returns:
            Nothing.
        """

    assert listed(section(example, "Args:")) == {
        "a": "of both, on two lines.",
        "b": "of both, on two lines.",
        "c": "alone.",
    }
    assert section(example, "Raises:") == ""


def test_the_index_has_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} - {"README.md"}
    assert pages <= set(re.findall(r"\]\(([^)#]+)\)", index))


def test_every_example_is_in_their_index() -> None:
    index = (EXAMPLES / "README.md").read_text()
    paths = [path for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".ipynb")]
    assert paths and all(f"]({path.relative_to(EXAMPLES).as_posix()}) |" in index for path in paths)


@cache
def sentences() -> list[str]:
    """Every text of the package, with `...` for what it fills in."""
    found = []
    for path in (ROOT / "fare_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values))  # type: ignore[misc]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


ERRORS = re.findall(r"^### `+ ?(.*?) ?`+$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


def test_ten_errors_are_explained() -> None:
    assert len(ERRORS) >= 10 and len(set(ERRORS)) == len(ERRORS)


@pytest.mark.parametrize("sentence", ERRORS)
def test_an_error_that_is_explained_is_the_code_s(sentence: str) -> None:
    assert sentence in sentences()


def test_every_objective_and_cheaper_option_is_explained() -> None:
    recipes, experimental = ((DOCS / f"{name}.md").read_text() for name in ("recipes", "experimental"))
    assert all(f"| `{name}` |" in recipes for name in OBJECTIVES)
    assert all(f"--{name}" in experimental for name in CHEAPER)


def test_the_estimate_on_the_page_is_what_the_command_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks("docs/fine-tune.md")
    number = next(number for number, block in enumerate(found) if block.text.startswith("fare-hf estimate"))
    monkeypatch.chdir(ROOT)
    run_command(shlex.split(found[number].text))
    assert found[number + 1].language == "text" and found[number + 1].text in capsys.readouterr().out


def test_figures_of_the_gallery_have_a_source() -> None:
    content = yaml.safe_load((DOCS / "gallery.yaml").read_text())
    for group in content["groups"]:
        assert all(encoder["link"].startswith("https://") and encoder["here"] for encoder in group["encoders"])
        assert "figures" not in group or "https://" in group["figures"]["source"]


@pytest.mark.parametrize("name", ["bug", "new_model", "new_evaluation"])
def test_issue_templates_are_read_by_the_forge(name: str) -> None:
    path = ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.md"
    assert set(front_matter(path.read_text(), str(path))) == {"name", "about", "labels"}
