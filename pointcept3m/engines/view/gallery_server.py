"""The page where a gallery is searched: a small web server, held to this machine and to its own page.

    GET  /              the page, one file that brings all it needs
    GET  /about         the gallery: scenes, modalities, splits, categories, data sets; the model, what reads points
    GET  /picture/<n>   the picture of the scene with that number
    POST /search?...    the body is a file or a text; the answer is ranked scenes as JSON

Nothing outside the gallery's pictures is read, and an upload lies in a temporary folder while it is embedded.
"""

import contextlib
import http
import json
import os
import re
import secrets
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pointcept3m.engines.retrieval.ask import ask, hit_rows
from pointcept3m.engines.retrieval.gallery import Filter, Gallery
from pointcept3m.engines.retrieval.inputs import (
    CLOUDS,
    KINDS,
    PICTURES,
    Query,
    RetrievalModel,
    guess_kind,
    read_query,
    text_query,
)
from pointcept3m.engines.view.server import _authority, _name, is_loopback

MAX_UPLOAD = 256 << 20  # bytes of a file; a scan of some ten million points
MAX_TEXT = 20_000  # bytes of a text that is typed
TIMEOUT = 60  # seconds without a byte after which a connection is dropped
SUFFIXES = tuple(dict.fromkeys((*PICTURES, *CLOUDS, ".txt")))
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class GallerySearch:
    """Answers of a gallery to uploads; several at once wait for each other, since there is one model.

    read: turns (path of an upload, model, kind, say) into a query; `read_query` by default.
    """

    def __init__(self, gallery: Gallery, model: RetrievalModel, read: Callable[..., Query] = read_query, **options: Any):
        self.gallery, self.model, self.read, self.options = gallery, model, read, options
        self.lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """What the page needs to know of the gallery."""
        e = self.gallery.embeddings
        return dict(
            name=self.gallery.folder.resolve().name, scenes=len(e), model=e.model,
            modalities={name: int(e.scene_known[name].sum()) for name in self.gallery.modalities},
            splits=sorted(set(e.splits) - {""}), categories=sorted(set(e.categories) - {""}), datasets=sorted(set(e.datasets) - {""}),
            kinds=[kind for kind in KINDS if kind != "scene"], suffixes=list(SUFFIXES), max_upload=MAX_UPLOAD,
        )  # fmt: skip

    def sentence(self, error: BaseException) -> str:
        """What the page says of an error: not where gallery and weight lie on this machine."""
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        for path in (self.gallery.folder, Path(getattr(self.model, "weight", "model"))):
            for told in (str(path.resolve()), str(path)):
                if path.name and told:
                    message = message.replace(told, path.name)
        return message

    def search(self, body: bytes, asked: Mapping[str, str]) -> dict[str, Any]:
        """Ranked scenes for an upload. asked: name (of the file; empty for a text), as, target, top, split, category, dataset.

        Raises: what reading and searching raise, ValueError for a file of no known kind.
        """
        said: list[str] = []
        name, kind = Path(asked.get("name", "").replace("\\", "/")).name, asked.get("as") or None
        targets = [asked["target"]] if asked.get("target") else None
        top = asked.get("top") or "12"
        if not re.fullmatch(r"[0-9]{1,3}", top) or not int(top):
            raise ValueError(f"top must be a number from 1 to 999, got {top!r}")
        chosen = Filter(**{key: asked.get(key) or None for key in ("split", "category", "dataset")})
        for target in targets or self.gallery.targets(chosen):
            self.gallery.allowed(target, chosen)
        with self.lock:
            if name:
                query = self._read_file(body, name, kind, said.append)
            else:
                text = body.decode("utf-8", errors="replace").strip()
                if not text:
                    raise ValueError("an empty text cannot be searched for; wanted words, or a file")
                query = text_query(text, self.model)  # words that name a file here are words
            hits = ask(self.gallery, self.model, [query], targets, int(top), chosen)
        rows = hit_rows(self.gallery, hits)
        for row, hit in zip(rows, hits, strict=True):
            row.pop("folder")
            row["picture"] = f"/picture/{hit.number}" if self.gallery.picture_path(hit.number).is_file() else None
        return {"kind": query.kind, "guessed": kind is None and bool(name), "said": said, "hits": rows}

    def _read_file(self, body: bytes, name: str, kind: str | None, say: Callable[[str], None]) -> Query:
        suffix = Path(name).suffix.lower()
        if suffix not in SUFFIXES:
            raise ValueError(f"{name}: wanted a picture, points or a text ({', '.join(SUFFIXES)})")
        with tempfile.TemporaryDirectory(prefix="pointcept3m-") as folder:
            path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9_-]', '_', Path(name).stem)[:60] or 'file'}{suffix}"
            path.write_bytes(body)
            # what is said of the file must not tell where it lay for a moment
            try:
                return self.read(path, self.model, kind or guess_kind(path), lambda text: say(text.replace(f"{folder}{os.sep}", "")), **self.options)
            except (ValueError, OSError, KeyError, ImportError) as error:
                message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
                raise ValueError(message.replace(f"{folder}{os.sep}", "")) from error


def start_gallery_server(search: GallerySearch, host: str = "127.0.0.1", port: int = 8080) -> ThreadingHTTPServer:
    """A bound server; `serve_forever` answers. Port 0 takes any free one. Raises OSError where the port is taken."""
    page = (Path(__file__).parent / "gallery_page.html").read_text(encoding="utf-8")

    class Handler(_Handler):
        pass

    Handler.search, Handler.page, Handler.host, Handler.timeout = search, page, host, TIMEOUT
    server = _Server((host, port), Handler)
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]):
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def refusal_of(headers: Any, host: str) -> tuple[http.HTTPStatus, str] | None:
    """Why a request is refused, None where it may pass: a Host that is not this machine's name, a page of another origin."""
    hosts, origins = headers.get_all("Host") or [], headers.get_all("Origin") or []
    if len(hosts) != 1 or len(origins) > 1:
        return http.HTTPStatus.BAD_REQUEST, "one Host header, please"
    if is_loopback(host) and not is_loopback(_name(hosts[0])):
        return http.HTTPStatus.FORBIDDEN, f"this page answers to localhost alone, not to {_name(hosts[0])!r}"
    if origins and (_authority(origins[0]) != hosts[0].lower() or not origins[0].lower().startswith(("http://", "https://"))):
        return http.HTTPStatus.FORBIDDEN, "another page may not talk to this one"
    if headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
        return http.HTTPStatus.FORBIDDEN, "another page may not talk to this one"
    return None


class _Handler(BaseHTTPRequestHandler):
    search: GallerySearch
    page: str
    host: str
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "pointcept3m", ""

    def do_GET(self) -> None:
        if self._refused():
            return
        path = urlsplit(self.path).path
        if path in ("/", "/index.html"):
            nonce = secrets.token_urlsafe(16)
            self._send(http.HTTPStatus.OK, self.page.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", POLICY.format(nonce=nonce))
        elif path == "/about":
            self._send_json(http.HTTPStatus.OK, self.search.about())
        elif (match := re.fullmatch(r"/picture/([0-9]{1,9})", path)) and self.search.gallery.picture_path(int(match[1])).is_file():
            self._send(http.HTTPStatus.OK, self.search.gallery.picture_path(int(match[1])).read_bytes(), "image/jpeg")
        else:
            self._send_json(http.HTTPStatus.NOT_FOUND, {"error": "nothing but the page is served"})

    def do_POST(self) -> None:
        if self._refused():
            return
        parts = urlsplit(self.path)
        if parts.path != "/search":
            self._send_json(http.HTTPStatus.NOT_FOUND, {"error": "nothing but /search takes uploads"})
            return
        asked = {key: values[0] for key, values in parse_qs(parts.query).items()}
        length = self.headers.get("Content-Length", "")
        limit = MAX_UPLOAD if asked.get("name") else MAX_TEXT
        if not re.fullmatch(r"[0-9]{1,12}", length):
            self._send_json(http.HTTPStatus.LENGTH_REQUIRED, {"error": "an upload says its Content-Length"})
            return
        if int(length) > limit:
            self._send_json(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"{int(length):,} bytes are too many; at most {limit:,} are taken"})
            return
        body = self.rfile.read(int(length))
        try:
            self._send_json(http.HTTPStatus.OK, self.search.search(body, asked))
        except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
            self._send_json(http.HTTPStatus.BAD_REQUEST, {"error": self.search.sentence(error)})
        except Exception:  # torch, damaged archives, memory: the server goes on, and its terminal says what it was
            traceback.print_exc()
            self._send_json(http.HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "this could not be read or searched; the terminal of the server says why"})

    def _refused(self) -> bool:
        reason = refusal_of(self.headers, self.host)
        if reason is not None:
            self._send_json(reason[0], {"error": reason[1]})
        return reason is not None

    def _send_json(self, status: http.HTTPStatus, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: http.HTTPStatus, body: bytes, kind: str, policy: str = "default-src 'none'") -> None:
        if status >= 400:
            self.close_connection = True  # a body that was not read is not the next request
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            for name, value in (
                ("Content-Type", kind), ("Content-Length", str(len(body))), ("Content-Security-Policy", policy),
                ("X-Content-Type-Options", "nosniff"), ("Referrer-Policy", "no-referrer"), ("Cross-Origin-Resource-Policy", "same-origin"),
                ("Cache-Control", "no-store"), *([("Connection", "close")] if self.close_connection else []),
            ):  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """The terminal belongs to the address and to errors."""
