"""What `sparse_conv` and the rulebooks refuse: each error names the op and the argument."""

from dataclasses import replace

import pytest
import torch

from pointcept3m import ops
from tests.ops.sparse_cases import SHAPE, random_coord


def test_bad_arguments_are_named():
    coord = random_coord()
    rulebook = ops.submanifold_rulebook(coord, 3)
    weight = torch.randn(4, 3, 3, 3, 5)
    with pytest.raises(TypeError, match="^submanifold_rulebook: coord must be an int32 tensor, got torch.int64"):
        ops.submanifold_rulebook(coord.long(), 3)
    shape = r"^submanifold_rulebook: coord must have shape \[N, 4\] as \(batch, x, y, z\), got \(\d+, 3\)"
    with pytest.raises(ValueError, match=shape):
        ops.submanifold_rulebook(coord[:, 1:].contiguous(), 3)
    with pytest.raises(ValueError, match="^submanifold_rulebook: wanted an odd kernel_size"):
        ops.submanifold_rulebook(coord, 2)
    with pytest.raises(ValueError, match=r"^strided_rulebook: coord: x must lie in \[0, 4\), found"):
        ops.strided_rulebook(coord, (4, 8, 7), 2, 2)
    with pytest.raises(ValueError, match=r"^strided_rulebook: a grid of \(1, 8, 7\) is too small for kernel_size"):
        ops.strided_rulebook(coord[:0], (1, 8, 7), 2, 2)
    with pytest.raises(ValueError, match=r"^strided_shape: a grid of \(1, 1, 1\) is too small"):
        ops.strided_shape(1, 2, 2, 0, 1)
    with pytest.raises(ValueError, match=r"^strided_rulebook: spatial_shape must be an int or three, got \(5, 5\)"):
        ops.strided_rulebook(coord, (5, 5), 3, 2, 1)
    with pytest.raises(TypeError, match=r"^strided_rulebook: stride must be an int or three, got 1.5"):
        ops.strided_rulebook(coord, SHAPE, 3, 1.5)
    with pytest.raises(ValueError, match=r"^strided_rulebook: kernel_size .* must be positive"):
        ops.strided_rulebook(coord, SHAPE, 3, 0)
    with pytest.raises(TypeError, match=r"^submanifold_rulebook: kernel_size must be an int or three, got '3'"):
        ops.submanifold_rulebook(coord, "3")
    far = torch.tensor([[0, 0, 0, 0], [9, 2**31 - 1, 2**31 - 1, 2**31 - 1]], dtype=torch.int32)
    with pytest.raises(ValueError, match="^submanifold_rulebook: coord spans .* 64-bit keys"):
        ops.submanifold_rulebook(far, 3)
    with pytest.raises(ValueError, match=r"features must be \[\d+, 5\]"):
        ops.sparse_conv(torch.randn(len(coord), 4), weight, rulebook)
    with pytest.raises(ValueError, match=r"with kernel \(3, 3, 3\)"):
        ops.sparse_conv(torch.randn(len(coord), 5), weight[:, :2], rulebook)
    with pytest.raises(ValueError, match=r"bias must be \[4\]"):
        ops.sparse_conv(torch.randn(len(coord), 5), weight, rulebook, torch.randn(3))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("features", None, "features must be a floating point tensor, got NoneType"),
        ("features", torch.ones(3, 5).long(), "features must be a floating point tensor, got torch.int64"),
        ("weight", [1.0], "weight must be a floating point tensor, got list"),
        ("bias", [1, 2], "bias must be a floating point tensor, got list"),
        ("rulebook", None, "rulebook must be a Rulebook, got NoneType"),
    ],
)
def test_arguments_of_another_type_are_named(name, value, text):
    coord = random_coord()
    good = dict(
        features=torch.randn(len(coord), 5), weight=torch.randn(4, 3, 3, 3, 5), bias=torch.randn(4),
        rulebook=ops.submanifold_rulebook(coord, 3),
    )  # fmt: skip
    with pytest.raises(TypeError, match=f"^sparse_conv: {text}"):
        ops.sparse_conv(**good | {name: value})


@pytest.mark.parametrize("name", ["features", "weight", "bias"])
def test_tensors_on_another_device_are_named(name):
    """Not refused, the fake kernel would answer for a meta tensor, with memory that nothing was written to."""
    coord = random_coord()
    tensors = dict(features=torch.randn(len(coord), 5), weight=torch.randn(4, 3, 3, 3, 5), bias=torch.randn(4))
    tensors[name] = tensors[name].to("meta")
    with pytest.raises(ValueError, match=f"^sparse_conv: {name} must be on cpu as rulebook is, got meta"):
        ops.sparse_conv(**tensors, rulebook=ops.submanifold_rulebook(coord, 3))


@pytest.mark.parametrize("part", ["pairs", "start", "rank_in", "rank_out", "cell_in"])
def test_a_rulebook_on_two_devices_is_refused(part):
    coord = random_coord()
    rulebook = ops.submanifold_rulebook(torch.cat([coord, coord[:5]]), 3)
    rulebook = replace(rulebook, **{part: getattr(rulebook, part).to("meta")})
    with pytest.raises(ValueError, match="^sparse_conv: rulebook must lie on one device, .*meta"):
        ops.sparse_conv(torch.randn(len(coord) + 5, 5), torch.randn(4, 3, 3, 3, 5), rulebook)
