"""Space-filling curves: the place of a grid cell on the Z-order or the Hilbert curve, as one int64 code.

Sorting the points of a cloud by such a code puts points that are near in space near in the sequence; Point
Transformer V3 attends within pieces of that sequence. The bits of a code are those of a walk down an octree, three
a level, so that `code >> 3` is the code of the cell twice as large on the same curve.
"""

from functools import cache

import torch
from torch import Tensor

from pointcept3m.utils.registry import near_names

ORDERS = ("z", "z-trans", "hilbert", "hilbert-trans")
MAX_DEPTH = 20  # 60 bits of a code; what is left of 63 numbers the scenes
_STRIDE = 4  # levels of the octree that one look into the Hilbert table descends


def encode(grid_coord: Tensor, depth: int | Tensor, order: str = "z") -> Tensor:
    """The code of each cell on the curve `order` through the cube of 2^depth cells.

    Args:
        grid_coord: integers [N, 3], x, y, z in [0, 2^depth).
        depth: levels of the octree, 1 to 20, one int or one for each point (int64 [N]). On the Hilbert curve it
            decides how the curve lies in the cube, not only how long it is.
        order: "z" or "hilbert", or one of them with "-trans": x and y change places.

    Returns: int64 [N] in [0, 8^depth). Bit 3 l + 2 of a Z-order code is bit l of x, 3 l + 1 that of y, 3 l that of z.

    Raises: ValueError where `order` is no curve or `depth` is out of range. That coordinates lie in the cube is not
        looked at, since it would wait for the device.

    Source: J. Skilling, Programming the Hilbert curve, AIP Conf. Proc. 707, 2004, with x as the first axis, as in
        Pointcept's serialization.
    """
    if order not in ORDERS:
        raise ValueError(f"encode: no curve {order!r}; {near_names(order, ORDERS)}")
    if len(grid_coord) == 0:
        return grid_coord.new_zeros(0, dtype=torch.int64)
    least, most = depth.aminmax() if isinstance(depth, Tensor) else (depth, depth)
    least, most = int(least), int(most)
    if least < 1 or most > MAX_DEPTH:
        raise ValueError(f"encode: depth must lie in 1..{MAX_DEPTH}, got {least if least < 1 else most}")
    x, y, z = grid_coord.long().unbind(1)
    if order.endswith("-trans"):
        x, y = y, x
    code = _spread(x) << 2 | _spread(y) << 1 | _spread(z)
    if order.startswith("z"):
        return code
    # The walk begins at the top of the cube of each point: codes are shifted there, and back below.
    levels = -(-most // _STRIDE) * _STRIDE
    unused = 3 * (levels - depth)
    return _hilbert(code << unused, levels) >> unused


def _spread(value: Tensor) -> Tensor:
    """Bit l of each number, of 21, goes to bit 3 l."""
    value = value & 0x1FFFFF
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        value = (value | value << shift) & mask
    return value


def _hilbert(code: Tensor, levels: int) -> Tensor:
    """From Z-order codes of `levels` levels, a multiple of 4, to Hilbert codes: four levels a look into the table."""
    table = _hilbert_table(code.device)
    bits = 3 * _STRIDE
    out, state = torch.zeros_like(code), torch.zeros_like(code)
    for shift in range(3 * levels - bits, -1, -bits):
        found = table[state | (code >> shift & (1 << bits) - 1)].long()
        out = (out << bits) | (found & (1 << bits) - 1)
        state = found >> bits << bits
    return out


@cache
def _hilbert_table(device: torch.device) -> Tensor:
    """int32 [states * 8^4]: at state * 8^4 + (Z-order digits), next state * 8^4 + (Hilbert digits), for four levels."""
    digit, follow = _hilbert_automaton()
    digit, follow = torch.tensor(digit), torch.tensor(follow)
    octants = torch.arange(8**_STRIDE)
    state = torch.arange(len(digit))[:, None].expand(-1, 8**_STRIDE)
    out = torch.zeros_like(state)
    for level in reversed(range(_STRIDE)):
        octant = (octants >> 3 * level & 7).expand_as(state)
        out, state = out << 3 | digit[state, octant], follow[state, octant]
    return (state << 3 * _STRIDE | out).int().flatten().to(device)


def _hilbert_automaton() -> tuple[list[list[int]], list[list[int]]]:
    """Skilling's transform as an automaton: for each state and octant the digit of the code, and the next state.

    In the transform, the bits of one level decide how the axes of all lower levels are exchanged and inverted. What
    has been decided so far is the state: which axis stands in each place, whether it is inverted, and the last bit
    of the code, from which the Gray code is undone.
    """
    start = ((0, 1, 2), (0, 0, 0), 0)
    states, digit, follow = {start: 0}, [], []
    queue = [start]
    for axes, inverted, last in queue:
        digit.append([])
        follow.append([])
        for octant in range(8):
            bits = [(octant >> 2 - axis & 1) ^ flip for axis, flip in zip(axes, inverted, strict=True)]
            next_axes, next_inverted = list(axes), list(inverted)
            for place in range(3):
                if bits[place]:
                    next_inverted[0] ^= 1
                else:
                    for values in (next_axes, next_inverted):
                        values[0], values[place] = values[place], values[0]
            code, bit = 0, last
            for gray in bits:
                bit ^= gray
                code = code << 1 | bit
            state = (tuple(next_axes), tuple(next_inverted), bit)
            if state not in states:
                states[state] = len(states)
                queue.append(state)
            digit[-1].append(code)
            follow[-1].append(states[state])
    return digit, follow
