"""Layers on sparse tensors, with spconv's names, arguments, weight layout and `indice_key`.

Arguments that say how spconv computes and not what (`algo`, `fp32_accum`, `large_kernel_fast_algo`, `name`) are taken
and have no effect: there is one algorithm, and half precision is always summed in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pointcept3m.ops.rulebook import Rulebook, strided_rulebook, strided_shape, submanifold_rulebook, triple
from pointcept3m.ops.scatter import scatter
from pointcept3m.ops.sparse_conv import sparse_conv
from pointcept3m.ops.sparse_pool import sparse_pool
from pointcept3m.structures.sparse import SparseConvTensor
from pointcept3m.utils.registry import near_names

Size = int | Sequence[int]
BACKENDS = ("native", "spconv")
_PEER_DICT = "spconv"  # where spconv's own rulebooks stand in `indice_dict`
_STRIDED = "strided"  # the kind of rulebook that strided convolutions and poolings share
_SPCONV_SETTINGS = ("algo", "fp32_accum", "large_kernel_fast_algo", "name", "record_voxel_count")


class IndiceData(NamedTuple):
    """What an `indice_key` stands for: a rulebook, and the voxels and grids it leads from and to.

    geometry: (kind, kernel_size, stride, padding, dilation).
    """

    rulebook: Rulebook
    indices: Tensor
    out_indices: Tensor
    spatial_shape: tuple[int, int, int]
    out_spatial_shape: tuple[int, int, int]
    geometry: tuple


class SparseModule(nn.Module):
    """A module that takes and returns a SparseConvTensor."""


class SparseSequential(SparseModule, nn.Sequential):
    """nn.Sequential over sparse tensors: plain modules (norms, activations, Linear) see the features [N, C]."""

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        for module in self:
            if isinstance(module, SparseModule) or not isinstance(x, SparseConvTensor):
                x = module(x)
            else:
                x = x.replace_feature(module(x.features))
        return x


class ToDense(SparseModule):
    """The dense grid [B, C, X, Y, Z] of a sparse tensor."""

    def forward(self, x: SparseConvTensor) -> Tensor:
        return x.dense()


def _find_indice_data(
    x: SparseConvTensor, key: str | None, geometry: tuple, make: Callable[[], IndiceData]
) -> IndiceData:
    """What stands under `key`, made now if this is the first to ask. Raises ValueError where it is something else."""
    if key is None:
        return make()
    data = x.indice_dict.get(key)
    if data is None:
        data = x.indice_dict[key] = make()
    if data.geometry != geometry:
        raise ValueError(f"indice_key {key!r} belongs to {data.geometry}, and {geometry} needs another key")
    if data.indices is not x.indices and not torch.equal(data.indices, x.indices):
        raise ValueError(f"indice_key {key!r} belongs to other voxels than the {x.indices.size(0)} it is used on")
    return data


def _make_strided(x: SparseConvTensor, geometry: tuple) -> IndiceData:
    settings = geometry[1:]
    rulebook = strided_rulebook(x.indices, x.spatial_shape, *settings)
    out_shape = strided_shape(x.spatial_shape, *settings)
    return IndiceData(rulebook, x.indices, rulebook.coord_out, x.spatial_shape, out_shape, geometry)


def _check_sparse(module: nn.Module, x: object) -> None:
    if not isinstance(x, SparseConvTensor):
        raise TypeError(f"{type(module).__name__}: wanted a SparseConvTensor, got {type(x).__name__}")


def _check_spconv_settings(module: nn.Module, settings: dict[str, object]) -> None:
    """Refuses arguments that are not spconv's, and `record_voxel_count=True`, which would need a buffer of its own."""
    unknown = [name for name in settings if name not in _SPCONV_SETTINGS]
    if unknown:
        raise TypeError(
            f"{type(module).__name__}: no argument {unknown[0]!r}; {near_names(unknown[0], _SPCONV_SETTINGS)}"
        )
    if settings.get("record_voxel_count"):
        raise ValueError(
            f"{type(module).__name__}: record_voxel_count=True is not supported; it serves TensorRT exports"
        )


class SparseConvolution(SparseModule):
    """What the three convolutions share: the KRSC weight [Cout, kx, ky, kz, Cin], its start values, the backend."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        indice_key: str | None = None,
        backend: str | None = None,
        **spconv_settings: object,
    ):
        super().__init__()
        _check_spconv_settings(self, spconv_settings)
        if groups != 1:
            raise ValueError(f"{type(self).__name__}: only groups=1 is supported, got {groups}")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = triple(kernel_size)
        self.stride, self.padding, self.dilation = (
            triple(stride, "stride"),
            triple(padding, "padding"),
            triple(dilation, "dilation"),
        )
        self.indice_key = indice_key
        self._make_weight()
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()
        self.backend = backend or "native"
        if self.backend not in BACKENDS:
            raise ValueError(f"{type(self).__name__}: backend must be 'native' or 'spconv', got {backend!r}")
        self._peer = (self._make_peer(_import_spconv()),) if self.backend == "spconv" else None

    def _make_weight(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.out_channels, *self.kernel_size, self.in_channels))

    def _krsc(self) -> Tensor:
        """The weight [Cout, kx, ky, kz, Cin], however a subclass keeps it."""
        return self.weight

    def reset_parameters(self) -> None:
        """Draws weights as torch's convolutions do: uniform within 1 / sqrt(fan in)."""
        bound = 1 / math.sqrt(max(self.in_channels * math.prod(self.kernel_size), 1))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        return (
            text
            + (f", indice_key={self.indice_key!r}" if self.indice_key else "")
            + ("" if self.bias is not None else ", bias=False")
        )

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Raises: TypeError for anything but a sparse tensor, ValueError where channels or `indice_key` do not fit."""
        _check_sparse(self, x)
        if x.features.size(1) != self.in_channels:
            raise ValueError(
                f"{type(self).__name__}: wanted {self.in_channels} input channels, got {x.features.size(1)}"
            )
        return self._forward_peer(x) if self._peer else self._forward_native(x)

    def _forward_native(self, x: SparseConvTensor) -> SparseConvTensor:
        data = self._indice_data(x)
        features = sparse_conv(x.features, self._krsc(), data.rulebook, self.bias)
        return x.replace(features, data.out_indices, data.out_spatial_shape)

    def _indice_data(self, x: SparseConvTensor) -> IndiceData:
        """The rulebook under `indice_key`, made now if it is the first to ask."""
        geometry = (self._kind, self.kernel_size, self.stride, self.padding, self.dilation)
        return _find_indice_data(x, self.indice_key, geometry, lambda: self._make_indice_data(x, geometry))

    _kind: str

    def _make_indice_data(self, x: SparseConvTensor, geometry: tuple) -> IndiceData:
        raise NotImplementedError

    def _make_peer(self, spconv) -> nn.Module:
        raise NotImplementedError

    def _forward_peer(self, x: SparseConvTensor) -> SparseConvTensor:
        spconv = _import_spconv()
        peer = self._peer[0]
        peer.weight, peer.bias = self.weight, self.bias
        peer.train(self.training)
        theirs = spconv.SparseConvTensor(x.features, x.indices, list(x.spatial_shape), x.batch_size)
        theirs.indice_dict = dict(x.indice_dict.get(_PEER_DICT, {}))
        theirs = peer(theirs)
        out = x.replace(theirs.features, theirs.indices, theirs.spatial_shape)
        out.indice_dict = {**x.indice_dict, _PEER_DICT: theirs.indice_dict}
        return out


class SubMConv3d(SparseConvolution):
    """Submanifold convolution: a dense one with padding k // 2, read where the input has voxels.

    `stride` and `padding` are accepted and ignored, as in spconv. A kernel of 1 multiplies row by row, with the
    numbers of `weight` read as [Cin, Cout] in memory although its shape says [Cout, 1, 1, 1, Cin]: so does spconv
    (its issue 450), and checkpoints trained with it give their results in no other reading.
    """

    _kind = "submanifold"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.stride, self.padding = (1, 1, 1), (0, 0, 0)
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"SubMConv3d: kernel_size must be odd, got {self.kernel_size}")

    def _forward_native(self, x: SparseConvTensor) -> SparseConvTensor:
        if math.prod(self.kernel_size) == 1:
            features = x.features @ self.weight.reshape(self.in_channels, self.out_channels).to(x.features.dtype)
            return x.replace_feature(features if self.bias is None else features + self.bias.to(features.dtype))
        return super()._forward_native(x)

    def _make_indice_data(self, x: SparseConvTensor, geometry: tuple) -> IndiceData:
        rulebook = submanifold_rulebook(x.indices, self.kernel_size, self.dilation)
        return IndiceData(rulebook, x.indices, x.indices, x.spatial_shape, x.spatial_shape, geometry)

    def _make_peer(self, spconv) -> nn.Module:
        return spconv.SubMConv3d(
            self.in_channels, self.out_channels, self.kernel_size, dilation=self.dilation,
            bias=self.bias is not None, indice_key=self.indice_key,
        )  # fmt: skip


class SparseConv3d(SparseConvolution):
    """Strided convolution: outputs stand wherever the kernel meets a voxel. With k = s = 2: at floor(i / 2)."""

    _kind = _STRIDED

    def _make_indice_data(self, x: SparseConvTensor, geometry: tuple) -> IndiceData:
        return _make_strided(x, geometry)

    def _make_peer(self, spconv) -> nn.Module:
        return spconv.SparseConv3d(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, indice_key=self.indice_key,
        )  # fmt: skip


class SparseInverseConv3d(SparseConvolution):
    """Leads back from the outputs of the strided layer with the same `indice_key` to its inputs, in their order."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        indice_key: str,
        bias: bool = True,
        backend: str | None = None,
        **spconv_settings: object,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, bias=bias, indice_key=indice_key, backend=backend, **spconv_settings
        )

    def _indice_data(self, x: SparseConvTensor) -> IndiceData:
        data = x.indice_dict.get(self.indice_key)
        if data is None:
            known = [key for key in x.indice_dict if key != _PEER_DICT]
            raise ValueError(
                f"SparseInverseConv3d: no SparseConv3d or pooling has run with indice_key {self.indice_key!r}; "
                f"{near_names(self.indice_key, known)}"
            )
        if data.geometry[:2] != (_STRIDED, self.kernel_size):
            raise ValueError(
                f"SparseInverseConv3d: indice_key {self.indice_key!r} belongs to {data.geometry}, wanted "
                f"{_STRIDED!r} with kernel {self.kernel_size}"
            )
        if data.out_indices is not x.indices and not torch.equal(data.out_indices, x.indices):
            raise ValueError(
                f"SparseInverseConv3d: the input does not stand on the outputs of indice_key {self.indice_key!r}"
            )
        return IndiceData(
            data.rulebook.inverse(data.indices),
            x.indices,
            data.indices,
            x.spatial_shape,
            data.spatial_shape,
            data.geometry,
        )

    def _make_peer(self, spconv) -> nn.Module:
        return spconv.SparseInverseConv3d(
            self.in_channels, self.out_channels, self.kernel_size, self.indice_key, bias=self.bias is not None
        )


class SparsePooling(SparseModule):
    """What the poolings share. `stride` is the kernel size where it is not given; spconv's arguments and conventions.

    A pooling uses the rulebook of a strided convolution or pooling of equal geometry with the same `indice_key`, and
    SparseInverseConv3d can lead back from it.
    """

    _reduce: str

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        indice_key: str | None = None,
        **spconv_settings: object,
    ):
        super().__init__()
        _check_spconv_settings(self, spconv_settings)
        self.kernel_size = triple(kernel_size)
        self.stride = self.kernel_size if stride is None else triple(stride, "stride")
        self.padding, self.dilation = triple(padding, "padding"), triple(dilation, "dilation")
        self.indice_key = indice_key

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}"

    def forward(self, x: SparseConvTensor) -> SparseConvTensor:
        """Raises: TypeError for anything but a sparse tensor, ValueError where `indice_key` does not fit."""
        _check_sparse(self, x)
        geometry = (_STRIDED, self.kernel_size, self.stride, self.padding, self.dilation)
        data = _find_indice_data(x, self.indice_key, geometry, lambda: _make_strided(x, geometry))
        features = sparse_pool(x.features, data.rulebook, self._reduce)
        return x.replace(features, data.out_indices, data.out_spatial_shape)


class SparseMaxPool3d(SparsePooling):
    """The maximum over the voxels under the kernel; empty sites take no part."""

    _reduce = "max"


class SparseAvgPool3d(SparsePooling):
    """The mean over the voxels under the kernel: divided by their number, not by the kernel's size."""

    _reduce = "mean"


class SparseGlobalPooling(SparseModule):
    """What the global poolings share: one row [B, C] per scene, 0 for a scene without voxels."""

    _reduce: str

    def __init__(self, name: str | None = None):
        super().__init__()

    def forward(self, x: SparseConvTensor) -> Tensor:
        """Raises: TypeError for anything but a sparse tensor."""
        _check_sparse(self, x)
        return scatter(x.features, x.indices[:, 0].long(), 0, dim_size=x.batch_size, reduce=self._reduce)


class SparseGlobalMaxPool(SparseGlobalPooling):
    """The maximum over each scene."""

    _reduce = "max"


class SparseGlobalAvgPool(SparseGlobalPooling):
    """The mean over each scene."""

    _reduce = "mean"


def _import_spconv():
    try:
        import spconv.pytorch as spconv
    except ImportError:
        raise ImportError(
            "backend='spconv' needs the package spconv (`pointcept3m check` says which of its packages fits); backend='native' needs nothing"
        ) from None
    return spconv
