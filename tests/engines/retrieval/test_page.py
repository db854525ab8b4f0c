"""The page of a gallery: whom its server answers, what it takes, and the page itself in a headless browser."""

import json
import shutil
import socket
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from email.message import Message
from urllib.parse import urlencode

import pytest

from pointcept3m.cli import run_for_user
from pointcept3m.engines.retrieval.gallery import Gallery
from pointcept3m.engines.retrieval.inputs import open_retrieval_model
from pointcept3m.engines.view import gallery_server
from pointcept3m.engines.view.command import view_main
from pointcept3m.engines.view.gallery_server import GallerySearch, refusal_of, start_gallery_server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def server(made):
    model = open_retrieval_model(made.weight, device="cpu", say=lambda text: None)
    with serving(GallerySearch(Gallery(made.gallery), model)) as port:
        yield port


@contextmanager
def serving(search):
    server = start_gallery_server(search, port=0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(port, path, body=None, **headers):
    """(status, content) of a request; a body makes it a POST."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def ask(port, body, **asked):
    status, content = get(port, f"/search?{urlencode(asked)}", body)
    return status, json.loads(content)


def raw(port, request):
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def test_a_floorplan_is_uploaded(made, server):
    plan = (made.scenes / "room1" / "floorplan.png").read_bytes()
    status, content = ask(server, plan, name="my plan.png", **{"as": "floorplan"}, target="floorplan", top=2)
    assert status == 200 and content["kind"] == "floorplan" and not content["guessed"]
    assert [hit["scene"] for hit in content["hits"]] == ["room1", "room0"] and content["hits"][0]["score"] > 0.998
    assert "folder" not in content["hits"][0]  # where things lie on the disk is nobody's business
    status, picture = get(server, content["hits"][0]["picture"])
    assert status == 200 and picture == (made.gallery / "pictures" / "1.jpg").read_bytes()


def test_texts_and_filters(server):
    status, content = ask(server, b"a chair", category="office", split="val")
    assert status == 200 and content["kind"] == "text" and {hit["scene"] for hit in content["hits"]} == {"room0", "room1", "room2"}
    about = json.loads(get(server, "/about")[1])
    assert about["scenes"] == 3 and about["modalities"]["floorplan"] == 2 and about["categories"] == ["office"]


@pytest.mark.parametrize(
    ("body", "asked", "message"),
    [
        (b"no picture", dict(name="a.png"), "a.png: not a readable"),
        (b"x", dict(name="a.exe"), "a.exe: wanted a picture, points or a text"),
        (b"x", dict(name="noending"), "wanted a picture"),
        (b" \n", dict(name=""), "empty text"),
        (b"", dict(name="a.ply"), "a.ply"),
        (b"a chair", dict(name="", top="0"), "top must be"),
        (b"a chair", dict(name="", category="kitchen"), "no scene has category"),
        (b"a chair", dict(name="", target="cad"), "holds no 'cad'"),
        (b"x", dict(name="a.png", **{"as": "txet"}), "did you mean 'text'"),
    ],
)
def test_what_is_wrong_is_said(server, body, asked, message):
    status, content = ask(server, body, **asked)
    assert status == 400 and message in content["error"] and "/tmp" not in content["error"]


def test_a_name_leads_nowhere(made, server, monkeypatch):
    seen = []
    model = type("Model", (), {})()

    def read(path, model, kind, say, **options):
        seen.append(path)
        raise ValueError("seen")

    search = GallerySearch(Gallery(made.gallery), model, read)
    for name in ("../../../etc/x.png", "..\\..\\x.png", "/etc/x.png", "a\x00b.png", ".." * 200 + ".png"):
        with pytest.raises(ValueError, match="seen"):
            search.search(b"x", {"name": name, "as": "image"})
    assert all(path.parent.name.startswith("pointcept3m-") and not path.parent.exists() and len(path.name) < 80 for path in seen)


def test_the_page_is_all_that_is_served(server):
    status, page = get(server, "/")
    assert status == 200 and b"NONCE" not in page and page != get(server, "/")[1]  # a new nonce each time
    for path in ("/../../etc/passwd", "/picture/../embeddings.safetensors", "/picture/0.jpg", "/picture/99", "/picture/-1", "/%2e%2e/etc/passwd", "//etc/passwd", "/etc/passwd"):
        answer = raw(server, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404") and b"root:" not in answer, path
    head = raw(server, b"GET / HTTP/1.1\r\nHost: localhost:1\r\nConnection: close\r\n\r\n").split(b"\r\n\r\n")[0].decode()
    assert "default-src 'none'" in head and "frame-ancestors 'none'" in head and "nosniff" in head
    assert raw(server, b"\x00\xff garbage\r\n\r\n")[:12] != b"HTTP/1.1 200" and get(server, "/")[0] == 200


def test_who_is_refused(server):
    assert get(server, "/", Host="evil.example")[0] == 403
    assert get(server, "/search?name=", b"a chair", Origin="http://evil.example")[0] == 403
    assert get(server, "/search?name=", b"a chair", Origin="null")[0] == 403
    assert get(server, "/search?name=", b"a chair", Origin=f"http://127.0.0.1:{server}")[0] == 200
    assert get(server, "/about", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert get(server, "/elsewhere", b"x")[0] == 404
    twice = Message()
    twice["Host"] = "127.0.0.1"
    twice["Host"] = "evil.example"
    assert refusal_of(twice, "127.0.0.1")[0] == 400


def test_uploads_have_a_limit(server, monkeypatch):
    monkeypatch.setattr(gallery_server, "MAX_UPLOAD", 1000)
    status, content = ask(server, b"x" * 1001, name="a.png")
    assert status == 413 and "1,001 bytes are too many" in content["error"]
    answer = raw(server, b"POST /search?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")  # and it does not wait for them
    assert raw(server, b"POST /search?name=a.png HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 411")
    assert ask(server, b"w" * (gallery_server.MAX_TEXT + 1), name="")[0] == 413


def test_the_command(made, tmp_path, capsys):
    for argv, message in (
        ([], "wanted a scene"),
        (["a", "--gallery", "b"], "wanted a scene"),
        (["--gallery", str(made.gallery)], "--gallery needs --weight"),
        (["--gallery", str(tmp_path), "--weight", made.weight, "--port", "0"], "no gallery"),
    ):
        assert run_for_user(view_main, argv) == 1
        assert message in capsys.readouterr().err


@pytest.mark.long
def test_the_page_in_a_browser(made, server):
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    quiet = ["--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    address, asked, errors = f"http://127.0.0.1:{server}", [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=quiet, timeout=60_000)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(address)
        page.get_by_text("3 scenes (").wait_for()
        page.select_option("#as", "floorplan")
        page.set_input_files("#file", made.scenes / "room1" / "floorplan.png")
        page.get_by_text("3 scenes nearest to the floorplan").wait_for()
        names = page.locator("figure .name").all_inner_texts()
        assert names[0] == "1. room1" and len(names) == 3 and page.locator("#shown").is_visible()
        page.locator("figure img").first.wait_for()
        assert page.locator("figure img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
        page.select_option("#target", "image")
        page.get_by_text("2 scenes nearest").wait_for()
        page.fill("#text", "<b>a chair</b>")
        page.click("button")
        page.get_by_text("nearest to the text").wait_for()
        assert errors == []
        page.fill("#text", " ")
        page.click("button")
        page.get_by_text("an empty text cannot be searched for").wait_for()
        assert page.locator("figure").count() == 0 and page.locator("#state.error").count() == 1
        browser.close()
    assert [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))] == []


def test_words_that_name_a_file_are_words(tmp_path):
    """Whoever types a path is not shown what the file holds, nor whether it is there."""
    from types import SimpleNamespace

    from pointcept3m.engines.retrieval.inputs import guess_kind, text_query

    secret = tmp_path / "secret.txt"
    secret.write_text("a red bed")
    asked = []
    model = SimpleNamespace(recipe=SimpleNamespace(texts=lambda lines: asked.extend(lines)))
    text_query(str(secret), model)
    assert asked == [str(secret)]
    assert guess_kind("a/b " * 100) == "text" == guess_kind("word " * 80)  # too long for a name of a file
