"""The page where a scene is asked: what it shows, whom its server answers, and the page itself in a headless browser."""

import re
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from asked import THINGS, make_scene

from pointcept3m.cli import run_for_user
from pointcept3m.engines.open_vocabulary.answers import box_edges
from pointcept3m.engines.open_vocabulary.query import SceneQuery
from pointcept3m.engines.open_vocabulary.sources import open_sources
from pointcept3m.engines.view.command import view_main
from pointcept3m.engines.view.scene_view import (
    NOVELTY,
    PCA,
    PREDICTION,
    RGB,
    SIMILARITY,
    UNCERTAINTY,
    SceneView,
)
from pointcept3m.engines.view.server import is_loopback, refusal
from pointcept3m.structures.label_sets import free_labels
from pointcept3m.utils.palette import UNLABELLED, palette_for

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed") / "room"
    return folder, make_scene(folder)


@pytest.fixture
def view(scene):
    sources = open_sources(scene[0], say=lambda text: None)
    view = SceneView(sources, SceneQuery(sources.embedding, sources.encoder, sources.prompt))
    view.set_labels(free_labels(list(THINGS)))
    return view


# what is shown


def test_views_of_a_scene(view, scene):
    made = scene[1]
    assert view.views == [SIMILARITY, RGB, PCA, PREDICTION, NOVELTY]
    np.testing.assert_array_equal(view.colors(SIMILARITY), made["color"])  # nothing was asked yet
    np.testing.assert_array_equal(view.colors(RGB), made["color"])
    palette, visible = palette_for(list(THINGS)), made["visible"]
    wanted = np.repeat(palette, 900, axis=0)
    wanted[~visible] = UNLABELLED
    np.testing.assert_array_equal(view.colors(PREDICTION), wanted)
    assert all(name in view.legend(PREDICTION) for name in THINGS) and "no image shows" in view.legend(PREDICTION)
    pca = view.colors(PCA).astype(int)
    spread = np.linalg.norm(pca[made["chair"][:800]] - pca[made["chair"][:800]].mean(0), axis=1).mean()
    assert np.linalg.norm(pca[made["chair"][:800]].mean(0) - pca[made["bed"][:800]].mean(0)) > 3 * spread
    light = view.colors(NOVELTY).astype(int).sum(1)
    view.set_labels(free_labels("chair, floor"))  # nothing here is called a bed
    novel = view.colors(NOVELTY).astype(int).sum(1)
    assert novel[made["bed"][:800]].mean() > 2 * novel[made["chair"][:800]].mean() and light[made["bed"][:800]].mean() < novel[made["bed"][:800]].mean()


def test_an_answer(view, scene):
    made = scene[1]
    answer = view.ask("chair", "chair")
    assert set(answer.found[0].points) <= set(made["chair"]) and len(answer.found[0].points) > 700
    assert answer.ranked[0][0] == "chair" and "top region" in view.report() and "“chair”" in view.legend(SIMILARITY)
    heat, alone = view.colors(SIMILARITY), view.colors(SIMILARITY, grey_below=True)
    above = np.nan_to_num(answer.similarity, nan=-1) >= answer.threshold
    np.testing.assert_array_equal(alone[above], heat[above])
    assert (np.ptp(alone[~above].astype(int), axis=1) == 0).all()
    view.set_threshold(2.0)
    assert view.answer.found == [] and "no region" in view.report()


def test_words_are_escaped(view):
    view.set_labels(free_labels(["<b>chair</b>", "<script>"]))
    view.ask("<img src=x>", "chair")
    text = view.report() + view.legend(SIMILARITY) + view.legend(PREDICTION)
    assert "<img" not in text and "<script" not in text and "<b>" not in text and "&lt;b&gt;chair" in text


def test_large_scenes_are_thinned_to_be_shown(view):
    thin = SceneView(view.sources, view.query, max_shown=500)
    assert len(thin.rows) == 500 and len(np.unique(thin.rows)) == 500 and "500 are shown" in thin.about()
    assert len(thin.ask("bed", "bed").similarity) == 2700
    assert thin.colors(SIMILARITY).shape == (500, 3) and "shown" not in view.about()


def test_predicted_uncertainty_is_shown_as_that(view):
    embedding = view.sources.embedding
    view.sources.model = type("Model", (), {"head": "text"})()
    embedding.sigma = {"text": 0.5}
    assert NOVELTY in view.views and "one sigma a teacher for all points: text 0.50" in view.legend(NOVELTY)
    embedding.sigma = {"text": np.linspace(0.1, 0.9, len(embedding.unit)).astype(np.float32)}
    assert view.views[-1] == UNCERTAINTY
    light = view.colors(UNCERTAINTY).astype(int).sum(1)[embedding.known]
    assert (np.diff(light[::20]) >= 0).all() and light[-1] > light[0] and "sigma of" in view.legend(UNCERTAINTY)
    assert np.array(view.colors(UNCERTAINTY)[~embedding.known] == UNLABELLED).all()


def test_edges_of_a_box():
    edges = box_edges((0, 0, 0), (1, 2, 3))
    lengths = sorted(np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1).tolist())
    assert lengths == [1] * 4 + [2] * 4 + [3] * 4 and len({tuple(map(tuple, edge)) for edge in edges}) == 12


# whom the server answers


class Headers(dict):
    def get_all(self, name):
        value = self.get(name, [])
        return value if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    ("host", "path", "headers", "status"),
    [
        ("127.0.0.1", "/", {"Host": "127.0.0.1:8080"}, None),
        ("127.0.0.1", "/?a=b", {"Host": "localhost:9000"}, None),  # through ssh -L 9000:localhost:8080
        ("::1", "/index.html", {"Host": "[::1]:8080"}, None),
        ("127.0.0.1", "/", {"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:8080", "Upgrade": "websocket"}, None),
        ("127.0.0.1", "/", {"Host": "evil.example:8080"}, 403),  # a name that leads here
        ("127.0.0.1", "/", {"Host": "127.0.0.1.evil.example"}, 403),
        ("127.0.0.1", "/", {"Host": "127.0.0.1:8080", "Origin": "http://evil.example", "Upgrade": "websocket"}, 403),
        ("127.0.0.1", "/", {"Host": "127.0.0.1:8080", "Origin": "null", "Upgrade": "websocket"}, 403),
        ("127.0.0.1", "/", {"Host": "127.0.0.1:8080", "Origin": "http://127.0.0.1:9999", "Upgrade": "websocket"}, 403),
        ("0.0.0.0", "/", {"Host": "robot.lab:8080", "Origin": "http://robot.lab:8080", "Upgrade": "websocket"}, None),
        ("0.0.0.0", "/", {"Host": "robot.lab:8080", "Origin": "http://evil.example", "Upgrade": "websocket"}, 403),
        ("127.0.0.1", "/etc/passwd", {"Host": "127.0.0.1:8080"}, 404),
        ("127.0.0.1", "/", {}, 400),
        ("127.0.0.1", "/", {"Host": ["127.0.0.1", "evil.example"]}, 400),
    ],
)
def test_who_is_refused(host, path, headers, status):
    found = refusal(path, Headers(headers), host)
    assert (None if found is None else int(found[0])) == status


def test_names_of_this_machine():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "192.168.0.3", "", "localhost.evil.example", "example.org")))


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("viser", reason="the page needs viser: pip install 'pointcept3m[view]'")
    from pointcept3m.engines.view.server import start_server

    server = start_server(port=0)
    yield server
    server.stop()


def raw(port: int, request: bytes) -> bytes:
    """All that the server answers to these bytes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(10)
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
    return answer


def get(target: str, host: str = "127.0.0.1:1", more: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n".encode()


def test_the_page_is_all_that_is_served(server):
    port = server.get_port()
    answer = raw(port, get("/"))
    head = answer.split(b"\r\n\r\n")[0].decode()
    assert head.startswith("HTTP/1.1 200") and "text/html" in head and "default-src 'self'" in head and len(answer) > 100_000
    assert raw(port, get("/index.html")).startswith(b"HTTP/1.1 200")
    up = ["../" * 12 + "etc/passwd", "..%2f" * 12 + "etc%2fpasswd", "%2e%2e/" * 12 + "etc/passwd", "..\\" * 12 + "etc\\passwd", "%2e%2e%5c" * 12 + "etc/passwd",
          "..%252f" * 12 + "etc/passwd", "index.html/" + "../" * 14 + "etc/passwd", "/etc/passwd", "./index.html/../../index.html", "etc/passwd", "build/index.html"]  # fmt: skip
    for target in ["/" + path for path in up] + ["http://127.0.0.1/etc/passwd", "file:///etc/passwd", "//etc/passwd", "*"]:
        answer = raw(port, get(target))
        assert answer[:12] not in (b"HTTP/1.1 200", b"HTTP/1.0 200") and b"root:" not in answer and len(answer) < 1000, target
    assert not raw(port, get("/", host="evil.example")).startswith(b"HTTP/1.1 200")
    for odd in (b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\n\r\nabc", b"\x00\xff garbage\r\n\r\n", b"GET /\r\n\r\n"):
        assert not raw(port, odd).startswith(b"HTTP/1.1 200")
    assert raw(port, get("/")).startswith(b"HTTP/1.1 200")  # and it lives on


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc/net/tcp")
def test_it_listens_on_this_machine_alone(server):
    rows = [line.split() for name in ("tcp", "tcp6") if Path("/proc/net", name).exists() for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == server.get_port()}
    assert listening == {"0100007F"}


def test_a_websocket_of_another_page_is_refused(server):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    protocol = [f"viser-v{__import__('viser').__version__}"]
    url = f"ws://127.0.0.1:{server.get_port()}"
    with connect(url, origin=url.replace("ws:", "http:"), subprotocols=protocol) as connection:
        assert isinstance(connection.recv(timeout=10), bytes)
    for origin in ("http://evil.example", "null", "https://127.0.0.1"):
        with pytest.raises(InvalidStatus):
            connect(url, origin=origin, subprotocols=protocol).close()


def test_no_tunnel_on_demand(server, monkeypatch):
    """viser opens one to a public relay for whoever sends this message; the same message does nothing here."""
    import msgspec
    import viser
    from websockets.sync.client import connect

    monkeypatch.setattr(viser.ViserServer, "request_share_url", lambda self: asked.append(self))
    asked: list = []
    plain = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        for each in (server, plain):
            with connect(f"ws://127.0.0.1:{each.get_port()}", subprotocols=[f"viser-v{viser.__version__}"]) as connection:
                connection.recv(timeout=10)
                connection.send(msgspec.msgpack.encode({"type": "ShareUrlRequest"}))
                time.sleep(0.5)
        assert asked == [plain]
    finally:
        plain.stop()


def test_a_port_that_is_taken(server, scene, capsys):
    port = str(server.get_port())
    assert run_for_user(view_main, [str(scene[0]), "--port", port]) == 1
    assert f"nothing can listen on 127.0.0.1:{port}" in capsys.readouterr().err
    assert run_for_user(view_main, [str(scene[0]), "--port", "0", "--labels", "scannet21"]) == 1
    assert "did you mean 'scannet20'" in capsys.readouterr().err


# the page in a browser


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
    pytest.importorskip("viser", reason="the page needs viser: pip install 'pointcept3m[view]'")
    quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    webgl = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=quiet + webgl, timeout=60_000)
        yield browser
        browser.close()


NOTICE = 200  # rows that the browser's notice of software rendering reaches down, an orange bar in it; by the fonts there are


def pixels(page) -> np.ndarray:
    """int [H, W, 3] of the canvas, the panel and the browser's notice left out."""
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip={"x": 0, "y": 0, "width": 800, "height": 800}))).convert("RGB")).astype(int)[NOTICE:]


def hot(image: np.ndarray) -> np.ndarray:
    """[n, 2] as (x, y): pixels in the colours of the heat map's upper end."""
    rows, columns = np.nonzero((image[..., 0] > 225) & (image[..., 1] > 150) & (image[..., 2] < 190) & (image[..., 0] - image[..., 2] > 60))
    return np.stack([columns, rows + NOTICE], axis=1)


def settled(page, text: str, seconds: float = 30) -> None:
    """Waits until the page says `text`, and for the picture that belongs to it."""
    page.wait_for_function("text => document.body.innerText.includes(text)", arg=text, timeout=1000 * seconds)
    before = None
    for _ in range(40):
        page.wait_for_timeout(250)
        now = pixels(page)
        if before is not None and (now == before).all():
            return
        before = now
    raise AssertionError(f"the picture does not come to rest after {text!r}")


def on_screen(place: np.ndarray, view: SceneView, page) -> np.ndarray:
    """(x, y) in pixels of a place in the scene, by the camera that the page starts with."""
    from pointcept3m.engines.view.page import FIELD, camera_above

    aim, position = camera_above(view.coord[view.below_ceiling])
    forward = (aim - position) / np.linalg.norm(aim - position)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    offset = place - position
    canvas = page.locator("canvas").first.bounding_box()
    focal = canvas["height"] / 2 / np.tan(FIELD / 2)
    x, y, depth = offset @ right, offset @ np.cross(right, forward), offset @ forward
    return np.array([canvas["x"] + canvas["width"] / 2 + focal * x / depth, canvas["y"] + canvas["height"] / 2 - focal * y / depth])


@pytest.mark.long
def test_a_query_in_the_browser(browser, server, view, scene, tmp_path):
    from PIL import Image

    from pointcept3m.engines.view.page import Page

    made = scene[1]
    Page(server, view)
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(30_000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    address = f"http://127.0.0.1:{server.get_port()}"
    page.goto(address)
    settled(page, "no query yet")
    before = pixels(page)
    assert len(hot(before)) == 0 and (before.min(axis=2) < 200).mean() > 0.1  # the scene is there, in its own colours

    words = page.locator(".mantine-TextInput-input:visible").first
    for name in ("chair", "bed"):
        words.fill("")
        words.press_sequentially(name)
        words.press("Enter")
        settled(page, f"similarity to “{name}”")
        answer = page.locator(".p3m-answer").inner_text()
        assert re.search(rf"likest to, of labels:\s*{name}\b", answer), answer
        place = [float(value) for value in re.search(r"box\s*\((.*?)\) to \((.*?)\)", answer, re.S).expand(r"\1,\2").split(",")]
        members = made["coord"][made[name][:860]]
        np.testing.assert_allclose(place, [*members.min(0), *members.max(0)], atol=0.03)
        image = pixels(page)
        found = hot(image)
        assert len(found) > 300 and (image != before).any(axis=2).mean() > 0.05
        np.testing.assert_allclose(np.median(found, axis=0), on_screen(members.mean(0), view, page), atol=45)

    page.mouse.click(*on_screen(made["coord"][made["chair"]].mean(0), view, page))
    page.wait_for_function("document.body.innerText.match(/similarity to “point \\d+”/)", timeout=30_000)
    point = int(re.search(r"similarity to “point (\d+)”", page.inner_text("body"))[1])
    assert point in made["chair"]

    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "grey.png")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="ask by an image").click()
    chooser.value.set_files(tmp_path / "grey.png")
    settled(page, "similarity to “image grey.png”")

    page.locator(".mantine-Select-input:visible").first.click()
    page.get_by_role("option", name=PREDICTION).click()
    settled(page, "best label of labels")
    own = page.locator(".mantine-TextInput-input:visible").last
    own.fill("seat, somewhere to sleep")
    settled(page, "somewhere to sleep")
    own.fill("seat")
    page.wait_for_function("document.body.innerText.includes('leaves nothing to choose from')", timeout=30_000)

    outside = [url for url in asked if not url.startswith((address, f"blob:{address}", "data:"))]
    assert outside == [] and errors == []
    page.close()


def test_a_click_finds_the_surface_in_front(server, view):
    from pointcept3m.engines.view.page import Page

    page = Page(server, view)
    target = view.coord[view.rows == 950][0]
    above = target + np.array([0, 0, 5.0])
    found = page.hit(above, np.array([0, 0, -2.0]))
    beside = np.linalg.norm(view.coord[:, :2] - target[:2], axis=1)
    near = beside < view.spacing
    assert found is not None and view.sources.scene.coord[found, 2] >= view.coord[near, 2].max() - 4 * view.spacing
    assert page.hit(above, np.array([0, 0, 1.0])) is None and page.hit(np.array([50.0, 50, 5]), np.array([0, 0, -1.0])) is None


def test_the_slider_moves_the_threshold(server, view):
    """The page sets the slider to what it can show; that must not move the threshold."""
    from pointcept3m.engines.view.page import Page

    page = Page(server, view, "chair")
    exact = view.answer.threshold
    page._cut()
    assert view.answer.threshold == exact and page.threshold.value == pytest.approx(exact, abs=0.0051)
    with torch.no_grad():
        page.threshold.value = 0.99
        page._cut()
    assert view.answer.threshold == pytest.approx(0.99) and len(view.answer.found) != 1


def test_an_emptied_box_asks_nothing(server, view, scene):
    """But the box is empty after a click too, whose answer stays."""
    from pointcept3m.engines.view.page import Page

    page = Page(server, view, "chair")
    page.text.value = ""
    page._asked_by_text()
    assert view.answer is None and "no query yet" in page.legend.content and page.threshold.disabled
    np.testing.assert_array_equal(page._colors_of(SIMILARITY), view.colors(RGB)[page._shown()])
    page.text.value = "bed"
    page._asked_by_text()
    target = scene[1]["coord"][scene[1]["chair"]].mean(0)
    page._asked_by_click(SimpleNamespace(ray_origin=target + np.array([0, 0, 5.0]), ray_direction=(0.0, 0.0, -1.0)))
    page._asked_by_text()
    assert view.answer.name.startswith("point ")
