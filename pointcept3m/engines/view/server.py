"""The web server of the page: viser's, held to this machine and to its own page.

viser serves the one file of its client and a websocket. Left alone, it listens on every network, opens a tunnel to a
public relay for whoever asks over the websocket, and lets any web page that is open in the user's browser connect to it.
"""

import contextlib
import http
import io
import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

PAGES = ("/", "/index.html")
MAX_MESSAGE = 24 << 20  # bytes; an image that is uploaded comes in parts of less
# The page brings all it needs; this makes the browser refuse anything else, should a later version of it ask.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; style-src 'self' 'unsafe-inline' data:; "
    "connect-src 'self' ws: wss: data: blob:; worker-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def import_viser() -> Any:
    """The package viser. Raises ImportError that says how to get it."""
    try:
        import viser
        import viser.infra
    except ImportError as error:
        raise ImportError(f"the page needs the package viser, which cannot be imported here ({error}); pip install 'pointcept3m[view]'") from error
    if not hasattr(viser.GuiApi, "add_form"):
        raise ImportError(f"the page needs viser 1.1 or later, found {viser.__version__}; pip install 'pointcept3m[view]'")
    return viser


def start_server(host: str = "127.0.0.1", port: int = 8080, label: str | None = None) -> Any:
    """A running `viser.ViserServer` on `host`; port 0 takes any free one.

    Refused are: paths other than the page's, browsers that came from another page (the Origin of a websocket must be the
    page's own), and, where `host` is this machine's loopback, a Host header that names anything else, by which a web site
    could lead a browser here under its own name (DNS rebinding). No tunnel is opened on demand.

    Raises: ImportError without viser; OSError where the port is taken or the host is not this machine's.
    """
    viser = import_viser()
    check_address(host, port)
    logging.getLogger("websockets.server").setLevel(logging.CRITICAL)  # a request that is no page is no error of ours
    with _guarded(host), contextlib.redirect_stdout(io.StringIO()):  # the page's address is said by who starts it
        server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    if port and server.get_port() != port:  # viser takes the next free one without a word
        server.stop()
        raise OSError(f"{host}:{port} was taken by another program just now; --port N, --port 0 takes a free one")
    handlers = server._websock_server._incoming_handlers
    for message in [kind for kind in handlers if kind.__name__ in ("ShareUrlRequest", "ShareUrlDisconnect")]:
        server._websock_server.unregister_handler(message)
    server.gui.configure_theme(show_logo=False, show_share_button=False, control_width="large", brand_color=(76, 60, 128))
    return server


def check_address(host: str, port: int) -> None:
    """Raises OSError that names the way out where nothing can listen on `host`:`port`; viser would try other ports in silence."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, OverflowError) as error:
        raise OSError(f"nothing can listen on {host}:{port} ({getattr(error, 'strerror', None) or error}); --port N, --port 0 takes a free one") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, a name or an address without its port."""
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _guarded(host: str) -> Iterator[None]:
    """While it lasts, a websockets server that is made looks at each request before viser does."""
    import websockets.asyncio.server as module

    original = module.serve

    def serve(handler: Any, *arguments: Any, process_request: Any = None, max_size: int | None = None, **options: Any) -> Any:
        def look(connection: Any, request: Any) -> Any:
            reason = refusal(request.path, request.headers, host)
            if reason is not None:
                return connection.respond(*reason)
            response = process_request(connection, request) if process_request else None
            if response is not None:
                response.headers["Content-Security-Policy"] = POLICY
                response.headers["X-Content-Type-Options"] = "nosniff"
                response.headers["Referrer-Policy"] = "no-referrer"
            return response

        return original(handler, *arguments, process_request=look, max_size=MAX_MESSAGE, **options)

    module.serve = serve
    try:
        yield
    finally:
        module.serve = original


def refusal(path: str, headers: Any, host: str) -> tuple[http.HTTPStatus, str] | None:
    """Why a request is refused, as status and text; None where it may pass.

    headers: a mapping with `get_all`, as websockets has them. host: what the server listens on.
    """
    hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
    if len(hosts) != 1 or len(origins) > 1:
        return http.HTTPStatus.BAD_REQUEST, "one Host header, please\n"
    named = _name(hosts[0])
    if is_loopback(host) and not is_loopback(named):
        return http.HTTPStatus.FORBIDDEN, f"this page answers to localhost alone, not to {named!r}\n"
    if origins and _authority(origins[0]) != hosts[0].lower():
        return http.HTTPStatus.FORBIDDEN, "another page may not talk to this one\n"
    is_socket = "websocket" in headers.get("Upgrade", "").lower()
    if not is_socket and path.partition("?")[0] not in PAGES:
        return http.HTTPStatus.NOT_FOUND, "nothing but the page is served\n"
    return None


def _name(authority: str) -> str:
    """The host in "host:port"."""
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def _authority(origin: str) -> str:
    """The "host:port" of an Origin header, without the port where it is the scheme's own."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
