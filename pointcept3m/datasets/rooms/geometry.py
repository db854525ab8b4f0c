"""Triangle meshes from simple solids: boxes, cylinders, lathe-turned and extruded shapes."""

from dataclasses import dataclass, field

import numpy as np

_BOX_FACES = np.array(
    [[0, 2, 1], [1, 2, 3], [4, 5, 6], [5, 7, 6], [0, 1, 4], [1, 5, 4],
     [2, 6, 3], [3, 6, 7], [0, 4, 2], [2, 4, 6], [1, 3, 5], [3, 7, 5]]
)  # fmt: skip


@dataclass
class Shape:
    """A mesh in its own axes: origin in the middle of its footprint on the floor, z up, front towards +y, metres.

    `slots` names the finishes that faces refer to, `parts` are the axis-aligned boxes of the solids it is made of
    (for collisions), and `surfaces` the level rectangles (x0, y0, x1, y1, z, headroom) on which small things can stand.
    """

    vertices: list[np.ndarray] = field(default_factory=list)
    faces: list[np.ndarray] = field(default_factory=list)
    face_slot: list[np.ndarray] = field(default_factory=list)
    slots: dict[str, str] = field(default_factory=dict)
    parts: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    surfaces: list[tuple[float, float, float, float, float, float]] = field(default_factory=list)
    num_vertices: int = 0

    def add(self, vertices: np.ndarray, faces: np.ndarray, slot: str, kind: str = "any", solid: bool = True) -> None:
        """Appends a solid whose faces wear the finish `slot`; a slot's first use says which kind of finish it is."""
        self.slots.setdefault(slot, kind)
        index = list(self.slots).index(slot)
        vertices = np.asarray(vertices, dtype=np.float64)
        self.vertices.append(vertices)
        self.faces.append(np.asarray(faces) + self.num_vertices)
        self.face_slot.append(np.full(len(faces), index))
        self.num_vertices += len(vertices)
        if solid:
            self.parts.append((vertices.min(axis=0), vertices.max(axis=0)))

    def box(self, low: tuple, high: tuple, slot: str, kind: str = "any") -> None:
        """A box between two corners."""
        corners = np.array([[x, y, z] for z in (low[2], high[2]) for y in (low[1], high[1]) for x in (low[0], high[0])])
        self.add(corners, _BOX_FACES, slot, kind)

    def lathe(self, profile: list[tuple[float, float]], slot: str, kind: str = "any", center: tuple = (0.0, 0.0),
              stretch: tuple = (1.0, 1.0), sides: int = 18) -> None:  # fmt: skip
        """A turned shape: `profile` lists (radius, height) from bottom to top; `stretch` makes it oval."""
        angle = np.arange(sides) * (2 * np.pi / sides)
        rings = [
            np.stack([center[0] + r * stretch[0] * np.cos(angle), center[1] + r * stretch[1] * np.sin(angle), np.full(sides, z)], axis=1)
            for r, z in profile
        ]
        i = np.arange(sides)
        j = (i + 1) % sides
        faces = []
        for k in range(len(profile) - 1):
            a, b = k * sides, (k + 1) * sides
            faces += [np.stack([a + i, a + j, b + i], axis=1), np.stack([a + j, b + j, b + i], axis=1)]
        vertices = np.concatenate([*rings, [[*center, profile[0][1]], [*center, profile[-1][1]]]])
        bottom, top = len(profile) * sides, len(profile) * sides + 1
        last = (len(profile) - 1) * sides
        faces += [np.stack([np.full(sides, bottom), j, i], axis=1), np.stack([np.full(sides, top), last + i, last + j], axis=1)]
        self.add(vertices, np.concatenate(faces), slot, kind)

    def cylinder(self, radius: float, low: float, high: float, slot: str, kind: str = "any", center: tuple = (0.0, 0.0),
                 sides: int = 14) -> None:  # fmt: skip
        """An upright cylinder."""
        self.lathe([(radius, low), (radius, high)], slot, kind, center, sides=sides)

    def sheet(self, outline: np.ndarray, low: float, high: float, thickness: float, slot: str, kind: str = "any") -> None:
        """A sheet of cloth standing on the open line `outline` [P, 2], thickened along y."""
        n = len(outline)
        shift = np.array([0.0, thickness / 2])
        line = np.concatenate([outline - shift, outline + shift])
        vertices = np.concatenate([np.c_[line, np.full(2 * n, low)], np.c_[line, np.full(2 * n, high)]])
        i = np.arange(n - 1)
        faces = []
        for a, b, flip in ((i, i + 1, False), (i + n, i + n + 1, True)):  # both sides
            quad = [np.stack([a, b, a + 2 * n], 1), np.stack([b, b + 2 * n, a + 2 * n], 1)]
            faces += [q[:, ::-1] if flip else q for q in quad]
        faces += [np.stack([i + 2 * n, i + 1 + 2 * n, i + 3 * n], 1), np.stack([i + 1 + 2 * n, i + 1 + 3 * n, i + 3 * n], 1)]
        self.add(vertices, np.concatenate(faces), slot, kind)

    def surface(self, x0: float, y0: float, x1: float, y1: float, z: float, headroom: float = 0.6) -> None:
        """Marks a level rectangle on which small things can stand, `headroom` metres high."""
        self.surfaces.append((x0, y0, x1, y1, z, headroom))

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low [3], high [3]) of all vertices."""
        vertices = np.concatenate(self.vertices)
        return vertices.min(axis=0), vertices.max(axis=0)


def parts_overlap(parts_a: np.ndarray, parts_b: np.ndarray, tolerance: float = 0.002) -> bool:
    """Whether any box of `parts_a` [A, 2, 3] enters any box of `parts_b` [B, 2, 3] by more than `tolerance` metres."""
    low = np.maximum(parts_a[:, None, 0], parts_b[None, :, 0])
    high = np.minimum(parts_a[:, None, 1], parts_b[None, :, 1])
    return bool(((high - low) > tolerance).all(axis=2).any())
