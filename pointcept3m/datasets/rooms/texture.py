"""Colours and patterns of surfaces: palettes that shift between splits, and solid textures evaluated per point.

No texture image is stored. A material is a row of numbers, and `shade_albedo` computes the colour of any point on
a surface from them, so a camera pixel and a scanned point that meet the same spot see the same colour.
"""

from dataclasses import dataclass

import numpy as np

PLAIN, WOOD, TILES, STRIPES, FABRIC, MARBLE, PLAID, DOTS, ART = range(9)
PATTERN_NAMES = ("plain", "wood", "tiles", "stripes", "fabric", "marble", "plaid", "dots", "art")

# (hues that accents come from, hue and value of wood, saturation, pattern odds in the order of PATTERN_NAMES without art).
# Ranges overlap between splits but are not the same: a colour learnt by heart on train does not carry to val or test.
STYLES = {
    "train": dict(hue=(0.00, 0.62), wood_hue=(0.06, 0.11), wood_value=(0.35, 0.80), saturation=(0.10, 0.70),
                  odds=(0.30, 0.24, 0.06, 0.12, 0.14, 0.04, 0.06, 0.04)),
    "val": dict(hue=(0.30, 0.85), wood_hue=(0.03, 0.08), wood_value=(0.20, 0.65), saturation=(0.15, 0.80),
                odds=(0.26, 0.20, 0.08, 0.08, 0.16, 0.08, 0.08, 0.06)),
    "test": dict(hue=(0.55, 1.10), wood_hue=(0.08, 0.14), wood_value=(0.50, 0.92), saturation=(0.05, 0.75),
                 odds=(0.28, 0.18, 0.08, 0.14, 0.10, 0.08, 0.06, 0.08)),
}  # fmt: skip


@dataclass
class Material:
    """One surface finish: a pattern, two colours (linear RGB, 0..1), its size in metres, direction and contrast."""

    pattern: int
    color_a: np.ndarray
    color_b: np.ndarray
    scale: float
    angle: float
    emission: float = 0.0


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..1, float64 [3], of a hue (any real number, 1 is a full turn), saturation and value in 0..1."""
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6.0) % 6.0
    return value - value * saturation * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0)


class Palette:
    """The finishes of one room. Furniture of every class draws from the same palette, so colour names no class."""

    def __init__(self, rng: np.random.Generator, split: str):
        style = STYLES[split]
        self.rng = rng
        self.odds = np.array(style["odds"]) / np.sum(style["odds"])
        accents = [
            hsv_to_rgb(rng.uniform(*style["hue"]), rng.uniform(*style["saturation"]), rng.uniform(0.25, 0.9))
            for _ in range(5)
        ]
        neutrals = [hsv_to_rgb(rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.12), value) for value in rng.uniform(0.08, 0.95, 3)]
        self.woods = [
            hsv_to_rgb(rng.uniform(*style["wood_hue"]), rng.uniform(0.3, 0.65), rng.uniform(*style["wood_value"]))
            for _ in range(2)
        ]
        self.colors = accents + neutrals + self.woods

    def material(self, kind: str = "any") -> Material:
        """A new finish: kind is "any" (all patterns), "soft" (cloth), "hard" (wood, paint, stone), "plain", "art" or "glass"."""
        rng = self.rng
        odds = self.odds.copy()
        if kind == "plain":
            odds[1:] = 0.0
        elif kind == "soft":
            odds[[WOOD, TILES, MARBLE]] = 0.0
        elif kind == "hard":
            odds[[FABRIC, PLAID, DOTS]] = 0.0
        pattern = ART if kind in ("art", "glass") else int(rng.choice(len(odds), p=odds / odds.sum()))
        color_a = self._pick(self.woods if pattern == WOOD else self.colors)
        color_b = self._pick(self.colors)
        if pattern in (WOOD, PLAIN, FABRIC):
            color_b = color_a * rng.uniform(0.45, 0.75)
        elif pattern == TILES:
            color_b = color_a * rng.uniform(0.4, 1.4)
        scale = {PLAIN: 0.6, WOOD: 0.09, TILES: 0.25, STRIPES: 0.12, FABRIC: 0.06, MARBLE: 0.45, PLAID: 0.16, DOTS: 0.14, ART: 0.35}[pattern]
        emission = rng.uniform(0.5, 1.1) if kind == "glass" else 0.0
        if kind == "glass":
            color_a, color_b = np.array([0.55, 0.70, 0.90]), np.array([0.85, 0.88, 0.85]) * rng.uniform(0.6, 1.0)
        angle = 0.0 if pattern in (TILES, ART) else float(rng.choice([0.0, np.pi / 2]))
        return Material(pattern, np.clip(color_a, 0.02, 0.97), np.clip(color_b, 0.02, 0.97), scale * rng.uniform(0.7, 1.5), angle, emission)

    def _pick(self, colors: list[np.ndarray]) -> np.ndarray:
        base = colors[self.rng.integers(len(colors))]
        return np.clip(base * self.rng.uniform(0.85, 1.15) + self.rng.normal(0.0, 0.015, 3), 0.0, 1.0)


class MaterialTable:
    """All materials of a room as arrays, and the evaluation of their patterns."""

    def __init__(self, materials: list[Material], seed: int):
        self.pattern = np.array([m.pattern for m in materials], dtype=np.int64)
        self.color_a = np.array([m.color_a for m in materials], dtype=np.float32)
        self.color_b = np.array([m.color_b for m in materials], dtype=np.float32)
        self.scale = np.array([m.scale for m in materials], dtype=np.float32)
        self.angle = np.array([m.angle for m in materials], dtype=np.float32)
        self.emission = np.array([m.emission for m in materials], dtype=np.float32)
        # One table of noise serves all patterns; its period, 256 cells, is longer than any surface shows.
        self.noise_table = np.random.default_rng((seed, 77)).random((256, 256), dtype=np.float32)

    def noise(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Smooth noise in 0..1 with one cell per unit of u and v, float32 [N]."""
        cell_u, cell_v = np.floor(u), np.floor(v)
        fu, fv = u - cell_u, v - cell_v
        fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
        iu, iv = cell_u.astype(np.int32) & 255, cell_v.astype(np.int32) & 255
        ju, jv = (iu + 1) & 255, (iv + 1) & 255
        t = self.noise_table
        low = t[iu, iv] * (1 - fu) + t[ju, iv] * fu
        high = t[iu, jv] * (1 - fu) + t[ju, jv] * fu
        return low * (1 - fv) + high * fv

    def cell_value(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """One random number in 0..1 per unit cell, float32 [N]."""
        return self.noise_table[np.floor(u).astype(np.int32) & 255, np.floor(v).astype(np.int32) & 255]

    def albedo(self, material: np.ndarray, point: np.ndarray, normal: np.ndarray, footprint: np.ndarray) -> np.ndarray:
        """Colour of surface points, float32 [N, 3], linear 0..1.

        material [N] indexes the table; point and normal [N, 3] lie in the object's own axes, in metres; footprint [N]
        is the width of one pixel on the surface in metres: patterns finer than that fade, as in a camera.
        """
        axis = np.abs(normal).argmax(axis=1)
        rows = np.arange(len(point))
        u, v = point[rows, (axis + 1) % 3], point[rows, (axis + 2) % 3]
        # On upright surfaces v is up, so that planks, stripes and pictures stand the same way on all sides.
        swap = axis == 1
        u, v = np.where(swap, v, u), np.where(swap, u, v)
        cos, sin = np.cos(self.angle[material]), np.sin(self.angle[material])
        u, v = cos * u - sin * v, sin * u + cos * v
        scale = self.scale[material]
        kinds = self.pattern[material]
        mix = np.zeros(len(point), np.float32)
        tint = np.ones(len(point), np.float32)
        for kind in np.unique(kinds):
            at = np.flatnonzero(kinds == kind)
            mix[at], tint[at] = self._pattern(int(kind), u[at] / scale[at], v[at] / scale[at])
        fade = np.clip(1.5 - 1.5 * footprint / scale, 0.0, 1.0).astype(np.float32)
        mix = 0.5 + (mix - 0.5) * fade
        mix, tint = mix[:, None], (1 + (tint - 1) * fade)[:, None]
        return np.clip((self.color_a[material] * (1 - mix) + self.color_b[material] * mix) * tint, 0.0, 1.0)

    def _pattern(self, kind: int, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(share of the second colour in 0..1, brightness factor), each [N], of points in units of the pattern."""
        one = np.ones_like(u)
        if kind == PLAIN:
            return 0.25 * self.noise(u, v), one
        if kind == WOOD:
            board = np.floor(u)
            grain = self.noise(u * 7 + 3.1, v * 0.4 + 17 * board)
            line = (u - board < 0.05) * 0.5
            return np.clip(0.75 * grain + line, 0, 1), 0.8 + 0.4 * self.cell_value(u, one * 5)
        if kind == TILES:
            grout = (np.minimum(u - np.floor(u), v - np.floor(v)) < 0.07).astype(np.float32)
            return grout, 0.85 + 0.3 * self.cell_value(u, v)
        if kind == STRIPES:
            return (u - np.floor(u) < 0.5).astype(np.float32), one
        if kind == FABRIC:
            return 0.5 * self.noise(u * 1.3, v * 1.3) + 0.5 * self.noise(u * 4, v * 4), one
        if kind == MARBLE:
            bend = self.noise(u * 2, v * 2) + 0.5 * self.noise(u * 5, v * 5)
            return np.abs(np.sin(3 * (u + 2 * bend))).astype(np.float32) ** 2, one
        if kind == PLAID:
            return 0.5 * (u - np.floor(u) < 0.45) + 0.5 * (v - np.floor(v) < 0.45), one
        if kind == DOTS:
            du, dv = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
            return (du * du + dv * dv < 0.09).astype(np.float32), one
        blocks = self.cell_value(u * 1.7, v * 1.7)
        return np.clip(0.6 * self.noise(u, v) + 0.6 * (blocks > 0.55) - 0.1, 0, 1), 0.6 + 0.7 * self.noise(u * 2 + 9, v * 2)
