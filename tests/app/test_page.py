"""The page in a real browser, served by the program of a Space: attack, answers, curve, wrong files, no network."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml
from helpers.browser import chromium
from helpers.paths import ROOT
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: the page is tested where fare_hf[app] is")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `examples/space/app.py`, started as a Space starts it, but on the loopback address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("space") / "log.txt"
    options = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        program = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT / "examples/space",
            env=os.environ | options | {"PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 240
        while "Ctrl-C" not in log.read_text():
            assert program.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        program.kill()
        program.wait()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """The page, loaded; whatever it asks of other machines is written down."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("#attack")
        yield page


def attack(page: Any, steps: int) -> None:
    """Presses the button and waits for all four answers."""
    page.locator("#steps input[type=number]").fill(str(steps))
    page.locator("#steps input[type=number]").blur()
    page.click("#attack")
    page.wait_for_function(f"document.querySelector('#answers').innerText.includes('{steps} steps')")
    page.wait_for_function("document.querySelectorAll('#answers .fare-model p.fare-foot').length == 2")


def upload(page: Any, path: Path) -> None:
    """Through the button and the browser's own dialogue."""
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    chooser.value.set_files(path)


def test_an_attack_on_both_models(page: Any, tmp_path: Path) -> None:
    page.get_by_alt_text("bus").click()
    page.wait_for_selector("#note >> text=this picture of: bus")
    attack(page, 3)
    assert page.evaluate("[...document.querySelectorAll('#losses polyline')].map(l => l.points.length)") == [4, 4]
    said = page.locator("#answers").inner_text()
    assert said.count("a photo of a bus") >= 2 and "linf 2/255, APGD, 3 steps" in said
    assert [len(re.findall(word, said)) for word in ("clean:", "attacked:", "difference", "Transferred:")] == [2] * 4
    sizes = page.evaluate("[...document.querySelectorAll('#answers img')].map(i => i.naturalWidth)")
    assert sizes == [160] * 6
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == 1280 and len(shot.convert("RGB").getcolors(2**24)) > 1000


def test_a_text_to_force_and_an_upload(page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "orange").save(tmp_path / "mine.jpg")
    upload(page, tmp_path / "mine.jpg")
    page.wait_for_selector("#note >> text=your picture")
    page.get_by_label("make it say:").check()
    page.get_by_role("textbox", name="Text").fill("a photo of a <b>cat</b>")
    attack(page, 2)
    assert "to say “a photo of a <b>cat</b>”" in page.locator("#answers").inner_text()
    page.get_by_role("textbox", name="Text").fill(" ")
    sentence = page.locator("#note >> text=there is no text to force: write one.")
    while not sentence.is_visible():  # a click before the last attack has ended is ignored
        page.click("#attack")
        page.wait_for_timeout(300)


def test_a_wrong_file_gets_a_sentence(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    upload(page, tmp_path / "notes.txt")
    page.wait_for_selector(
        "#note >> text=notes.txt is no image that can be read (cannot identify image file 'notes.txt')"
    )


def test_nothing_is_asked_of_another_machine(page: Any, address: str) -> None:
    assert page.asked and [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []


def test_a_file_of_more_than_10_mb_is_not_taken(address: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"0" * 11 * 2**20
    request = Request(
        f"{address}gradio_api/upload", body + b"\r\n--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(HTTPError) as refused:
        urlopen(request)
    assert refused.value.code == 413


def test_a_space_is_of_the_pinned_gradio() -> None:
    _, front, _ = (ROOT / "examples/space/README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert (facts["sdk"], facts["app_file"], facts["license"]) == ("gradio", "app.py", "apache-2.0")
    assert f"gradio=={facts['sdk_version']}\n" in (ROOT / "constraints.txt").read_text()
    assert (ROOT / "examples/space/requirements.txt").read_text() == "fare_hf[app]\n"


@pytest.mark.slow
def test_one_attack_at_a_time_and_a_stopped_one_ends(page: Any, address: str) -> None:
    points = "[...document.querySelectorAll('#losses polyline')].map(line => line.points.length)"
    first, second = (page.context.browser.new_page() for _ in range(2))
    for visitor in (first, second):
        visitor.goto(address)
        visitor.wait_for_selector("#attack")
        visitor.locator("#steps input[type=number]").fill("200")
        visitor.locator("#steps input[type=number]").blur()
        visitor.click("#attack")
        visitor.wait_for_timeout(3000)
    assert first.evaluate(points)[0] > 1 and second.evaluate(points) == []
    first.click("#stop")
    second.wait_for_function(f"{points}[0] > 10", timeout=60_000)
    stopped = first.evaluate(points)
    second.click("#stop")
    second.wait_for_timeout(2000)
    assert first.evaluate(points) == stopped and sum(stopped) < 402
