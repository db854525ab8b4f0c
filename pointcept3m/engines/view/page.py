"""The page itself: viser's widgets around a `SceneView`. All browsers that are connected see one and the same state."""

import threading
from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pointcept3m.engines.open_vocabulary.answers import GREEN, box_edges
from pointcept3m.engines.open_vocabulary.query import read_image
from pointcept3m.engines.view import legend
from pointcept3m.engines.view.scene_view import SIMILARITY, SceneView
from pointcept3m.engines.visualize.cloud_picture import plan_angle
from pointcept3m.structures.label_sets import named_or_free

MAX_UPLOAD = 20 << 20  # bytes of an image
OWN_WORDS = "own words"
REACH = 0.006  # radians from the ray of a click within which a point counts as hit
TYPING = 0.35  # seconds without a key after which a text is asked
POINT = 1.3  # times the distance between points, the size of one
FIELD = 0.7  # of the camera's view, radians
MESSAGE_STYLE = "margin:2px 8px;padding:4px 8px;border-radius:4px;font-size:0.8rem"


class Page:
    """Builds the widgets on a running viser server and answers them."""

    def __init__(self, server: Any, view: SceneView, first_query: str = ""):
        self.server, self.view = server, view
        self.lock = threading.RLock()  # callbacks come from many threads, the scene has one state
        self._height = view.coord[:, 2] - view.coord[:, 2].min()
        self._heights = self._cuts()
        self._timers: dict[str, threading.Timer] = {}
        self._by_text = bool(first_query)  # whether the answer that is shown is one to the text in the box
        server.scene.world_axes.visible = False
        server.scene.configure_environment_map(None)
        self._place_camera()
        self.cloud = server.scene.add_point_cloud(
            "/scene", self._points(), self._colors_of(SIMILARITY), point_size=POINT * view.spacing, point_shape="circle", precision="float32", point_shading="flat"
        )
        self._widgets(first_query)
        self._callbacks()
        if first_query:
            self.ask(first_query, first_query)
        else:
            self.show()

    # building

    def _place_camera(self) -> None:
        shown = self.view.coord[self._shown()]
        aim, position = camera_above(shown if len(shown) else self.view.coord)
        initial = self.server.initial_camera
        initial.fov, initial.up, initial.position, initial.look_at = FIELD, (0.0, 0.0, 1.0), tuple(position), tuple(aim)

    def _widgets(self, first_query: str) -> None:
        gui, view = self.server.gui, self.view
        gui.main_panel.dock_right()
        gui.add_html(legend.words("", view.about()))
        with gui.add_folder("ask"):
            # no form: viser's sends only the latest of what happens within 50 ms, and Enter would swallow the last letters
            self.text = gui.add_text("query", first_query, hint="Free words, answered as you type.")
            self.upload = gui.add_upload_button("ask by an image", mime_type="image/*", hint="A picture of what you look for.")
            gui.add_html(legend.words("", "Or click a point of the scene, to find what is like it."))
            self.message = gui.add_html("")
            self.report = gui.add_html("")
        with gui.add_folder("view"):
            self.mode = gui.add_dropdown("colour by", tuple(view.views), initial_value=SIMILARITY)
            self.legend = gui.add_html("")
            self.threshold = gui.add_slider("threshold", 0.0, 1.0, 0.01, 0.5, disabled=True, hint="From which similarity on a point belongs to the answer.")
            self.grey = gui.add_checkbox("only answer", False, hint="Points below the threshold are grey.")
            self.box = gui.add_checkbox("region box", True, hint="The box of the top region.")
            self.cut = gui.add_slider("cut at", *self._heights, hint="Metres above the lowest point from which nothing is shown; it starts below the ceiling.")
            self.size = gui.add_slider("point size", 0.5, 4.0, 0.1, POINT)
        with gui.add_folder("names"):
            known = view.label_sets()
            named = view.labels == known.get(view.labels.name)
            self.labels = gui.add_dropdown("label set", (*known, OWN_WORDS), initial_value=view.labels.name if named else OWN_WORDS)
            self.own = gui.add_text("own words", "" if named else ", ".join(view.labels.names), hint="Names with commas between them: chair, table, plant")

    def _callbacks(self) -> None:
        self.text.on_update(lambda _: self._later("query", self._safely(self._asked_by_text), TYPING))
        self.upload.on_upload(self._safely(self._asked_by_image))
        self.server.scene.on_click()(self._safely(self._asked_by_click))
        self.labels.on_update(self._safely(lambda _: self._name_by(self.labels.value)))
        self.own.on_update(lambda _: self._later("words", self._safely(self._named_by_own_words), 2 * TYPING))
        self.mode.on_update(self._safely(lambda _: self.show()))
        self.grey.on_update(self._safely(lambda _: self.show()))
        self.cut.on_update(lambda _: self._later("cut", self._safely(lambda _: self._show_points())))
        self.box.on_update(self._safely(lambda _: self._draw_box()))
        self.threshold.on_update(lambda _: self._later("threshold", self._safely(self._cut)))
        self.size.on_update(self._safely(lambda _: setattr(self.cloud, "point_size", self.size.value * self.view.spacing)))

    def _safely(self, function: Callable[[Any], Any]) -> Callable[[Any], None]:
        """The function, one at a time; what goes wrong is said on the page."""

        def call(event: Any = None) -> None:
            with self.lock:
                try:
                    function(event)
                except (ValueError, TypeError, KeyError, OSError, RuntimeError, FloatingPointError) as error:
                    self._say(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error), wrong=True)

        return call

    def _later(self, name: str, function: Callable[[], None], seconds: float = 0.15) -> None:
        """Calls `function` when nothing called for `name` for a moment: a widget sends all that it goes through."""
        with self.lock:
            if name in self._timers:
                self._timers[name].cancel()
            self._timers[name] = threading.Timer(seconds, function)
            self._timers[name].daemon = True
            self._timers[name].start()

    # asking

    def ask(self, name: str, asked: Any) -> None:
        """Puts a query to the scene and shows the answer. Raises as `SceneView.ask`."""
        answer = self.view.ask(name, asked)
        known = answer.similarity[~np.isnan(answer.similarity)]
        low, high = max(-1.0, round(float(known.min()) - 0.005, 2)), min(1.0, round(float(known.max()) + 0.005, 2))
        with self.server.atomic():
            self.mode.value = SIMILARITY
            # in this order the value lies inside at every moment
            self.threshold.min, self.threshold.max = min(low, self.threshold.min), max(high, self.threshold.max)
            self.threshold.value = round(float(np.clip(answer.threshold, low, high)), 2)
            self.threshold.min, self.threshold.max, self.threshold.disabled = low, high, False
        self._say("")
        self.show()

    def _asked_by_text(self, event: Any = None) -> None:
        text = " ".join(self.text.value.split())
        if text:
            self._mark(None)
            self._by_text = True
            self.ask(text, text)
        elif self.text.value:
            self._say("an empty query: type what you look for, such as 'somewhere to sit'")
        elif self._by_text:  # an image or a click empties the box too, and its answer stays
            self._by_text = False
            self.view.forget()
            self.threshold.disabled = True
            self._say("")
            self.show()

    def _asked_by_image(self, event: Any) -> None:
        file = self.upload.value
        if len(file.content) > MAX_UPLOAD:
            raise ValueError(f"{file.name}: {len(file.content) / 2**20:.0f} MiB, wanted an image of at most {MAX_UPLOAD >> 20}")
        image = read_image(bytes(file.content))
        self._by_text = False
        self.text.value = ""
        self._mark(None)
        self.ask(f"image {file.name}", image)

    def _asked_by_click(self, event: Any) -> None:
        row = self.hit(np.array(event.ray_origin), np.array(event.ray_direction))
        if row is None:
            self._say("no point of the scene there")
            return
        self.ask(f"point {row}", row)
        self._by_text = False
        self.text.value = ""
        self._mark(row)

    def _mark(self, row: int | None) -> None:
        """A green ball at the point that was asked for, none for None."""
        place = (0.0, 0.0, 0.0) if row is None else tuple(map(float, self.view.sources.scene.coord[row]))
        self.server.scene.add_icosphere("/asked", radius=2.5 * self.view.spacing, color=GREEN, position=place, visible=row is not None)

    def hit(self, origin: NDArray, direction: NDArray) -> int | None:
        """The number of the nearest shown point along a ray, or None where it meets none."""
        shown = self._shown()
        offset = self.view.coord[shown] - origin
        direction = direction / np.linalg.norm(direction)
        depth = offset @ direction
        beside = np.linalg.norm(offset - depth[:, None] * direction, axis=1)
        near = np.flatnonzero((depth > 0) & (beside < self.view.spacing + REACH * depth))
        if not len(near):
            return None
        # of the front-most surface, the point nearest to the ray
        front = near[depth[near] < depth[near].min() + 4 * self.view.spacing]
        return int(self.view.rows[np.flatnonzero(shown)[front[beside[front].argmin()]]])

    def _name_by(self, name: str) -> None:
        known = self.view.label_sets()
        if name == OWN_WORDS:
            if not self.own.value.strip():
                return
            name = self.own.value
        self.view.set_labels(known[name] if name in known else named_or_free(name))
        self._say("")
        self.show()

    def _named_by_own_words(self, event: Any = None) -> None:
        self._name_by(OWN_WORDS)
        self.labels.value = OWN_WORDS

    def _cut(self, event: Any = None) -> None:
        # the page sets the slider too, to what it can show: two digits
        if self.view.answer is not None and abs(self.threshold.value - self.view.answer.threshold) > 0.0051:
            self.view.set_threshold(float(self.threshold.value))
            self.show()

    # showing

    def show(self) -> None:
        """Colours, legend, report and box, as the state is."""
        with self.server.atomic():
            self.cloud.colors = self._colors_of(self.mode.value)
            self.legend.content = self.view.legend(self.mode.value)
            self.report.content = self.view.report()
            self._draw_box()

    def _cuts(self) -> tuple[float, float, float, float]:
        """(least, most, step, first) height of the cut."""
        top = round(float(np.ceil(self._height.max() * 100) / 100) + 0.01, 2)
        below = self._height[self.view.below_ceiling]
        first = round(float(below.max()), 2) + 0.01 if len(below) and not self.view.below_ceiling.all() else top
        return min(0.1, first), top, 0.01, round(min(first, top), 2)

    def _shown(self) -> NDArray[np.bool_]:
        """bool [S]: the points below the cut."""
        return self._height <= (self.cut.value if hasattr(self, "cut") else self._heights[3])

    def _points(self) -> NDArray[np.float32]:
        return self.view.coord[self._shown()]

    def _colors_of(self, view: str) -> NDArray[np.uint8]:
        return self.view.colors(view, hasattr(self, "grey") and self.grey.value)[self._shown()]

    def _show_points(self) -> None:
        # points and colours are checked against each other as they are set, so the cloud is made anew
        self.cloud = self.server.scene.add_point_cloud(
            "/scene", self._points(), self._colors_of(self.mode.value), point_size=self.size.value * self.view.spacing,
            point_shape="circle", precision="float32", point_shading="flat",
        )  # fmt: skip

    def _draw_box(self) -> None:
        answer = self.view.answer
        found = answer.found[0] if answer is not None and answer.found else None
        visible = bool(found is not None and self.box.value)
        edges = box_edges(found.low, found.high) if found is not None else np.zeros((12, 2, 3), np.float32)
        self.server.scene.add_line_segments(
            "/answer/box", edges, GREEN, thickness=3.0, thickness_units="screen", visible=visible
        )
        if found is not None:
            top = (float(found.center[0]), float(found.center[1]), float(found.high[2]))
            self.server.scene.add_label("/answer/name", f"{answer.name}: {found.mean:.2f}", position=top, visible=visible)

    def _say(self, text: str, wrong: bool = False) -> None:
        color = "background:#fde8e8;color:#8a1f1f" if wrong else "background:#eef;color:#333"
        self.message.content = f'<div class="p3m-message" style="{MESSAGE_STYLE};{color}">{escape(text)}</div>' if text else ""




def camera_above(coord: NDArray[np.float32], elevation: float = 58.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(where a camera looks, where it stands), [3] each: off a corner of the floor plan, high enough to see over the walls."""
    around, up = np.deg2rad(plan_angle(coord) - 90 + 33), np.deg2rad(elevation)
    backward = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    low, high = np.quantile(coord, [0.005, 0.995], axis=0).astype(np.float64)
    aim = (low + high) / 2
    offset = coord[:: max(1, len(coord) // 20_000)] - aim
    along = offset @ backward
    beside = np.linalg.norm(offset - along[:, None] * backward, axis=1)
    return aim, aim + backward * float(np.quantile(along + beside / np.tan(0.46 * FIELD), 0.995))
