"""Every block of the README and of docs/ runs (`helpers/pages.py` says how); links lead somewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from helpers.pages import OWN_TEST, PAGES, Block, Session, blocks, prepare
from helpers.paths import ROOT, TESTS


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has at the start of a page."""
    folder = tmp_path_factory.mktemp("reader")
    prepare(folder)
    return folder


@pytest.fixture
def session(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Session:
    """A reader of a page, in a folder of their own."""
    shutil.copytree(prepared, tmp_path / "reader")
    monkeypatch.chdir(tmp_path / "reader")
    return Session(getattr(request, "param", "README.md"), monkeypatch)


@pytest.mark.parametrize("session", [page for page in PAGES if blocks(page)], indirect=True)
def test_blocks_run(session: Session) -> None:
    for block in blocks(session.page):
        session.run(block)


def test_pages_with_a_test_of_their_own_are_there() -> None:
    for page, test in OWN_TEST.items():
        assert (ROOT / page).exists() and Path(page).name in (TESTS / test).read_text()


@pytest.mark.parametrize(
    "block",
    [
        Block("", "fare-hf evaluate lab:clip\n", 1),
        Block("yaml", "jobs: []\n", 1),
        Block("bash", "rm -r outputs\n", 1),
        Block("bash", "fare-hf quickstart --setps 3\n", 1),
        Block("bash", "fare-hf evaluate lab:clip --dataset lab:nothing --output_dir out\n", 1),
        Block("bash", 'pip install ".[nothing]"\n', 1),
        Block("bash", "make nothing\n", 1),
        Block("python", "1 / 0\n", 1),
    ],
)
def test_what_does_not_run_is_refused(session: Session, block: Block) -> None:
    with pytest.raises((AssertionError, SystemExit, ZeroDivisionError)):
        session.run(block)


@pytest.mark.parametrize("page", [*PAGES, *OWN_TEST])
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    for target, anchor in [*links, *((source, "") for source in re.findall(r'<img src="([^"]*)"', text))]:
        path = ((ROOT / page).parent / target) if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def anchors(path: Path) -> set[str]:
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
