"""Where things stand: `generate_room(seed, split) -> Room`, furniture groups placed without interpenetration."""

from dataclasses import dataclass, field

import numpy as np

from pointcept3m.datasets.rooms import furniture as fu
from pointcept3m.datasets.rooms.geometry import Shape, parts_overlap
from pointcept3m.datasets.rooms.texture import Material, Palette
from pointcept3m.utils.registry import near_names

SPLITS = ("train", "val", "test")
SHELL = ("wall", "floor", "ceiling")
# What differs between splits besides the palette: share of L-shaped rooms, how densely rooms are furnished, clutter.
HABITS = {
    "train": dict(l_shape=0.2, density=(0.6, 0.95), clutter=(0.3, 0.8), chair_turn=0.15),
    "val": dict(l_shape=0.35, density=(0.5, 1.1), clutter=(0.4, 1.0), chair_turn=0.35),
    "test": dict(l_shape=0.35, density=(0.6, 1.1), clutter=(0.2, 1.0), chair_turn=0.5),
}
# kind of room: (groups of furniture that make it, groups that it may have besides, its sides against those of the usual room)
ROOM_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], float]] = {
    "bedroom": (("sleeping",), ("working", "storage"), 0.95),
    "living room": (("lounge",), ("dining", "storage", "working"), 1.1),
    "kitchen": (("kitchen",), ("dining", "storage"), 0.9),
    "bathroom": (("bath",), ("storage",), 0.7),
    "office": (("working", "working"), ("storage", "lounge"), 1.0),
    "dining room": (("dining",), ("storage", "lounge"), 1.0),
    "studio": (("sleeping", "kitchen"), ("lounge", "working"), 1.25),
    "library": (("storage", "storage"), ("working", "lounge"), 1.0),
}
# what a group is nothing without
MAIN = {"sleeping": "bed", "lounge": "couch", "kitchen": "counter", "bath": "toilet", "dining": "table", "working": "desk"}


@dataclass
class RoomObject:
    """One thing in a room.

    vertices [V, 3] float64 metres in the room's axes · faces [F, 3] int64 · face_material [F] int64 into
    Room.materials · rotation [3, 3], translation [3]: own axes to the room's · parts [P, 2, 3]: boxes of its solids
    in the room's axes, low and high corner · id: number within the room from 0, the value of `instance`
    · category: ScanNet's raw category · support: id of the object that it stands on, -1 the floor or a wall.
    """

    id: int
    category: str
    vertices: np.ndarray
    faces: np.ndarray
    face_material: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    parts: np.ndarray
    support: int = -1
    surfaces: list = field(default_factory=list)

    @property
    def box(self) -> np.ndarray:
        """float64 [2, 3]: low and high corner of its axis-aligned box."""
        return np.stack([self.vertices.min(axis=0), self.vertices.max(axis=0)])


@dataclass
class Room:
    """A furnished room. Metres, z up, floor at z = 0.

    outline [P, 2]: corners of the floor, counter-clockwise · height: of the ceiling · objects: all things, the shell
    (walls, floor, ceiling) included · materials: finishes that faces refer to · lamps [L, 3]: positions of the lights
    · daylight: strength of the sky light through windows, 0 at night · category: kind of room, "" where the furniture was
    drawn from all kinds · scan: number of the scan, 0 the first; another has other light, cameras and noise.
    """

    seed: int
    split: str
    outline: np.ndarray
    height: float
    objects: list[RoomObject] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)
    lamps: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    daylight: float = 0.0
    category: str = ""
    scan: int = 0

    @property
    def name(self) -> str:
        return f"room{self.seed:06d}" + (f"_{self.scan}" if self.scan else "")

    def rng(self, purpose: int) -> np.random.Generator:
        """Random numbers for one purpose, the same for the same room: how it is rendered changes nothing about its scan."""
        return np.random.default_rng((self.seed, SPLITS.index(self.split), purpose, *([self.scan] if self.scan else [])))

    @property
    def area(self) -> float:
        """Floor area in square metres."""
        x, y = self.outline.T
        return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))

    def contains(self, point: np.ndarray, margin: float = 0.0) -> np.ndarray:
        """bool [N]: whether points [N, 2] are inside the floor, at least `margin` from every wall."""
        a, b = self.outline, np.concatenate([self.outline[1:], self.outline[:1]])
        low, high = np.minimum(a, b), np.maximum(a, b)
        x, y = point[:, :1], point[:, 1:]
        # Walls run along x or y; a ray towards +x crosses those along y an odd number of times from inside.
        inside = ((y >= low[:, 1]) & (y < high[:, 1]) & (x < low[:, 0])).sum(axis=1) % 2 == 1
        if margin:
            near = (x > low[:, 0] - margin) & (x < high[:, 0] + margin) & (y > low[:, 1] - margin) & (y < high[:, 1] + margin)
            inside &= ~near.any(axis=1)
        return inside


def generate_room(seed: int, split: str = "train", size: tuple[float, float] | None = None, category: str | None = None) -> Room:
    """A furnished room, the same for the same arguments.

    Args:
        seed: any number >= 0; every seed is another room.
        split: "train", "val" or "test": palettes and habits of layout shift between them.
        size: (width, depth) of the floor's bounding rectangle in metres; drawn from about 2.5 to 9 m if None.
        category: kind of room, one of ROOM_KINDS, which furniture follows; None mixes groups of all kinds.

    Raises: ValueError for a negative seed, an unknown split or category, or a size outside 2 to 20 m.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; {near_names(split, SPLITS)}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if size is not None and not all(2.0 <= s <= 20.0 for s in size):
        raise ValueError(f"size must be two lengths of 2 to 20 m, got {size}")
    if category is not None and category not in ROOM_KINDS:
        raise ValueError(f"no kind of room is called {category!r}; {near_names(category, ROOM_KINDS)}")
    planner = _Planner(np.random.default_rng((seed, SPLITS.index(split), 1)), seed, split, size, category or "")
    planner.build_shell()
    planner.build_openings()
    planner.furnish()
    planner.hang_pictures()
    planner.scatter_clutter()
    return planner.room


class _Wall:
    """One straight wall seen from inside: start point, direction along it, inward normal, length."""

    def __init__(self, a: np.ndarray, b: np.ndarray):
        self.start, self.length = a, float(np.abs(b - a).sum())
        self.along = (b - a) / self.length
        self.normal = np.array([-self.along[1], self.along[0]])
        # A thing's own +y looks along the normal, so its +x runs against the direction of the wall.
        self.yaw = float(np.arctan2(self.normal[1], self.normal[0]) - np.pi / 2)

    def place(self, t: float, off: float) -> np.ndarray:
        return self.start + t * self.along + off * self.normal


class _Planner:
    """Places things one after another; what does not fit after some tries is left out."""

    def __init__(self, rng: np.random.Generator, seed: int, split: str, size: tuple[float, float] | None, category: str):
        self.rng, self.habits = rng, HABITS[split]
        if size is None:
            w = np.clip(rng.lognormal(np.log(4.2), 0.32), 2.5, 9.0)
            size = (w, np.clip(w * rng.uniform(0.65, 1.35), 2.5, 9.0))
            size = tuple(np.clip(s * ROOM_KINDS[category][2], 2.2, 9.0) for s in size) if category else size
        outline = self._outline(*size)
        self.room = Room(seed, split, outline, float(rng.uniform(2.4, 3.0)), category=category)
        self.palette = Palette(rng, split)
        self.walls = [_Wall(a, b) for a, b in zip(outline, np.roll(outline, -1, axis=0), strict=True)]
        self.solids = np.zeros((0, 2, 3))  # parts of all things placed
        self.reserved = np.zeros((0, 2, 3))  # air that furniture must leave free: door swings, windows, ways
        self.finish_of: dict[tuple[str, str], int] = {}

    def _outline(self, w: float, d: float) -> np.ndarray:
        rng = self.rng
        if rng.random() > self.habits["l_shape"] or min(w, d) < 3.6:
            return np.array([[0, 0], [w, 0], [w, d], [0, d]])
        cw, cd = w * rng.uniform(0.3, 0.5), d * rng.uniform(0.3, 0.5)
        corner = np.array([[0, 0], [w, 0], [w, d - cd], [w - cw, d - cd], [w - cw, d], [0, d]])
        if rng.random() < 0.5:  # the mirror image, turned round to stay counter-clockwise
            corner = (corner * [-1, 1] + [w, 0])[::-1]
        return corner

    # putting things down

    def finish(self, key: tuple[str, str], kind: str) -> int:
        """The material of a slot of a category, made on first use: things of one kind match within a room."""
        if key not in self.finish_of:
            self.finish_of[key] = len(self.room.materials)
            self.room.materials.append(self.palette.material(kind))
        return self.finish_of[key]

    def put(self, category: str, shape: Shape, position: tuple, yaw: float = 0.0, support: int = -1,
            style: str | None = None, check: bool = True) -> RoomObject | None:  # fmt: skip
        """Adds a thing if it fits; None where it would enter another or leave the room."""
        cos, sin = round(np.cos(yaw), 12), round(np.sin(yaw), 12)
        rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
        translation = np.array(position, dtype=np.float64)
        low, high = np.moveaxis(np.array(shape.parts), 1, 0)
        middle = (low + high) / 2 @ rotation.T + translation
        reach = (high - low) / 2 @ np.abs(rotation).T  # of the box around the turned box
        parts = np.stack([middle - reach, middle + reach], axis=1)
        if check and not self._fits(parts, support):
            return None
        style = style or category
        slots = np.array([self.finish((style, slot), kind) for slot, kind in shape.slots.items()])
        room_object = RoomObject(
            id=len(self.room.objects), category=category, vertices=np.concatenate(shape.vertices) @ rotation.T + translation,
            faces=np.concatenate(shape.faces), face_material=slots[np.concatenate(shape.face_slot)], rotation=rotation,
            translation=translation, parts=parts, support=support, surfaces=shape.surfaces,
        )  # fmt: skip
        self.room.objects.append(room_object)
        if category not in SHELL:
            self.solids = np.concatenate([self.solids, parts])
        return room_object

    def _fits(self, parts: np.ndarray, support: int) -> bool:
        low, high = parts[:, 0].min(axis=0), parts[:, 1].max(axis=0)
        corners = np.array([[low[0], low[1]], [low[0], high[1]], [high[0], low[1]], [high[0], high[1]]])
        shrunk = corners + (corners.mean(axis=0) - corners) * 1e-6
        if high[2] > self.room.height - 0.02 or not self.room.contains(shrunk).all():
            return False
        if support < 0 and len(self.reserved) and parts_overlap(parts, self.reserved):
            return False
        return not (len(self.solids) and parts_overlap(parts, self.solids))

    def reserve(self, low: np.ndarray, high: np.ndarray) -> None:
        self.reserved = np.concatenate([self.reserved, np.stack([np.minimum(low, high), np.maximum(low, high)])[None]])

    def against_wall(self, category: str, shape: Shape, gap: float = 0.02, tries: int = 14, front: float = 0.0,
                     style: str | None = None, corner: bool = False) -> RoomObject | None:  # fmt: skip
        """Places a thing with its back to a random wall; `front` metres before it stay free."""
        low, high = shape.bounds()
        for _ in range(tries):
            wall = self.walls[self.rng.choice(len(self.walls), p=self._wall_odds())]
            room_for = wall.length - (high[0] - low[0]) - 0.04
            if room_for <= 0:
                continue
            at_corner = corner and self.rng.random() < 0.6
            t = 0.02 + (self.rng.choice([0.0, room_for]) if at_corner else self.rng.uniform(0, room_for))
            spot = wall.place(t + high[0], gap - low[1])
            thing = self.put(category, shape, (*spot, 0.0), wall.yaw, style=style)
            if thing is not None:
                if front:
                    a = wall.place(t, gap + high[1] - low[1])
                    b = wall.place(t + high[0] - low[0], gap + high[1] - low[1] + front)
                    self.reserve(np.array([*a, 0.0]), np.array([*b, 1.2]))
                return thing
        return None

    def _wall_odds(self) -> np.ndarray:
        lengths = np.array([wall.length for wall in self.walls])
        return lengths / lengths.sum()

    def next_to(self, anchor: RoomObject, category: str, shape: Shape, local: tuple[float, float], turn: float = 0.0) -> RoomObject | None:
        """Places a thing on the floor at `local`, in the anchor's own axes, turned by `turn` against it."""
        spot = anchor.rotation[:2, :2] @ np.array(local) + anchor.translation[:2]
        yaw = np.arctan2(anchor.rotation[1, 0], anchor.rotation[0, 0]) + turn
        return self.put(category, shape, (*spot, 0.0), yaw)

    # the shell and what is in it

    def build_shell(self) -> None:
        height, outline = self.room.height, self.room.outline
        xs, ys = np.unique(outline[:, 0]), np.unique(outline[:, 1])
        for category, low, high in (("floor", -0.1, 0.0), ("ceiling", height, height + 0.1)):
            shape = Shape()
            for x0, x1 in zip(xs[:-1], xs[1:], strict=True):
                for y0, y1 in zip(ys[:-1], ys[1:], strict=True):
                    if self.room.contains(np.array([[(x0 + x1) / 2, (y0 + y1) / 2]])).all():
                        shape.box((x0, y0, low), (x1, y1, high), "surface", "hard" if category == "floor" else "plain")
            self.put(category, shape, (0, 0, 0), check=False)
        same_paint = self.rng.random() < 0.7
        for k, wall in enumerate(self.walls):
            shape = Shape()
            shape.box((-wall.length / 2, -0.1, 0.0), (wall.length / 2, 0.0, height), "surface", "plain" if self.rng.random() < 0.7 else "any")
            self.put("wall", shape, (*wall.place(wall.length / 2, 0.0), 0.0), wall.yaw, check=False,
                     style="wall" if same_paint or k else "wall accent")  # fmt: skip
        # Paint is pale more often than not, whatever the split; the ceiling nearly always.
        for style in ("wall", "wall accent", "ceiling"):
            index = self.finish_of.get((style, "surface"))
            if index is not None and (style == "ceiling" or self.rng.random() < 0.6):
                paint = self.room.materials[index]
                paint.color_a, paint.color_b = 0.45 + 0.5 * paint.color_a, 0.45 + 0.5 * paint.color_b
        middle = outline.min(axis=0) + np.ptp(outline, axis=0) * self.rng.uniform(0.35, 0.65, 2)
        lamps = [(*middle, height - 0.15)] if self.room.contains(middle[None]).all() else []
        if self.room.area > 16 or not lamps:
            spot = self._free_spot(0.5)
            lamps.append((*spot, height - 0.15))
        self.room.lamps = np.array(lamps)
        self.room.daylight = float(self.rng.choice([0.0, 0.6, 1.0], p=[0.2, 0.4, 0.4]))

    def _free_spot(self, margin: float) -> np.ndarray:
        low, high = self.room.outline.min(axis=0), self.room.outline.max(axis=0)
        spots = self.rng.uniform(low, high, (200, 2))
        inside = np.flatnonzero(self.room.contains(spots, margin))
        return spots[inside[0]] if len(inside) else (low + high) / 2

    def _on_wall(self, category: str, shape: Shape, z: float = 0.0, tries: int = 12) -> tuple[RoomObject, _Wall, float] | None:
        low, high = shape.bounds()
        for _ in range(tries):
            wall = self.walls[self.rng.choice(len(self.walls), p=self._wall_odds())]
            room_for = wall.length - (high[0] - low[0]) - 0.1
            if room_for <= 0:
                continue
            t = 0.05 + self.rng.uniform(0, room_for) + high[0]
            thing = self.put(category, shape, (*wall.place(t, 0.0), z), wall.yaw)
            if thing is not None:
                return thing, wall, t
        return None

    def build_openings(self) -> None:
        rng = self.rng
        for _ in range(1 if self.room.area < 14 else int(rng.integers(1, 3))):
            shape = fu.door(rng)
            placed = self._on_wall("door", shape)
            if placed:
                _, wall, t = placed
                half = shape.bounds()[1][0] - 0.05
                a, b = wall.place(t - half, 0.05), wall.place(t + half, 0.95)
                self.reserve(np.array([*a, 0.0]), np.array([*b, 2.0]))
        for _ in range(int(rng.integers(1, 2 + self.room.area // 14))):
            shape = fu.window(rng)
            low, high = shape.bounds()
            placed = self._on_wall("window", shape)
            if not placed:
                continue
            thing, wall, t = placed
            self._curtains(wall, t, low, high)
            if rng.random() < 0.5:
                self.put("radiator", fu.radiator(rng), (*wall.place(t, 0.07), 0.0), wall.yaw)
            # Tall furniture must not stand before the glass; low furniture may.
            self.reserve(np.array([*wall.place(t + low[0], 0.05), low[2] + 0.05]), np.array([*wall.place(t + high[0], 0.7), high[2]]))

    def _curtains(self, wall: _Wall, t: float, low: np.ndarray, high: np.ndarray) -> None:
        rng = self.rng
        if rng.random() > 0.75:
            return
        bottom = 0.04 if rng.random() < 0.6 else low[2] - 0.25
        top = min(high[2] + 0.12, self.room.height - 0.1)
        width = rng.uniform(0.25, 0.5)
        for side in (-1, 1):
            edge = t + side * (high[0] + 0.02 + width / 2)
            if width / 2 < edge < wall.length - width / 2 and rng.random() < 0.85:
                self.put("curtain", fu.curtain(rng, width, bottom, top), (*wall.place(edge, 0.0), 0.0), wall.yaw)

    def furnish(self) -> None:
        """Draws groups of furniture until the floor is as full as the room's habit wants."""
        rng = self.rng
        # The largest things come first, while there is room for them.
        if self.room.category:
            self._furnish_kind()
            return
        groups = [self._sleeping, self._lounge, self._kitchen, self._bath, self._dining, self._working, self._storage]
        odds = np.array([1.4, 1.4, 1.2, 1.0, 1.2, 1.2, 0.7])
        goal = rng.uniform(*self.habits["density"]) * 0.5 * self.room.area
        number = int(np.clip(round(goal / 1.9), 2, len(groups)))
        chosen = np.sort(rng.choice(len(groups), size=number, replace=False, p=odds / odds.sum()))
        for k in [*chosen, *rng.permutation(chosen)[:4]]:
            if self._covered() > goal:
                break
            groups[k]()
        self._add_extras()

    def _furnish_kind(self) -> None:
        """The groups that make a kind of room, then others it may have until the floor is full, then extras."""
        must, may, _ = ROOM_KINDS[self.room.category]
        goal = self.rng.uniform(*self.habits["density"]) * 0.5 * self.room.area
        for group in must:
            for _ in range(6):  # other sizes, other walls, until what makes the kind stands there
                getattr(self, f"_{group}")()
                if MAIN.get(group) in (None, *(o.category for o in self.room.objects)):
                    break
        for k, chance in [(k, chance) for chance in (0.6, 0.9) for k in self.rng.permutation(len(may))]:
            if self._covered() < goal and self.rng.random() < chance:
                getattr(self, f"_{may[k]}")()
        self._add_extras()

    def _add_extras(self) -> None:
        rng = self.rng
        extras = dict(bookshelf=2, cabinet=2, lamp=1, plant=1, box=2, ottoman=1, chair=2) | {"trash can": 2}
        for category, count in extras.items():
            for _ in range(int(rng.integers(0, count + 1))):
                self.against_wall(category, fu.FURNITURE[category](rng), gap=0.03, corner=category in ("lamp", "plant"), tries=8)

    def _covered(self) -> float:
        """Floor area under furniture, square metres."""
        boxes = [o.box for o in self.room.objects if o.category not in SHELL and o.box[0, 2] < 0.5]
        return float(sum(np.prod((box[1] - box[0])[:2]) for box in boxes))

    def _sleeping(self) -> None:
        rng = self.rng
        anchor = self.against_wall("bed", fu.bed(rng), corner=True)
        if anchor is None:
            return
        half = anchor.box[1] - anchor.box[0]
        half = float(min(half[0], half[1])) / 2
        for side in (-1, 1):
            stand = fu.nightstand(rng)
            depth = stand.bounds()[1][1]
            y = -np.ptp(anchor.vertices @ anchor.rotation, axis=0)[1] / 2 + depth
            self.next_to(anchor, "nightstand", stand, (side * (half + 0.32), y))
        self.against_wall("cabinet", fu.cabinet(rng), front=0.4)

    def _dining(self) -> None:
        rng = self.rng
        shape = fu.table(rng)
        low, high = shape.bounds()
        for _ in range(12):
            spot, yaw = self._free_spot(0.55), float(rng.choice([0.0, np.pi / 2])) + rng.normal(0, 0.02)
            anchor = self.put("table", shape, (*spot, 0.0), yaw)
            if anchor is not None:
                break
        else:
            return
        width, depth = high[0] - low[0], high[1] - low[1]
        seats = [(x, s * (depth / 2), s) for s in (-1, 1) for x in ((-width / 4, width / 4) if width > 1.25 else (0.0,))]
        seats += [(s * width / 2, 0.0, 2 * s) for s in (-1, 1) if width < 1.3 or rng.random() < 0.5]
        model = int(rng.integers(1 << 30))  # all chairs of a table are of one make
        for x, y, s in seats:
            if rng.random() < 0.85:
                chair = fu.chair(np.random.default_rng(model))
                away = rng.uniform(0.0, 0.3)
                local = (x, y + s * away) if abs(s) == 1 else (x + s / 2 * away, y)
                turn = {-1: 0.0, 1: np.pi, -2: -np.pi / 2, 2: np.pi / 2}[s] + rng.normal(0, self.habits["chair_turn"])
                self.next_to(anchor, "chair", chair, local, turn)

    def _lounge(self) -> None:
        rng = self.rng
        anchor = self.against_wall("couch", fu.sofa(rng), gap=float(rng.choice([0.03, 0.1])))
        if anchor is None:
            return
        if rng.random() < 0.85:
            self.next_to(anchor, "coffee table", fu.coffee_table(rng), (rng.uniform(-0.2, 0.2), rng.uniform(1.0, 1.3)))
        for side in (-1, 1):
            if rng.random() < 0.5:
                self.next_to(anchor, "armchair", fu.armchair(rng), (side * rng.uniform(1.4, 1.9), rng.uniform(1.1, 1.6)),
                             side * (np.pi / 2) + rng.normal(0, 0.1))  # fmt: skip
        if rng.random() < 0.6:
            self.against_wall("tv stand", fu.tv_stand(rng))

    def _working(self) -> None:
        rng = self.rng
        for _ in range(1 if self.room.area < 18 else int(rng.integers(1, 4))):
            anchor = self.against_wall("desk", fu.desk(rng))
            if anchor is None:
                return
            depth = np.ptp(anchor.vertices @ anchor.rotation, axis=0)[1]
            kind = "office chair" if rng.random() < 0.7 else "chair"
            shape = fu.FURNITURE[kind](rng)
            for away in (0.1, 0.3, 0.45):
                if self.next_to(anchor, kind, shape, (rng.uniform(-0.1, 0.1), depth / 2 + away), np.pi + rng.normal(0, 0.3)):
                    break
        if rng.random() < 0.7:
            self.against_wall("bookshelf", fu.bookshelf(rng))

    def _kitchen(self) -> None:
        rng = self.rng
        anchor = self.against_wall("counter", fu.counter(rng), gap=0.005, front=0.6, corner=True)
        if anchor is not None:
            x0, y0, x1, y1, z, _ = anchor.surfaces[0]
            local = np.array([rng.uniform(x0 + 0.35, x1 - 0.35), (y0 + y1) / 2, z])
            yaw = np.arctan2(anchor.rotation[1, 0], anchor.rotation[0, 0])
            self.put("sink", fu.counter_sink(rng), anchor.rotation @ local + anchor.translation, yaw, support=anchor.id)
            if rng.random() < 0.75:
                spot = anchor.rotation @ np.array([0, y0 + 0.18, 0]) + anchor.translation
                self.put("kitchen cabinet", fu.wall_cabinet(rng, (x1 - x0) * rng.uniform(0.5, 1)), spot, yaw)
        if self.room.category and any(o.category == "refrigerator" for o in self.room.objects):
            return
        self.against_wall("refrigerator", fu.refrigerator(rng), front=0.5, corner=True)

    def _bath(self) -> None:
        rng = self.rng
        if rng.random() < 0.55:
            self.against_wall("bathtub", fu.bathtub(rng), gap=0.01, corner=True)
        self.against_wall("toilet", fu.toilet(rng), gap=0.01, front=0.4)
        self.against_wall("sink", fu.washbasin(rng), gap=0.01, front=0.4)

    def _storage(self) -> None:
        rng = self.rng
        for kind in rng.choice(["bookshelf", "cabinet"], size=2):
            self.against_wall(str(kind), fu.FURNITURE[str(kind)](rng), front=0.3)

    def hang_pictures(self) -> None:
        for _ in range(int(self.rng.integers(1, 3 + self.room.area // 7))):
            self._on_wall("picture", fu.picture(self.rng), z=self.rng.uniform(1.35, 1.75))

    def scatter_clutter(self) -> None:
        """Small things on tables, shelves and seats."""
        rng = self.rng
        share = rng.uniform(*self.habits["clutter"])
        usual = {"couch": ("pillow",), "armchair": ("pillow",), "desk": ("monitor", "books", "lamp", "vase", "box")}
        for anchor in list(self.room.objects):
            for x0, y0, x1, y1, z, headroom in anchor.surfaces:
                number = rng.poisson(share * min(6.0, 1.0 + 4.0 * (x1 - x0) * (y1 - y0)))
                kinds = usual.get(anchor.category, ("books", "vase", "box", "lamp", "microwave", "books", "vase"))
                for k in range(number):
                    kind = kinds[0] if k == 0 and anchor.category == "desk" else str(rng.choice(kinds))
                    shape = fu.CLUTTER[kind](rng)
                    low, high = shape.bounds()
                    if high[2] > headroom or (high - low)[0] > x1 - x0 or (high - low)[1] > y1 - y0:
                        continue
                    local = np.array([rng.uniform(x0 - low[0], x1 - high[0]), rng.uniform(y0 - low[1], y1 - high[1]), z])
                    yaw = np.arctan2(anchor.rotation[1, 0], anchor.rotation[0, 0])
                    self.put(kind, shape, anchor.rotation @ local + anchor.translation, yaw, support=anchor.id, style=f"{kind}{rng.integers(3)}")
