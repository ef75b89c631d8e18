"""`fare-hf app`: where it listens, and what it refuses before a model is loaded."""

from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from helpers.in_process import run_command

from fare_hf.app.serving import check_address


def free_port() -> int:
    """One that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_the_page_is_served_until_ctrl_c_and_an_open_address_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed")
    port, seen = free_port(), []

    def visit() -> None:
        seen.append(urlopen(f"http://127.0.0.1:{port}/").read().decode())
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr("fare_hf.app.serving.wait_for_ever", visit)
        run_command(["fare-hf", "app", "--host", "0.0.0.0", "--port", str(port)])
    out, err = capsys.readouterr()
    assert ended.value.code == 130 and "the same command opens the page again" in err
    assert "fare_hf" in seen[0] and "googleapis" not in seen[0]
    assert "71 of 71 tensors changed" in out and f":{port}/ (Ctrl-C ends it)" in out
    assert "host 0.0.0.0: whoever reaches this machine can open the page; there is no password." in out
    check_address("127.0.0.1", port)  # it was closed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "70000"], "--port 70000: give 1 to 65535."),
        (["--host", "203.0.113.7"], "nothing can be served at --host 203.0.113.7, --port 7860: "),
        (["--vlm", "some/vlm"], "--vlm some/vlm needs an --encoder: name the robust one that goes into it."),
        (["--template", "{}"], "--template is for other models than lab:llava, which has its own: leave it out."),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(words: list[str], said: str) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(["fare-hf", "app", *words])
    assert f"fare-hf: error: {said}" in str(ended.value.code)


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            run_command(["fare-hf", "app", "--port", str(port)])
    assert ended.value.code == f"fare-hf: error: port {port} of 127.0.0.1 is in use: give another --port."
