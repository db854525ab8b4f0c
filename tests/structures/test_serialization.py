"""Codes of the curves against scalar implementations, and what makes a Hilbert curve one."""

import pytest
import torch

from pointcept3m.structures.serialization import ORDERS, encode


def z_code(x, y, z, depth):
    """Bits of x, y and z in turn, the highest first."""
    return int("".join(f"{v:0{depth}b}"[level] for level in range(depth) for v in (x, y, z)), 2)


def hilbert_code(x, y, z, depth):
    """Skilling's AxestoTranspose as published: in place on the three axes, from the highest bit down."""
    axes = [x, y, z]
    q = 1 << depth - 1
    while q > 1:
        for i in range(3):
            if axes[i] & q:
                axes[0] ^= q - 1
            else:
                swap = (axes[0] ^ axes[i]) & q - 1
                axes[0] ^= swap
                axes[i] ^= swap
        q >>= 1
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    flip, q = 0, 1 << depth - 1
    while q > 1:
        if axes[2] & q:
            flip ^= q - 1
        q >>= 1
    return z_code(*(a ^ flip for a in axes), depth)


def expected(curve, x, y, z, depth):
    if curve.endswith("-trans"):
        x, y = y, x
    return (z_code if curve.startswith("z") else hilbert_code)(x, y, z, depth)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 8, 11, 16, 20])
@pytest.mark.parametrize("curve", ORDERS)
def test_codes_equal_a_scalar_walk(curve, depth):
    coord = torch.randint(0, 2**depth, (100, 3))
    coord[0], coord[1] = 0, 2**depth - 1
    assert encode(coord, depth, curve).tolist() == [expected(curve, *c, depth) for c in coord.tolist()]


def test_codes_of_the_first_cells_by_hand():
    corners = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    assert encode(corners, 1, "z").tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert encode(corners, 1, "z-trans").tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert encode(corners, 1, "hilbert").tolist() == [0, 1, 3, 2, 7, 6, 4, 5]


@pytest.mark.parametrize("curve", ["hilbert", "hilbert-trans"])
def test_a_hilbert_curve_visits_every_cell_by_steps_of_one(curve):
    coord = torch.cartesian_prod(*(torch.arange(16),) * 3)
    code = encode(coord, 4, curve)
    walk = coord[code.argsort()]
    assert code.sort()[0].equal(torch.arange(4096))
    assert (walk.diff(dim=0).abs().sum(1) == 1).all()


@pytest.mark.parametrize("curve", ORDERS)
def test_three_bits_less_are_the_code_of_the_larger_cell(curve):
    coord = torch.randint(0, 2**9, (200, 3))
    assert encode(coord, 9, curve).bitwise_right_shift(6).equal(encode(coord >> 2, 7, curve))


@pytest.mark.parametrize("curve", ORDERS)
def test_each_point_may_have_a_depth_of_its_own(curve):
    depth = torch.randint(1, 17, (300,))
    coord = (torch.rand(300, 3) * 2 ** depth[:, None]).long()
    alone = [expected(curve, *c, d) for c, d in zip(coord.tolist(), depth.tolist(), strict=True)]
    assert encode(coord.int(), depth, curve).tolist() == alone


def test_what_is_refused():
    coord = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="hilbert"):
        encode(coord, 3, "hilbrt")
    for depth in (0, 21, torch.tensor([3, 21])):
        with pytest.raises(ValueError, match=r"depth must lie in 1..20"):
            encode(coord, depth, "z")
    assert encode(coord[:0], 3, "hilbert").shape == (0,)
