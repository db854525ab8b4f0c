"""The things that stand in a room, one function each: `thing(rng) -> Shape`.

Sizes are those of real furniture, in metres. Each function draws a variant, so that a class is a family of shapes.
"""

from collections.abc import Callable

import numpy as np

from pointcept3m.datasets.rooms.geometry import Shape

Rng = np.random.Generator


def _legs(shape: Shape, rng: Rng, w: float, d: float, h: float, inset: float = 0.03) -> None:
    t = rng.uniform(0.035, 0.06)
    rounded = rng.random() < 0.4
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (w / 2 - inset - t / 2), sy * (d / 2 - inset - t / 2)
            if rounded:
                shape.cylinder(t / 2, 0, h, "legs", "hard", center=(x, y), sides=10)
            else:
                shape.box((x - t / 2, y - t / 2, 0), (x + t / 2, y + t / 2, h), "legs", "hard")


def bed(rng: Rng) -> Shape:
    s = Shape()
    w, d = rng.uniform(0.9, 1.8), rng.uniform(1.9, 2.1)
    base, top = rng.uniform(0.22, 0.32), rng.uniform(0.46, 0.58)
    if rng.random() < 0.5:
        s.box((-w / 2, -d / 2, 0), (w / 2, d / 2, base), "frame")
    else:
        _legs(s, rng, w, d, 0.12)
        s.box((-w / 2, -d / 2, 0.12), (w / 2, d / 2, base), "frame")
    s.box((-w / 2 + 0.02, -d / 2 + 0.06, base), (w / 2 - 0.02, d / 2 - 0.02, top), "mattress", "soft")
    s.box((-w / 2, -d / 2 - 0.06, 0), (w / 2, -d / 2, rng.uniform(0.8, 1.25)), "frame")
    cover = d / 2 - rng.uniform(1.0, 1.5)
    s.box((-w / 2 - 0.015, cover, top - 0.14), (w / 2 + 0.015, d / 2 + 0.01, top + 0.05), "blanket", "soft")
    for x in ([0.0] if w < 1.25 else [-w / 4, w / 4]):
        s.lathe([(0.10, top), (0.28, top + 0.04), (0.28, top + 0.09), (0.12, top + 0.13)], "pillow", "soft",
                center=(x, -d / 2 + 0.30), stretch=(1.0, 0.72), sides=12)  # fmt: skip
    return s


def chair(rng: Rng) -> Shape:
    s = Shape()
    w, d, seat = rng.uniform(0.40, 0.50), rng.uniform(0.40, 0.48), rng.uniform(0.42, 0.47)
    top = rng.uniform(0.80, 1.02)
    _legs(s, rng, w, d, seat - 0.03, inset=0.0)
    s.box((-w / 2, -d / 2, seat - 0.03), (w / 2, d / 2, seat + 0.02), "seat")
    style = rng.integers(3)
    if style == 0:
        s.box((-w / 2, -d / 2, seat + 0.02), (w / 2, -d / 2 + 0.035, top), "seat")
    else:
        for x in (-w / 2, w / 2 - 0.035):
            s.box((x, -d / 2, seat + 0.02), (x + 0.035, -d / 2 + 0.035, top), "legs")
        if style == 1:
            for z in np.linspace(seat + 0.14, top - 0.08, 3):
                s.box((-w / 2 + 0.035, -d / 2 + 0.005, z), (w / 2 - 0.035, -d / 2 + 0.03, z + 0.07), "legs")
        else:
            s.box((-w / 2 + 0.035, -d / 2 + 0.005, top - 0.28), (w / 2 - 0.035, -d / 2 + 0.03, top), "seat")
    return s


def office_chair(rng: Rng) -> Shape:
    s = Shape()
    w, seat = rng.uniform(0.46, 0.54), rng.uniform(0.44, 0.52)
    for k in range(5):
        a = 2 * np.pi * k / 5 + 0.3
        x, y = 0.26 * np.cos(a), 0.26 * np.sin(a)
        s.cylinder(0.03, 0.0, 0.06, "base", "plain", center=(x, y), sides=8)
        s.box((min(0, x) - 0.015, min(0, y) - 0.015, 0.06), (max(0, x) + 0.015, max(0, y) + 0.015, 0.085), "base")
    s.cylinder(0.03, 0.085, seat - 0.04, "base", sides=10)
    s.lathe([(w / 2, seat - 0.04), (w / 2 + 0.01, seat), (w / 2 - 0.04, seat + 0.05)], "seat", "soft", sides=14)
    s.box((-0.03, -w / 2, seat - 0.03), (0.03, -w / 2 + 0.02, seat + 0.20), "base")
    s.box((-w / 2 + 0.03, -w / 2 - 0.05, seat + 0.12), (w / 2 - 0.03, -w / 2, seat + rng.uniform(0.45, 0.70)), "seat")
    if rng.random() < 0.6:
        for x in (-w / 2 - 0.05, w / 2 + 0.01):
            s.box((x, -w / 4, seat + 0.17), (x + 0.04, w / 4, seat + 0.20), "base")
            s.box((x, -0.02, seat - 0.01), (x + 0.04, 0.02, seat + 0.17), "base")
    return s


def _padded_seat(rng: Rng, w: float, cushions: int) -> Shape:
    s = Shape()
    d, seat, top, arm = rng.uniform(0.80, 0.95), rng.uniform(0.40, 0.46), rng.uniform(0.72, 0.92), rng.uniform(0.12, 0.22)
    lift = float(rng.choice([0.0, 0.08]))
    if lift:
        _legs(s, rng, w, d, lift)
    s.box((-w / 2, -d / 2, lift), (w / 2, d / 2, seat - 0.14), "body", "soft")
    s.box((-w / 2 + arm, -d / 2, seat - 0.14), (w / 2 - arm, -d / 2 + 0.22, top), "body")
    for x in (-w / 2, w / 2 - arm):
        s.box((x, -d / 2, seat - 0.14), (x + arm, d / 2, seat + rng.uniform(0.12, 0.22)), "body")
    width = (w - 2 * arm) / cushions
    for k in range(cushions):
        x = -w / 2 + arm + k * width
        s.box((x + 0.008, -d / 2 + 0.22, seat - 0.14), (x + width - 0.008, d / 2 + 0.01, seat), "cushion", "soft")
        s.box((x + 0.02, -d / 2 + 0.22, seat), (x + width - 0.02, -d / 2 + 0.34, top + 0.04), "cushion")
    s.surface(-w / 2 + arm + 0.05, -d / 2 + 0.36, w / 2 - arm - 0.05, d / 2 - 0.05, seat, 0.4)
    return s


def sofa(rng: Rng) -> Shape:
    cushions = int(rng.integers(2, 4))
    return _padded_seat(rng, 0.45 + cushions * rng.uniform(0.52, 0.68), cushions)


def armchair(rng: Rng) -> Shape:
    return _padded_seat(rng, rng.uniform(0.80, 1.0), 1)


def table(rng: Rng) -> Shape:
    s = Shape()
    h = rng.uniform(0.72, 0.78)
    style = rng.random()
    if style < 0.25:
        r = rng.uniform(0.45, 0.65)
        s.cylinder(r, h - 0.04, h, "top", "hard", sides=28)
        s.cylinder(0.05, 0.03, h - 0.04, "legs", "hard")
        s.cylinder(0.28, 0.0, 0.03, "legs")
        s.surface(-r * 0.68, -r * 0.68, r * 0.68, r * 0.68, h)
        return s
    w, d = rng.uniform(1.0, 1.9), rng.uniform(0.70, 0.95)
    s.box((-w / 2, -d / 2, h - rng.uniform(0.025, 0.06)), (w / 2, d / 2, h), "top", "hard")
    if style < 0.8:
        _legs(s, rng, w, d, h - 0.03)
        s.box((-w / 2 + 0.09, -d / 2 + 0.05, h - 0.12), (w / 2 - 0.09, -d / 2 + 0.07, h - 0.06), "legs")
    else:
        for x in (-w / 2 + 0.06, w / 2 - 0.10):
            s.box((x, -d / 2 + 0.04, 0), (x + 0.04, d / 2 - 0.04, h - 0.06), "legs", "hard")
    s.surface(-w / 2, -d / 2, w / 2, d / 2, h)
    return s


def coffee_table(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(0.75, 1.2), rng.uniform(0.45, 0.65), rng.uniform(0.36, 0.48)
    s.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), "top", "hard")
    _legs(s, rng, w, d, h - 0.04, inset=0.01)
    if rng.random() < 0.6:
        s.box((-w / 2 + 0.08, -d / 2 + 0.08, 0.12), (w / 2 - 0.08, d / 2 - 0.08, 0.15), "top")
    s.surface(-w / 2, -d / 2, w / 2, d / 2, h)
    return s


def desk(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(1.1, 1.7), rng.uniform(0.58, 0.78), rng.uniform(0.70, 0.77)
    s.box((-w / 2, -d / 2, h - 0.035), (w / 2, d / 2, h), "top", "hard")
    side = int(rng.choice([-1, 1]))
    x0 = side * (w / 2 - 0.42) if side > 0 else -w / 2
    if rng.random() < 0.75:
        s.box((x0, -d / 2 + 0.02, 0.03), (x0 + 0.42, d / 2 - 0.03, h - 0.035), "body", "hard")
        for z in np.linspace(0.06, h - 0.05, 4)[:-1]:
            s.box((x0 + 0.02, d / 2 - 0.03, z), (x0 + 0.40, d / 2 - 0.012, z + (h - 0.11) / 3 - 0.03), "front", "hard")
        x1 = -side * (w / 2) if side > 0 else w / 2 - 0.04
        s.box((x1, -d / 2 + 0.02, 0), (x1 + 0.04, d / 2 - 0.03, h - 0.035), "body")
    else:
        _legs(s, rng, w, d, h - 0.035, inset=0.01)
    s.box((-w / 2 + 0.05, -d / 2 + 0.005, h - 0.36), (w / 2 - 0.05, -d / 2 + 0.02, h - 0.035), "body", "hard")
    s.surface(-w / 2, -d / 2, w / 2, d / 2, h)
    return s


def _cupboard(rng: Rng, w: float, d: float, h: float, columns: int, rows: int) -> Shape:
    s = Shape()
    foot = float(rng.choice([0.0, 0.06, 0.1]))
    if foot:
        s.box((-w / 2 + 0.03, -d / 2, 0), (w / 2 - 0.03, d / 2 - 0.06, foot), "body", "hard")
    s.box((-w / 2, -d / 2, foot), (w / 2, d / 2 - 0.02, h), "body", "hard")
    handle = rng.integers(3)
    step_x, step_z = w / columns, (h - foot - 0.02) / rows
    for i in range(columns):
        for j in range(rows):
            x, z = -w / 2 + i * step_x, foot + 0.01 + j * step_z
            s.box((x + 0.006, d / 2 - 0.02, z + 0.006), (x + step_x - 0.006, d / 2, z + step_z - 0.006), "front", "hard")
            if handle == 0:
                xh = x + (0.05 if i % 2 else step_x - 0.07)
                s.box((xh, d / 2, z + step_z * 0.4), (xh + 0.02, d / 2 + 0.025, z + step_z * 0.6), "handle", "plain")
            elif handle == 1:
                xm, zh = x + step_x / 2, z + step_z * 0.8
                s.box((xm - 0.06, d / 2, zh), (xm + 0.06, d / 2 + 0.025, zh + 0.02), "handle", "plain")
    s.surface(-w / 2, -d / 2, w / 2, d / 2 - 0.02, h)
    return s


def cabinet(rng: Rng) -> Shape:
    if rng.random() < 0.5:  # low, with drawers
        return _cupboard(rng, rng.uniform(0.6, 1.5), rng.uniform(0.38, 0.5), rng.uniform(0.65, 1.0), int(rng.integers(1, 4)), int(rng.integers(2, 4)))
    return _cupboard(rng, rng.uniform(0.8, 1.7), rng.uniform(0.5, 0.62), rng.uniform(1.7, 2.2), int(rng.integers(2, 4)), 1)


def nightstand(rng: Rng) -> Shape:
    return _cupboard(rng, rng.uniform(0.38, 0.52), rng.uniform(0.34, 0.42), rng.uniform(0.42, 0.6), 1, 2)


def tv_stand(rng: Rng) -> Shape:
    return _cupboard(rng, rng.uniform(1.1, 1.7), rng.uniform(0.36, 0.46), rng.uniform(0.40, 0.55), 3, 1)


def wall_cabinet(rng: Rng, w: float) -> Shape:
    s = Shape()
    low, high = 1.42, rng.uniform(2.0, 2.2)
    s.box((-w / 2, -0.17, low), (w / 2, 0.15, high), "body", "hard")
    n = max(1, round(w / 0.5))
    for i in range(n):
        x = -w / 2 + i * w / n
        s.box((x + 0.006, 0.15, low + 0.006), (x + w / n - 0.006, 0.17, high - 0.006), "front", "hard")
    return s


def counter(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(1.2, 2.6), rng.uniform(0.58, 0.66), rng.uniform(0.86, 0.94)
    s.box((-w / 2, -d / 2, 0.0), (w / 2, d / 2 - 0.08, 0.1), "body", "hard")
    s.box((-w / 2, -d / 2, 0.1), (w / 2, d / 2 - 0.04, h - 0.04), "body")
    n = max(2, round(w / 0.5))
    for i in range(n):
        x = -w / 2 + i * w / n
        s.box((x + 0.008, d / 2 - 0.04, 0.12), (x + w / n - 0.008, d / 2 - 0.02, h - 0.06), "front", "hard")
    s.box((-w / 2, -d / 2, h - 0.04), (w / 2, d / 2, h), "top", "hard")
    s.surface(-w / 2, -d / 2, w / 2, d / 2, h, 0.45)
    return s


def refrigerator(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(0.58, 0.8), rng.uniform(0.6, 0.7), rng.uniform(1.45, 1.9)
    split = h * rng.uniform(0.3, 0.68)
    s.box((-w / 2, -d / 2, 0.03), (w / 2, d / 2 - 0.06, h), "body", "hard")
    for low, high in ((0.06, split - 0.008), (split + 0.008, h)):
        s.box((-w / 2, d / 2 - 0.06, low), (w / 2, d / 2, high), "front", "hard")
        x = -w / 2 + 0.05
        s.box((x, d / 2, low + 0.1), (x + 0.025, d / 2 + 0.04, min(low + 0.5, high - 0.05)), "handle", "plain")
    s.surface(-w / 2, -d / 2, w / 2, d / 2 - 0.06, h, 0.35)
    return s


def bookshelf(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(0.7, 1.3), rng.uniform(0.26, 0.36), rng.uniform(1.1, 2.15)
    t = 0.025
    for x in (-w / 2, w / 2 - t):
        s.box((x, -d / 2, 0), (x + t, d / 2, h), "body", "hard")
    if rng.random() < 0.7:
        s.box((-w / 2 + t, -d / 2, 0.05), (w / 2 - t, -d / 2 + 0.01, h), "back", "hard")
    shelves = np.linspace(0.05, h - t, max(3, round(h / 0.36)) + 1)
    for z in shelves:
        s.box((-w / 2 + t, -d / 2 + 0.01, z), (w / 2 - t, d / 2, z + t), "body")
    for low, high in zip(shelves[:-1], shelves[1:], strict=True):
        _row_of_books(s, rng, (-w / 2 + t + 0.01, w / 2 - t - 0.01), (-d / 2 + 0.02, d / 2 - 0.02), low + t, high - low - t)
    s.surface(-w / 2, -d / 2, w / 2, d / 2, h, 0.35)
    return s


def _row_of_books(s: Shape, rng: Rng, x_range: tuple, y_range: tuple, z: float, headroom: float) -> None:
    x, end = x_range[0], x_range[0] + (x_range[1] - x_range[0]) * rng.uniform(0.2, 1.0)
    while x < end - 0.05:
        thick = rng.uniform(0.018, 0.06)
        tall = min(headroom - 0.02, rng.uniform(0.16, 0.30))
        deep = rng.uniform(0.12, y_range[1] - y_range[0])
        if tall > 0.05:
            s.box((x, y_range[0], z), (min(x + thick, x_range[1]), y_range[0] + deep, z + tall), f"book{rng.integers(6)}", "plain")
        x += thick + (0.001 if rng.random() < 0.9 else rng.uniform(0.03, 0.15))


def toilet(rng: Rng) -> Shape:
    s = Shape()
    h = rng.uniform(0.38, 0.43)
    s.lathe([(0.11, 0), (0.12, h * 0.5), (0.19, h - 0.03), (0.19, h)], "ceramic", "plain", center=(0, 0.10), stretch=(0.95, 1.25), sides=20)
    s.lathe([(0.19, h), (0.195, h + 0.015), (0.18, h + 0.03)], "lid", "plain", center=(0, 0.10), stretch=(0.97, 1.27), sides=20)
    s.box((-0.11, -0.32, 0.0), (0.11, -0.10, h - 0.02), "ceramic")
    s.box((-0.20, -0.34, h - 0.02), (0.20, -0.15, h + rng.uniform(0.32, 0.42)), "ceramic")
    return s


def _bowl(s: Shape, r: float, z: float, h: float, center: tuple, stretch: tuple) -> None:
    profile = [(r * 0.6, z), (r, z + h), (r * 0.88, z + h), (r * 0.5, z + 0.02)]
    s.lathe(profile, "ceramic", "plain", center=center, stretch=stretch, sides=18)


def washbasin(rng: Rng) -> Shape:
    s = Shape()
    h = rng.uniform(0.80, 0.88)
    s.lathe([(0.11, 0), (0.07, 0.1), (0.08, h - 0.14)], "ceramic", "plain", center=(0, -0.02))
    s.box((-0.26, -0.24, h - 0.14), (0.26, -0.15, h), "ceramic")
    _bowl(s, rng.uniform(0.24, 0.28), h - 0.14, 0.14, (0, 0.06), (1.0, 0.75))
    s.box((-0.015, -0.19, h), (0.015, -0.165, h + 0.13), "tap", "plain")
    s.box((-0.015, -0.165, h + 0.11), (0.015, -0.05, h + 0.13), "tap")
    return s


def counter_sink(rng: Rng) -> Shape:
    """A basin that stands on a counter; its origin is the counter's surface."""
    s = Shape()
    _bowl(s, rng.uniform(0.19, 0.23), 0.0, rng.uniform(0.10, 0.15), (0, 0.03), (1.15, 0.85))
    s.box((-0.015, -0.24, 0), (0.015, -0.215, 0.28), "tap", "plain")
    s.box((-0.015, -0.215, 0.25), (0.015, -0.07, 0.28), "tap")
    return s


def bathtub(rng: Rng) -> Shape:
    s = Shape()
    w, d, h, t = rng.uniform(1.45, 1.75), rng.uniform(0.70, 0.82), rng.uniform(0.50, 0.60), 0.06
    s.box((-w / 2, -d / 2, 0), (w / 2, -d / 2 + t, h), "ceramic", "plain")
    s.box((-w / 2, d / 2 - t, 0), (w / 2, d / 2, h), "ceramic")
    s.box((-w / 2, -d / 2 + t, 0), (-w / 2 + t, d / 2 - t, h), "ceramic")
    s.box((w / 2 - t, -d / 2 + t, 0), (w / 2, d / 2 - t, h), "ceramic")
    s.box((-w / 2 + t, -d / 2 + t, 0), (w / 2 - t, d / 2 - t, 0.12), "ceramic")
    return s


def floor_lamp(rng: Rng) -> Shape:
    s = Shape()
    h = rng.uniform(1.35, 1.7)
    s.cylinder(0.14, 0, 0.025, "pole", "plain", sides=16)
    s.cylinder(0.014, 0.025, h - 0.22, "pole", sides=8)
    s.lathe([(rng.uniform(0.14, 0.22), h - 0.25), (rng.uniform(0.09, 0.16), h)], "shade", "soft", sides=16)
    return s


def table_lamp(rng: Rng) -> Shape:
    s = Shape()
    s.lathe([(0.06, 0), (0.07, 0.06), (0.02, 0.16), (0.015, 0.22)], "foot", sides=12)
    s.lathe([(0.13, 0.20), (rng.uniform(0.07, 0.11), 0.38)], "shade", "soft", sides=14)
    return s


def trash_can(rng: Rng) -> Shape:
    s = Shape()
    r, h = rng.uniform(0.12, 0.18), rng.uniform(0.28, 0.6)
    if rng.random() < 0.6:
        s.lathe([(r * 0.8, 0), (r, h), (r * 0.92, h), (r * 0.75, 0.03)], "body", sides=16)
    else:
        s.box((-r, -r * 0.8, 0), (r, r * 0.8, h), "body")
        s.box((-r - 0.01, -r * 0.8 - 0.01, h), (r + 0.01, r * 0.8 + 0.01, h + 0.04), "lid")
    return s


def radiator(rng: Rng) -> Shape:
    s = Shape()
    w, n = rng.uniform(0.6, 1.2), 0
    n = int(w / 0.07)
    for i in range(n):
        x = -w / 2 + i * w / n
        s.box((x, -0.05, 0.12), (x + 0.045, 0.05, 0.66), "body", "plain")
    for z in (0.16, 0.58):
        s.box((-w / 2, -0.02, z), (w / 2, 0.02, z + 0.04), "body")
    return s


def ottoman(rng: Rng) -> Shape:
    s = Shape()
    if rng.random() < 0.5:
        r = rng.uniform(0.22, 0.32)
        s.lathe([(r * 0.95, 0), (r, 0.1), (r, 0.34), (r * 0.85, 0.4)], "body", "soft", sides=18)
    else:
        w = rng.uniform(0.22, 0.36)
        s.box((-w, -w * 0.8, 0), (w, w * 0.8, 0.32), "body", "soft")
        s.box((-w - 0.01, -w * 0.8 - 0.01, 0.32), (w + 0.01, w * 0.8 + 0.01, 0.4), "top", "soft")
    return s


def plant(rng: Rng) -> Shape:
    s = Shape()
    r, h = rng.uniform(0.11, 0.18), rng.uniform(0.2, 0.34)
    s.lathe([(r * 0.7, 0), (r, h)], "pot", sides=14)
    s.cylinder(0.02, h, h + 0.3, "stem", sides=6)
    for _ in range(7):
        a, z, size = rng.uniform(0, 2 * np.pi), h + rng.uniform(0.15, 0.7), rng.uniform(0.07, 0.15)
        reach = rng.uniform(0.0, 0.16)
        c = (reach * np.cos(a), reach * np.sin(a))
        s.lathe([(0.02, z - size), (size, z), (0.02, z + size)], "leaf", center=c, stretch=(rng.uniform(0.5, 1), rng.uniform(0.5, 1)), sides=7)
    return s


def carton(rng: Rng) -> Shape:
    s = Shape()
    w, d, h = rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.15, 0.4)
    s.box((-w / 2, -d / 2, 0), (w / 2, d / 2, h), "body")
    return s


def monitor(rng: Rng) -> Shape:
    s = Shape()
    w, h = rng.uniform(0.42, 0.64), rng.uniform(0.28, 0.38)
    s.box((-0.12, -0.08, 0), (0.12, 0.08, 0.015), "body", "plain")
    s.box((-0.02, -0.03, 0.015), (0.02, -0.01, 0.2), "body")
    s.box((-w / 2, -0.01, 0.1), (w / 2, 0.025, 0.1 + h), "body")
    s.box((-w / 2 + 0.015, 0.025, 0.115), (w / 2 - 0.015, 0.03, 0.085 + h), "screen", "art")
    return s


def books(rng: Rng) -> Shape:
    s = Shape()
    z = 0.0
    for k in range(int(rng.integers(1, 6))):
        w, d, t = rng.uniform(0.18, 0.26), rng.uniform(0.14, 0.2), rng.uniform(0.015, 0.045)
        s.box((-w / 2, -d / 2, z), (w / 2, d / 2, z + t), f"book{k}", "plain")
        z += t
    return s


def vessel(rng: Rng) -> Shape:
    s = Shape()
    h, r = rng.uniform(0.1, 0.3), rng.uniform(0.035, 0.08)
    s.lathe([(r * rng.uniform(0.5, 1), 0), (r, h * rng.uniform(0.3, 0.7)), (r * rng.uniform(0.3, 1), h)], "body", sides=12)
    return s


def microwave(rng: Rng) -> Shape:
    s = Shape()
    w = rng.uniform(0.44, 0.52)
    s.box((-w / 2, -0.18, 0), (w / 2, 0.16, 0.28), "body", "plain")
    s.box((-w / 2 + 0.02, 0.16, 0.03), (w / 2 - 0.14, 0.17, 0.25), "door", "plain")
    return s


def pillow(rng: Rng) -> Shape:
    s = Shape()
    s.lathe([(0.08, 0), (0.2, 0.05), (0.2, 0.1), (0.08, 0.14)], "cloth", "soft", stretch=(1.0, 0.75), sides=10)
    return s


def door(rng: Rng) -> Shape:
    """A door that hangs on a wall; its origin is on the wall's face, at the floor."""
    s = Shape()
    w, h = rng.uniform(0.78, 0.95), rng.uniform(1.98, 2.1)
    for x in (-w / 2 - 0.07, w / 2):
        s.box((x, 0, 0), (x + 0.07, 0.045, h + 0.07), "frame", "hard")
    s.box((-w / 2, 0, h), (w / 2, 0.045, h + 0.07), "frame")
    s.box((-w / 2, 0, 0.01), (w / 2, 0.02, h), "leaf", "hard")
    if rng.random() < 0.6:
        for low, high in ((0.15, 0.9), (1.05, h - 0.15)):
            s.box((-w / 2 + 0.13, 0.02, low), (w / 2 - 0.13, 0.03, high), "panel", "hard")
    x = (w / 2 - 0.09) * rng.choice([-1, 1])
    s.box((min(x, x * 0.8), 0.02, 1.0), (max(x, x * 0.8), 0.065, 1.025), "handle", "plain")
    return s


def window(rng: Rng) -> Shape:
    """A window on a wall; its origin is on the wall's face, at the floor."""
    s = Shape()
    w, low, high = rng.uniform(0.8, 1.9), rng.uniform(0.85, 1.0), rng.uniform(1.9, 2.2)
    s.box((-w / 2, 0.0, low), (w / 2, 0.012, high), "glass", "glass")
    bars = [-w / 2, w / 2 - 0.05] + ([-0.025] if w > 1.0 else [])
    for x in bars:
        s.box((x, 0.012, low), (x + 0.05, 0.045, high), "frame", "plain")
    for z in (low, high - 0.05):
        s.box((-w / 2, 0.012, z), (w / 2, 0.045, z + 0.05), "frame")
    s.box((-w / 2 - 0.05, 0.0, low - 0.04), (w / 2 + 0.05, 0.16, low), "sill", "hard")
    return s


def curtain(rng: Rng, w: float, low: float, high: float) -> Shape:
    """A hanging cloth `w` metres wide between two heights, in folds; its origin is on the wall's face."""
    s = Shape()
    x = np.linspace(-w / 2, w / 2, max(8, int(w / 0.03)))
    fold = rng.uniform(0.09, 0.16)
    y = 0.10 + rng.uniform(0.02, 0.04) * np.sin(2 * np.pi * x / fold + rng.uniform(0, 6)) + 0.008 * np.sin(2 * np.pi * x / 0.37)
    s.sheet(np.stack([x, y], axis=1), low, high, 0.012, "cloth", "soft")
    return s


def picture(rng: Rng) -> Shape:
    """A framed picture; its origin is on the wall's face at the picture's middle."""
    s = Shape()
    w, h = rng.uniform(0.15, 0.55), rng.uniform(0.15, 0.4)
    s.box((-w - 0.03, 0.0, -h - 0.03), (w + 0.03, 0.02, h + 0.03), "frame", "hard")
    s.box((-w, 0.02, -h), (w, 0.026, h), "art", "art")
    return s


# ScanNet's raw category of each kind of furniture that the layout places; the label maps take it from there.
FURNITURE: dict[str, Callable[..., Shape]] = {
    "bed": bed, "chair": chair, "office chair": office_chair, "couch": sofa, "armchair": armchair, "table": table,
    "coffee table": coffee_table, "desk": desk, "cabinet": cabinet, "nightstand": nightstand, "tv stand": tv_stand,
    "kitchen cabinet": wall_cabinet, "counter": counter, "refrigerator": refrigerator, "bookshelf": bookshelf,
    "toilet": toilet, "sink": washbasin, "bathtub": bathtub, "lamp": floor_lamp, "trash can": trash_can,
    "radiator": radiator, "ottoman": ottoman, "plant": plant, "box": carton, "door": door, "window": window,
    "curtain": curtain, "picture": picture,
}  # fmt: skip

# Small things that stand on furniture.
CLUTTER: dict[str, Callable[[Rng], Shape]] = {
    "lamp": table_lamp, "monitor": monitor, "books": books, "vase": vessel, "microwave": microwave, "pillow": pillow, "box": carton,
}  # fmt: skip
