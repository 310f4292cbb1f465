"""Fetching published weights, from a server on this machine that also misbehaves."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.request import Request

import h5py
import numpy as np
import pytest
from torch_assembler import state_dict_zip

import tinyft as ft
from tinyft.errors import NetworkError, WeightsError
from tinyft.weights import Entry, Preprocess, cached_path, fetch, load_weights, verify
from tinyft.weights.published import download
from tinyft.weights.safetensors import write_safetensors

HALF = 500_000


class Server(BaseHTTPRequestHandler):
    """Each page is the file, sent in its own way."""

    def do_GET(self):
        name, asked = self.path[1:].partition(".")[0], self.headers.get("Range")
        self.server.requests.append((name, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        with contextlib.suppress(ConnectionError):  # the client went away, as it should
            getattr(self, name)(start)

    def head(self, code, **headers):
        self.send_response(code)
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()

    def send(self, content, start=0, most=None):
        length = str(len(content) - start)
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.head(206 if start else 200, Content_Length=length, Content_Range=place)
        self.wfile.write(content[start:][:most])

    def good(self, start):
        self.send(self.server.content, start)

    def breaking(self, start):
        """Half a megabyte a connection."""
        self.send(self.server.content, start, most=HALF)

    def deaf(self, start):
        """Breaks off once, and knows no ranges."""
        again = len([name for name, _ in self.server.requests if name == "deaf"]) > 1
        self.send(self.server.content, 0, most=None if again else HALF)

    def confused(self, start):
        """Answers a range with another one."""
        if start:
            self.head(206, Content_Length="10", Content_Range="bytes 5-14/99")
            self.wfile.write(bytes(10))
        else:
            self.breaking(0)

    def full(self, start):
        """Says that there is no rest."""
        self.head(416) if start else self.breaking(0)

    def garbage(self, start):
        self.send(b"<html>Please log in to the hotel's network</html>")

    def moved(self, start):
        self.head(302, Location="/good.pth")

    def elsewhere(self, start):
        self.head(302, Location=f"http://localhost:{self.server.server_port}/good.pth")

    def ftp(self, start):
        self.head(302, Location="ftp://127.0.0.1/good.pth")

    def loop(self, start):
        self.head(302, Location="/loop.pth")

    def missing(self, start):
        self.send_error(404)

    def endless(self, start):
        self.head(200)
        for _ in range(100):
            self.wfile.write(self.server.content)

    def stalling(self, start):
        self.send(self.server.content, start, most=1000)
        self.server.go_on.wait(10)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(arrays):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.requests, server.go_on = [], threading.Event()
    server.content = state_dict_zip(arrays)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def entry(server, tmp_path, monkeypatch) -> Entry:
    monkeypatch.setenv("TINYFT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TINYFT_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    url = f"http://127.0.0.1:{server.server_port}/good.pth"
    preprocess, digest = Preprocess(resize=40, crop=32), hashlib.sha256(server.content).hexdigest()
    size = len(server.content)
    return Entry("us/net", "cifar_resnet20", url, "torch", "MIT", preprocess, digest, size)


def at(entry, page, **change):
    """The entry, to be had from another page."""
    return replace(entry, url=entry.url.replace("good.pth", page), **change)


def silently(entry):
    return fetch(entry, announce=lambda line: None)


def left(entry):
    """What is in the cache beside locks."""
    return sorted(p.name for p in cached_path(entry).parent.iterdir() if p.suffix != ".lock")


# ------------------------------------------------------------------------------------ what works


def test_a_file_is_fetched_once_announced_and_converted(entry, server, arrays):
    lines: list[str] = []
    path = fetch(entry, announce=lines.append)
    assert path == cached_path(entry) and left(entry) == ["us_net.h5"]
    found = load_weights(path)
    assert list(found.arrays) == list(arrays)
    assert all(np.array_equal(found.arrays[name], arrays[name]) for name in arrays)
    assert found.preprocess == entry.preprocess and found.arch == "cifar_resnet20"
    assert found.metadata["licence"] == "MIT" and found.metadata["source_url"] == entry.url
    assert found.metadata["source_sha256"] == entry.sha256
    assert len(lines) == 1 and "1.1 MB, MIT" in lines[0] and "non-commercial" in lines[0]
    assert fetch(entry, announce=lines.append) == path
    assert len(lines) == 1 and server.requests == [("good", None)]
    assert verify(entry) == entry.sha256


def test_announced_on_stderr(entry, capsys):
    fetch(entry)
    assert "Fetching us/net" in capsys.readouterr().err


def test_a_learner_fetches_its_weights_on_first_use(entry, server, arrays, monkeypatch, capsys):
    monkeypatch.setattr("tinyft.weights.load.find", {"cifar_resnet20": entry}.__getitem__)
    pair = np.zeros((4, 32, 32, 3), np.uint8), np.array([0, 1, 0, 1])
    for _ in range(2):
        learner = ft.vision_learner(ft.ImageArrays(pair, pair, batch_size=2), "cifar_resnet20")
    assert np.array_equal(learner.model.conv1.weight.data, arrays["conv1.weight"])
    assert learner.preprocess == replace(entry.preprocess, whole_square=True)  # as training shows
    assert capsys.readouterr().err.count("Fetching us/net (1.1 MB, MIT)") == 1
    assert len(server.requests) == 1


def test_eight_digits_are_enough_where_there_are_no_more(entry):
    assert silently(replace(entry, sha256=entry.sha256[:8])).exists()


def test_a_redirect_is_followed(entry, server):
    assert silently(at(entry, "moved.pth")).exists()
    assert [name for name, _ in server.requests] == ["moved", "good"]


def test_how_far_it_is_is_said_now_and_then(entry, monkeypatch):
    monkeypatch.setattr("tinyft.weights.published.download._SECONDS_BETWEEN_LINES", 0)
    lines: list[str] = []
    fetch(entry, announce=lines.append)
    assert len(lines) > 1 and lines[-1] == "  1.1 of 1.1 MB"


def test_on_a_terminal_one_line_counts(entry, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("tinyft.weights.published.download._SECONDS_BETWEEN_COUNTS", 0)
    monkeypatch.setenv("TERM", "xterm")
    fetch(entry)
    err = capsys.readouterr().err
    assert "\r  1.1 of 1.1 MB" in err and err.endswith("\r\x1b[K")


def test_a_safetensors_file_of_the_same_weights_is_preferred(entry, server, arrays, monkeypatch):
    path = cached_path(entry).parent.parent / "twin.safetensors"
    path.parent.mkdir()
    write_safetensors(path, arrays, {})
    pickled, server.content = server.content, path.read_bytes()
    digest = hashlib.sha256(server.content).hexdigest()
    twin = at(entry, "good.safetensors", id="hub/net", format="safetensors", sha256=digest,
              same_weights_as="us/net", preprocess=Preprocess(resize=99, crop=9))  # fmt: skip
    monkeypatch.setattr("tinyft.weights.published.registry.entries", lambda: (entry, twin))
    found = load_weights(silently(entry))
    assert found.metadata["source_format"] == "safetensors"
    assert found.preprocess == entry.preprocess  # of the name that was asked for
    assert verify(entry) == digest
    cached_path(entry).unlink()
    lines: list[str] = []  # the twin has another content now: the entry's own file is taken
    server.content = pickled
    assert load_weights(fetch(entry, lines.append)).metadata["source_format"] == "torch"
    assert len(lines) == 2 and "expected sha256" in lines[1]
    assert lines[1].endswith(f"; trying {entry.url}")


# ----------------------------------------------------------------------------- what breaks off


def test_a_download_that_broke_off_is_gone_on_with(entry, server):
    breaking = at(entry, "breaking.pth")
    asked = [None, f"bytes={HALF}-", f"bytes={2 * HALF}-"]
    for done in range(1, 3):
        message = rf"ended after {done * HALF:,} of [\d,]+ bytes; what came is kept, and the next"
        with pytest.raises(WeightsError, match=message):
            silently(breaking)
        assert left(entry) == ["us_net.pth.part"]
    assert load_weights(silently(breaking)).metadata["source_sha256"] == entry.sha256
    assert server.requests == [("breaking", start) for start in asked]
    assert left(entry) == ["us_net.h5"]


@pytest.mark.parametrize("page", ["deaf.pth", "confused.pth", "full.pth"])
def test_a_server_that_does_not_send_the_rest_is_asked_for_all_of_it(entry, page):
    with pytest.raises(WeightsError, match="ended after"):
        silently(at(entry, page))
    if page == "deaf.pth":
        assert silently(at(entry, page)).exists()
    else:
        with pytest.raises(WeightsError, match=f"ended after {HALF:,}"):
            silently(at(entry, page))
        assert silently(entry).exists()


def test_a_rest_that_belongs_to_another_file_is_noticed(entry, server):
    part = cached_path(entry).with_name("us_net.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * HALF)
    with pytest.raises(WeightsError, match="expected sha256"):
        silently(entry)
    assert left(entry) == [] and silently(entry).exists()


def test_a_download_that_is_whole_is_not_asked_for_again(entry, server):
    part = cached_path(entry).with_name("us_net.pth.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(server.content)  # killed before it was converted
    assert silently(entry).exists() and server.requests == []
    assert left(entry) == ["us_net.h5"]


def test_without_a_sha256_nothing_is_gone_on_with(entry, server, arrays, tmp_path):
    write_safetensors(tmp_path / "net.safetensors", arrays, {})
    server.content = (tmp_path / "net.safetensors").read_bytes()
    unsigned = at(entry, "breaking.safetensors", sha256="", format="safetensors")
    for _ in range(2):
        with pytest.raises(WeightsError, match=rf"ended after {HALF:,} of [\d,]+ bytes; to place"):
            silently(unsigned)
    assert server.requests == [("breaking", None)] * 2
    assert silently(replace(unsigned, url=entry.url)).exists()


def test_a_server_that_falls_silent(entry, monkeypatch):
    monkeypatch.setattr("tinyft.weights.published.download._TIMEOUT", 0.2)
    with pytest.raises(WeightsError, match=r"stalling\.pth: nothing came for 0\.2 s"):
        silently(at(entry, "stalling.pth"))
    assert left(entry) == ["us_net.pth.part"]
    assert silently(entry).exists()


# -------------------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("page", "change", "message"),
    [
        ("good.pth", {"sha256": "0" * 64}, f"expected sha256 {'0' * 64}, found [0-9a-f]{{64}}"),
        ("garbage.pth", {}, "expected sha256"),
        ("garbage.safetensors", {"sha256": "", "format": "safetensors"}, "neither HDF5"),
        ("good.pth", {"size": 1000}, "more than 2,000 bytes came, 1,000 were expected"),
        ("endless.pth", {}, r"more than 2,\d+,\d+ bytes came"),
        ("missing.pth", {}, r"HTTP Error 404: Not Found"),
        ("loop.pth", {}, "HTTP Error 302.*infinite loop"),
        ("good.pth", {"sha256": ""}, "no published sha256"),
    ],
)
def test_what_is_not_the_published_file_is_thrown_away(entry, page, change, message):
    wrong = at(entry, page, **change)
    with pytest.raises(WeightsError, match=rf"(?s){message}.*by hand, download http.*save it as"):
        silently(wrong)
    assert left(wrong) == []


def test_an_encrypted_address_does_not_lead_to_an_open_one():
    opener = download.opener("https://example.org/x", announce=lambda line: None)
    request, response = Request("https://example.org/x"), SimpleNamespace(read=bytes, close=bytes)
    response.headers = headers = {"location": "http://example.org/y"}
    with pytest.raises(NetworkError, match=r"http://example.org/y, which is not encrypted"):
        opener.error("http", request, response, 302, "Found", headers)


def test_a_redirect_to_ftp_is_not_followed(entry):
    message = r"ftp\.pth: leads to ftp://127\.0\.0\.1/good\.pth, which is not encrypted"
    with pytest.raises(NetworkError, match=message):
        silently(at(entry, "ftp.pth"))


def test_a_redirect_to_another_host_is_said(entry, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    lines: list[str] = []
    assert fetch(at(entry, "elsewhere.pth"), lines.append).exists()
    assert lines[1:] == ["  127.0.0.1 leads to localhost"]


@pytest.mark.parametrize("digits", [0, 8])
def test_where_no_whole_sha256_is_published_the_first_is_kept(
    digits, entry, server, arrays, tmp_path
):
    write_safetensors(tmp_path / "net.safetensors", arrays, {})
    server.content = (tmp_path / "net.safetensors").read_bytes()
    first = hashlib.sha256(server.content).hexdigest()
    short = at(entry, "good.safetensors", sha256=first[:digits], format="safetensors")
    lines: list[str] = []
    path = fetch(short, lines.append)
    assert ("No sha256 is published for it" in lines[0]) == (digits == 0)
    assert left(entry) == ["us_net.h5", "us_net.sha256"]
    path.unlink()
    assert silently(short).exists()  # the same file
    path.unlink()
    write_safetensors(tmp_path / "net.safetensors", arrays, {"changed": "by somebody"})
    server.content = (tmp_path / "net.safetensors").read_bytes()
    short = replace(short, sha256=hashlib.sha256(server.content).hexdigest()[:digits])
    message = rf"its sha256 was {first} when .*delete .*us_net\.sha256 to take the new"
    with pytest.raises(WeightsError, match=message):
        silently(short)
    assert left(entry) == ["us_net.sha256"]
    (path.parent / "us_net.sha256").unlink()
    assert silently(short).exists()


def test_no_network(entry):
    with pytest.raises(NetworkError, match=r"could not be.*refused.*download http.*as .*\.pth"):
        silently(replace(entry, url="http://127.0.0.1:9/x.pth"))


def test_offline(entry, server, monkeypatch):
    monkeypatch.setenv("TINYFT_OFFLINE", "1")
    placed = cached_path(entry).with_suffix(".pth")
    with pytest.raises(WeightsError) as caught:
        fetch(entry)
    assert str(caught.value).startswith("TINYFT_OFFLINE forbids to fetch us/net; ")
    assert f"download {entry.url} and save it as {placed}" in str(caught.value)
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"something else")
    with pytest.raises(WeightsError, match=rf"expected sha256.*It is {placed}: delete it first"):
        fetch(entry)
    placed.write_bytes(server.content)
    assert load_weights(fetch(entry)).metadata["source_sha256"] == entry.sha256
    assert placed.exists() and server.requests == []  # it is the user's, and stays


def test_a_changed_cache_is_noticed(entry, monkeypatch):
    path = silently(entry)
    with h5py.File(path, "r+") as file:
        file["weights/fc/bias"][0] += 1
    with pytest.raises(WeightsError, match="damaged or was edited"):
        verify(entry)
    monkeypatch.setattr("tinyft.weights.load.find", lambda name: entry)
    with pytest.raises(WeightsError, match=r"damaged.*us_net\.h5; fetched anew once it is deleted"):
        load_weights("us/net")
    with pytest.raises(WeightsError, match="expected sha256 0000"):
        path.unlink()
        silently(entry)
        verify(replace(entry, sha256="0000"))


def test_a_cache_that_cannot_be_written(entry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYFT_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"file/weights cannot be written .*set TINYFT_HOME"):
        fetch(entry)


def test_without_a_home_the_platform_decides(monkeypatch, entry):
    monkeypatch.delenv("TINYFT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert "tinyft" in cached_path(entry).parts


def test_a_home_in_the_home_folder_is_found(monkeypatch, entry, tmp_path):
    """As a container's settings give it: no shell has replaced the ~."""
    from tinyft.backends.cpu.codegen import cache as compile_cache

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TINYFT_HOME", "~/x")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert cached_path(entry).parent == tmp_path / "x" / "weights"
    assert compile_cache.cache_home() == tmp_path / "x"


def _fetch(entry):
    return str(silently(entry))


@pytest.mark.slow
def test_two_processes_fetch_it_once(entry, server):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_fetch, [entry, entry])
    assert paths == [str(cached_path(entry))] * 2 and server.requests == [("good", None)]


def test_what_a_killed_process_left_is_swept_away(entry):
    stale = cached_path(entry).with_name(".us_net.h5.0123abcd.part")
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    silently(entry)
    assert left(entry) == ["us_net.h5"]
