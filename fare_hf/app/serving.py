"""From names to a page that is served: what is checked before a model is loaded."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading

__all__ = ["check_address", "serve", "wait_for_ever"]


def serve(vlm: str, encoder: str, *, host: str = "127.0.0.1", port: int = 7860, template: str | None = None) -> None:
    """Loads two models and serves the page until the program is interrupted.

    Args:
        vlm, encoder, template: as for `fare_hf.app.models.load_models`.
        host: address to listen at; another one than the loopback address is reachable for others, which is said.
        port: which must be free.

    Raises:
        ImportError: gradio is not installed.
        ValueError, OSError: an address that cannot be used, or what `load_models` raises.
    """
    check_address(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        from fare_hf.app.page import build_page, open_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ImportError("the page needs gradio: pip install gradio.") from None
    from fare_hf.app.models import load_models

    models, report = load_models(vlm, encoder, template)
    print(report)
    page = build_page(models)
    print(f"{open_page(page, host, port)} (Ctrl-C ends it)", flush=True)
    if not _is_loopback(host):
        print(f"host {host}: whoever reaches this machine can open the page; there is no password.", flush=True)
    try:
        wait_for_ever()
    finally:
        page.close()


def wait_for_ever() -> None:
    """Until Ctrl-C."""
    threading.Event().wait()


def check_address(host: str, port: int) -> None:
    """Refuses an address that nothing can be served at, before anything is loaded.

    Raises:
        ValueError: a port in use or reserved, or a host that is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {port} of {host} is in use: give another --port.") from None
        raise ValueError(f"nothing can be served at --host {host}, --port {port}: {error}.") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
