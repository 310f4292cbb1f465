"""A page to try a network with, on this machine alone: drop a photo, see the classes, where the
evidence stands (Grad-CAM), and which training pictures are most like it.

What a visitor sends is one picture, as the body of a POST. It is limited before it is read, decoded
by the rules of tinyft/data/picture.py, and never written anywhere. Pictures of visitors who come at
the same time are computed together, as tinyft/finetune/answering.py does for threads; Grad-CAM
goes on from the features that came out of it, so that the body runs once for each picture.

Other web sites must not use it through their visitors' browsers: a name of theirs that leads to
this machine is refused by the Host header (DNS rebinding), their scripts by Origin.
"""

from __future__ import annotations

import errno
import json
import os
import socketserver
import sys
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinyft import backends
from tinyft.data.picture import prepare
from tinyft.errors import DataError, RunError, TinyftError
from tinyft.finetune.answering import softmax
from tinyft.finetune.run.reading import read_description
from tinyft.inspection.html import POLICY as LOADS_NOTHING
from tinyft.inspection.html import data_uri, escape, page
from tinyft.inspection.report.images import heat_maps, overlay

if TYPE_CHECKING:
    from tinyft.finetune import Learner

HOST = "127.0.0.1"
LARGEST = 32 * 2**20  # bytes of an upload
SHOWN = 10  # classes
PATIENCE = 30  # s for a visitor's next bytes
THUMBNAILS = 512  # kept, of some 10 kB each

POLICY = f"{LOADS_NOTHING}; connect-src 'self'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": f"{POLICY}; frame-ancestors 'none'",  # which a page cannot say
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(ThreadingHTTPServer):
    """Answers visitors on this machine, a thread each. Made, it listens; `serve_forever` answers.

    Raises: OSError if the port is taken or not allowed
    """

    allow_reuse_address = os.name == "posix"  # elsewhere that shares a port with who has it
    allow_reuse_port = False
    request_queue_size = 128  # visitors who wait to be let in

    def __init__(self, learner: Learner, *, title: str, port: int = 0, photos: Path | None = None):
        self.title, self.learner, self.photos = title, learner, photos
        self.preprocess = learner.adjusted_preprocess()
        self.thumbnail = lru_cache(THUMBNAILS)(self._thumbnail)
        side = self.preprocess.crop
        super().__init__((HOST, port), Visit)
        try:  # compiles and folds before the first visitor comes
            learner.answers.ask(learner, np.zeros((1, side, side, 3), np.uint8))
            with backends.use(learner.device):
                self.network = learner.answers.network(learner).network
        except BaseException:
            self.server_close()
            raise

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def names(self) -> set[str]:
        """What a browser may call this server in its Host header."""
        hosts = (HOST, "localhost")
        return {f"{host}:{self.port}" for host in hosts} | set(hosts if self.port == 80 else ())

    def server_bind(self) -> None:
        """As HTTPServer, which asks the network for this machine's name besides."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.port

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say what went wrong with a visit in a line; that a visitor left is nothing."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            print(f"a visit failed: {type(error).__name__}: {error}", file=sys.stderr)

    def page(self) -> str:
        learner, side = self.learner, self.preprocess.crop
        what = f"{learner.arch}, {len(learner.classes)} classes, {side} x {side} pixels"
        known = learner.answers.known
        if known and known.threshold is not None:
            what += (
                ". Less similar to the nearest training pictures than "
                f"{known.threshold:.3f} counts as unlike them; {known.flagged} of {known.valid} "
                "validation pictures would."
            )
        body = BODY.format(title=escape(self.title), what=escape(what))
        script = SCRIPT.replace("LARGEST", str(LARGEST))
        return page(f"tinyft: {self.title}", body, script, policy=POLICY)

    def answer(self, data: bytes) -> dict[str, Any]:
        """All that the page shows of a picture file. Raises: DataError if it is none"""
        learner, service = self.learner, self.learner.answers
        with service.decoding:
            pixels = prepare(data, self.preprocess)  # (S, S, 3)
        logits, features, maps = service.ask(learner, pixels[None], maps=True)
        probabilities = softmax(logits[0].astype(np.float64))
        order = (-probabilities).argsort(kind="stable")[:SHOWN]
        with backends.use(learner.device):
            maps = backends.place(maps, learner.device)
            heat = heat_maps(self.network, maps, order[:1])[0]
        likeness = service.known.judge(features)[0] if service.known else {}
        return {
            "classes": [[learner.classes[i], float(probabilities[i])] for i in order],
            "picture": data_uri(pixels, lossless=False),
            "evidence": data_uri(overlay(pixels, heat), lossless=False),
            "unlike": likeness.get("unlike"),
            "similarity": likeness.get("similarity"),
            "nearest": [[name, self.thumbnail(name)] for name in likeness.get("nearest", ())],
        }

    def _thumbnail(self, name: str) -> str | None:
        """A training picture as the network sees it; None if it is not there any more, or would lie
        outside the run's folder of pictures: a learner's file may come from anybody.
        """
        if self.photos is None:
            return None
        path = Path(os.path.normpath(self.photos / name))
        try:
            if not path.is_relative_to(self.photos) or not path.is_file():
                return None
            with self.learner.answers.decoding:
                return data_uri(prepare(path, self.preprocess), lossless=False)
        except (DataError, OSError, ValueError):
            return None


class Visit(BaseHTTPRequestHandler):
    """One request: the page, or the answer to a picture."""

    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  # a Server makes it
    timeout = PATIENCE
    server_version, sys_version = "tinyft", ""

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path == "/":
            self._send(HTTPStatus.OK, self.server.page(), "text/html")
        elif self.path == "/answer":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED, "pictures are sent by POST", Allow="POST")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is one page here: /")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        length = self.headers.get("Content-Length", "")
        if self.path != "/answer":
            self._refuse(HTTPStatus.NOT_FOUND, "pictures are sent to /answer")
        elif "Transfer-Encoding" in self.headers or not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say the picture's size in Content-Length")
        elif len(length) > 12 or int(length) > LARGEST:
            limit = f"the file is larger than {LARGEST // 2**20} MB; send a smaller one"
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, limit)
        elif len(data := self.rfile.read(int(length))) < int(length):
            self._refuse(HTTPStatus.BAD_REQUEST, "the file did not arrive whole")
        else:
            self._answer(data)

    def _answer(self, data: bytes) -> None:
        try:
            reply = self.server.answer(data)
        except DataError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        except (TinyftError, MemoryError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error) or type(error).__name__)
        else:
            self._send(HTTPStatus.OK, json.dumps(reply), "application/json")

    def _is_ours(self) -> bool:
        """Say if our page asks, under a name of this machine; else refuse."""
        host, origin = self.headers.get("Host", "").lower(), self.headers.get("Origin")
        if host in self.server.names and origin in (None, f"http://{host}"):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, f"open http://{HOST}:{self.server.port}/ instead")
        return False

    def _refuse(self, status: HTTPStatus, message: str, **headers: str) -> None:
        self._send(status, json.dumps({"error": message}), "application/json", **headers)

    def _send(self, status: HTTPStatus, text: str, kind: str, **headers: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        about = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(data))}
        for name, value in {**about, **HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        """Print nothing: what visitors ask is theirs, and might hold control characters."""


def photos_of(source: str | os.PathLike[str]) -> Path | None:
    """The folder of training pictures of a run, or of a learner in a run's folder, if it is there
    and the network learnt from files.
    """
    source = Path(source)
    try:
        run = source if source.is_dir() else source.parent
        photos = Path(os.path.normpath(read_description(run)["data"]["arguments"]["path"]))
        return photos if photos.is_dir() else None
    except (RunError, OSError, KeyError, TypeError):
        return None


def why_not(error: OSError, port: int) -> str:
    """Say why nobody can listen at a port."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program; name another, or none for a free one"
    return f"port {port} cannot be used: {error.strerror or error}; name another above 1023"


BODY = """
<style>
#drop {{ display: block; padding: 2rem 1rem; text-align: center; cursor: pointer;
  border: 2px dashed var(--line); border-radius: 8px; background: var(--panel); }}
#drop.over, #drop:focus-within {{ border-color: var(--accent); }}
#drop input {{ position: absolute; opacity: 0; width: 1px; }}
.share {{ display: grid; grid-template-columns: minmax(5rem, 12rem) 1fr 4rem; gap: 0.6rem;
  align-items: center; margin: 0.3rem 0; overflow-wrap: anywhere; }}
.share i {{ display: block; height: 0.9rem; border-radius: 3px; background: var(--accent); }}
.share b {{ text-align: right; font-variant-numeric: tabular-nums; }}
#shares {{ flex: 1 1 18rem; }} #seen img {{ width: 16rem; }} #nearest img {{ width: 9rem; }}
#nearest figure {{ max-width: 9rem; }} #seen figure, #nearest figure {{ margin: 0.3rem 0; }}
</style>
<h1>{title}</h1>
<p class="soft">{what}</p>
<label id="drop">Drop a photo here, or choose one<input id="file" type="file" accept="image/*">
</label>
<p id="said" role="status"></p>
<div id="found" hidden>
<div class="row"><div id="shares"></div><div id="seen" class="row"></div></div>
<h2 id="like">Most like it, of what it learned from</h2><div id="nearest" class="row"></div>
</div>
<noscript><p class="bad">This page needs JavaScript, which is in it.</p></noscript>
"""

# Names come in as text (textContent, alt), never as HTML.
SCRIPT = """
const at = id => document.getElementById(id);
const make = (tag, props, ...inside) => {
  const made = Object.assign(document.createElement(tag), props); made.append(...inside);
  return made; };
const figure = (src, words) => make("figure", {}, ...(src ? [make("img", {src, alt: words})] : []),
  make("figcaption", {}, words));
let latest = 0;
const say = (words, bad) => { at("said").textContent = words;
  at("said").className = bad ? "bad" : ""; };
function show(found, name) {
  const [label, share] = found.classes[0];
  const percent = p => (100 * p).toFixed(1) + " %";
  say(name + ": " + (found.unlike ? "unlike anything it learned from (similarity "
    + found.similarity.toFixed(3) + "); if it must choose, " : "") + label + ", " + percent(share),
    found.unlike);
  at("shares").replaceChildren(...found.classes.map(([name, p]) => {
    const bar = make("i"); bar.style.width = 100 * p + "%";
    return make("div", {className: "share"}, make("span", {}, name), make("span", {}, bar),
      make("b", {}, percent(p))); }));
  at("seen").replaceChildren(figure(found.picture, "what the network sees"),
    figure(found.evidence, "bright places speak for " + label));
  at("nearest").replaceChildren(...found.nearest.map(([name, src]) => figure(src, name)));
  at("like").hidden = !found.nearest.length; at("found").hidden = false; }
async function ask(file) {
  if (!file) return;
  const mine = ++latest; at("found").hidden = true;
  if (file.size > LARGEST) return say(file.name + ": the file is larger than "
    + LARGEST / 2 ** 20 + " MB; choose a smaller one", true);
  say("looking at " + file.name + " ...");
  try {
    const reply = await fetch("/answer", {method: "POST", body: file});
    const found = await reply.json();
    if (mine !== latest) return;
    if (reply.ok) show(found, file.name); else say(file.name + ": " + found.error, true);
  } catch { if (mine === latest) say("no answer: does tinyft serve still run?", true); } }
at("file").addEventListener("change", event => { ask(event.target.files[0]);
  event.target.value = ""; });
for (const kind of ["dragover", "dragleave", "drop"])
  addEventListener(kind, event => { event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask(event.dataTransfer.files[0]); });
"""
