"""The page to try a network with: what visitors get, and what is refused before it costs much."""

from __future__ import annotations

import http.client
import io
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

import tinyft as ft
from tests.finetune.conftest import bits, pictures, small_learner
from tinyft.data.picture import prepare
from tinyft.inspection.report.images import grad_cams, overlay
from tinyft.inspection.server import HEADERS, LARGEST, Server, data_uri, photos_of


def file_of(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Knows its training pictures, of which "train[0]" to "train[22]" are still in its folder."""
    folder = tmp_path_factory.mktemp("server")
    small_learner().save(folder / "a.h5")
    (folder / "photos").mkdir()
    for i, pixels in enumerate(pictures()[0][:23]):
        (folder / "photos" / f"train[{i}]").write_bytes(file_of(pixels))
    (folder / "secret.png").write_bytes(file_of(pictures()[0][0]))
    learner = ft.load_learner(folder / "a.h5")
    with Server(learner, title="<b>my run", photos=folder / "photos") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server, data: bytes, **headers: str):
    address = f"http://127.0.0.1:{server.port}/answer"
    request = urllib.request.Request(address, data, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as reply:
        with reply:
            return reply.code, json.load(reply)


def send(server, method: str, path: str, headers: dict[str, str]):
    """A request without a body, whatever its headers say."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    reply = connection.getresponse()
    found = reply.status, reply.headers, reply.read().decode()
    connection.close()
    return found


def test_a_picture_is_answered_as_predict_and_the_report_do(server):
    pixels, learner = pictures()[0][4], server.learner
    before = bits(learner)
    status, found = ask(server, file_of(pixels))
    expected = learner.predict(pixels)
    assert status == 200 and found["classes"][0][0] == expected.label
    order = np.argsort(-expected.probabilities)
    assert [name for name, _ in found["classes"]] == [learner.classes[i] for i in order]
    shares = [share for _, share in found["classes"]]
    assert shares == pytest.approx(expected.probabilities[order].tolist(), abs=1e-5)
    assert found["similarity"] == pytest.approx(expected.similarity, abs=1e-5)
    assert found["unlike"] == expected.unlike
    seen = prepare(pixels, learner.adjusted_preprocess())
    assert found["picture"] == data_uri(seen, lossless=False)
    heat = grad_cams(learner, seen[None], order[:1])[0]
    assert found["evidence"] == data_uri(overlay(seen, heat), lossless=False)
    assert bits(learner) == before


def test_the_nearest_training_pictures_are_shown_if_they_are_there(server):
    names, shown = zip(*ask(server, file_of(pictures()[0][4]))[1]["nearest"], strict=True)
    assert names[0] == "train[4]" and shown[0].startswith("data:image/jpeg;base64,")
    assert ask(server, file_of(pictures()[0][23]))[1]["nearest"][0] == ["train[23]", None]
    for name in ("../secret.png", str(server.photos.parent / "secret.png"), ".", "a\0b"):
        assert server.thumbnail(name) is None
    assert photos_of(server.photos) is None


def test_visitors_at_the_same_time_get_their_own_answers(server):
    images, found = pictures()[0][:8], {}

    def visit(i: int) -> None:
        found[i] = ask(server, file_of(images[i]))[1]

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i]["nearest"][0][0] for i in range(8)] == [f"train[{i}]" for i in range(8)]


def test_the_page_asks_for_nothing_from_outside(server):
    status, headers, text = send(server, "GET", "/", {})
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert all(headers[name] == value for name, value in HEADERS.items())
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;b&gt;my run" in text and "<b>my run" not in text and "{" + "title" not in text


def test_what_is_no_picture_is_a_message(server):
    whole = file_of(pictures()[0][0])
    assert ask(server, b"<html>")[0] == 422
    assert "not a picture of a known format" in ask(server, b"<html>")[1]["error"]
    assert "cannot be decoded" in ask(server, whole[: len(whole) // 2])[1]["error"]
    assert "empty" in ask(server, b"")[1]["error"]
    assert ask(server, whole)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/answer", {"Content-Length": str(LARGEST + 1)}, 413),
        ("POST", "/answer", {"Content-Length": "9" * 5000}, 413),
        ("POST", "/answer", {"Content-Length": "-1"}, 411),
        ("POST", "/answer", {}, 411),
        ("POST", "/answer", {"Content-Length": "5", "Transfer-Encoding": "chunked"}, 411),
        ("POST", "/", {"Content-Length": "0"}, 404),
        ("GET", "/answer", {}, 405),
        ("GET", "/../secret.png", {}, 404),
        ("PUT", "/answer", {}, 501),
        ("GET", "/", {"Host": "evil.example"}, 403),
        ("GET", "/", {"Host": "127.0.0.1:1"}, 403),
        ("POST", "/answer", {"Host": "evil.example", "Content-Length": "0"}, 403),
        ("POST", "/answer", {"Origin": "http://evil.example", "Content-Length": "0"}, 403),
    ],
)
def test_a_request_is_refused_before_its_body_is_read(server, method, path, headers, status):
    assert send(server, method, path, headers)[0] == status


def test_a_name_of_this_machine_is_welcome(server):
    assert send(server, "GET", "/", {"Host": f"LOCALHOST:{server.port}"})[0] == 200


def test_a_port_that_is_taken_is_an_error(server):
    with pytest.raises(OSError, match="in use"):
        Server(server.learner, title="", port=server.port)
