"""Fetching published weights, from a server on this machine that also misbehaves."""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tinyft.errors import WeightsError
from tinyft.weights import Entry, Preprocess, cached_path, fetch, verify

CONTENT = bytes(range(256)) * 10_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    requests: list[str]

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/endless.pth":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        body = CONTENT[:1000] if self.path == "/cut.pth" else CONTENT
        self.wfile.write(body * 3 if self.path == "/endless.pth" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.paths = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def entry(server, tmp_path, monkeypatch) -> Entry:
    monkeypatch.setenv("TINYFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TINYFT_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/good.pth"
    preprocess = Preprocess(resize=256, crop=224)
    return Entry("us/net", "resnet18", url, "torch", "MIT", preprocess, DIGEST, len(CONTENT))


def assert_nothing_is_left(entry):
    left = [path for path in cached_path(entry).parent.iterdir() if path.suffix != ".lock"]
    assert left == []


def test_a_file_is_fetched_once_and_announced(entry, server):
    lines: list[str] = []
    path = fetch(entry, announce=lines.append)
    assert path.read_bytes() == CONTENT and path == cached_path(entry)
    assert len(lines) == 1 and "2.6 MB, MIT" in lines[0] and "non-commercial" in lines[0]
    assert fetch(entry, announce=lines.append) == path
    assert len(lines) == 1 and server.paths == ["/good.pth"]
    assert verify(entry) == DIGEST


def test_announced_on_stderr(entry, capsys):
    fetch(entry)
    assert "Fetching us/net" in capsys.readouterr().err


def test_eight_digits_are_enough_where_there_are_no_more(entry):
    assert fetch(replace(entry, sha256=DIGEST[:8]), announce=print).exists()


@pytest.mark.parametrize(
    ("page", "change", "message"),
    [
        ("good.pth", {"sha256": "0" * 64}, f"expected sha256 {'0' * 64}, found {DIGEST}"),
        ("good.pth", {"size": 1000}, "more than 2,000 bytes came, 1,000 were expected"),
        ("endless.pth", {}, "more than 5,120,000 bytes"),
        ("cut.pth", {}, "ended after 1,000 of 2,560,000 bytes; try again"),
        ("missing.pth", {}, r"could not be fetched.*Not Found.*save it as .*us_net\.pth"),
        ("good.pth", {"sha256": ""}, "no published sha256; to place it by hand"),
    ],
)
def test_what_is_not_the_published_file_is_thrown_away(entry, page, change, message):
    wrong = replace(entry, url=entry.url.replace("good.pth", page), **change)
    with pytest.raises(WeightsError, match=message):
        fetch(wrong, announce=lambda line: None)
    assert_nothing_is_left(wrong)


def test_no_network(entry):
    unreachable = replace(entry, url="http://127.0.0.1:9/x.pth")
    with pytest.raises(WeightsError, match=r"could not be fetched.*download http"):
        fetch(unreachable, announce=lambda line: None)


def test_offline(entry, server, monkeypatch):
    monkeypatch.setenv("TINYFT_OFFLINE", "1")
    with pytest.raises(WeightsError, match=r"TINYFT_OFFLINE forbids.*save it as"):
        fetch(entry)
    assert server.paths == []
    cached_path(entry).parent.mkdir(parents=True)
    cached_path(entry).write_bytes(CONTENT)
    assert fetch(entry) == cached_path(entry)


def test_a_changed_cache_is_noticed(entry):
    fetch(entry, announce=lambda line: None).write_bytes(b"other")
    with pytest.raises(WeightsError, match="found"):
        verify(entry)


def test_without_a_home_the_platform_decides(monkeypatch, entry):
    monkeypatch.delenv("TINYFT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert "tinyft" in cached_path(entry).parts


def _fetch(entry):
    return str(fetch(entry, announce=lambda line: None))


def test_two_processes_fetch_it_once(entry, server):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_fetch, [entry, entry])
    assert paths == [str(cached_path(entry))] * 2 and server.paths == ["/good.pth"]
