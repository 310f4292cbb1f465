"""`tinyft serve`: from a run's folder to an address, and to its end."""

import re
import socket
from pathlib import Path

from tinyft.inspection.server import Server


def test_a_run_is_served_until_ctrl_c(tinyft, trained, monkeypatch):
    """With its training pictures, which lie where they lay."""
    found = {}

    def serve_once(server):
        found.update(server.answer(Path("pictures/cat/0.png").read_bytes()))
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", serve_once)
    done = tinyft("serve", trained)
    assert done.code == 0 and done.err.endswith("ended\n")
    assert re.match(r"http://127\.0\.0\.1:\d+/  \(Ctrl-C ends it\)\n", done.out)
    assert {name for name, _ in found["classes"]} == {"cat", "dog"}
    assert all(shown.startswith("data:image/jpeg") for _, shown in found["nearest"])


def test_without_the_pictures_the_nearest_are_named(tinyft, trained, monkeypatch):
    def stop(server):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", stop)
    Path("pictures").rename("elsewhere")
    assert "the nearest are named, not shown" in tinyft("serve", f"{trained}/learner.h5").err


def test_a_taken_port_is_a_request_error(tinyft, trained):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = tinyft("serve", trained, "--port", str(port))
    assert done.code == 2 and f"port {port} is taken by another program" in done.error
    assert tinyft("serve", trained, "--port", "70000").code == 2
