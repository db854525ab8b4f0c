"""`rasterization`: 3D Gaussians to color, depth, alpha and feature images, with gsplat's arguments and triple."""

from typing import Any

import torch
from torch import Tensor

from pointcept3m.ops._checks import check_int
from pointcept3m.ops.gaussian_projection import project_gaussians, spherical_harmonics
from pointcept3m.ops.rasterize_to_pixels import rasterize_to_pixels
from pointcept3m.utils.registry import near_names

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
_NORM_MIN = 1e-12  # quaternions shorter than this are not brought to length 1
# What else gsplat's function takes; our own renderer accepts these values and no others.
_GSPLAT_ONLY = {
    "sparse_grad": False,
    "absgrad": False,
    "distributed": False,
    "camera_model": "pinhole",
    "segmented": False,
    "covars": None,
    "with_ut": False,
    "with_eval3d": False,
    "radial_coeffs": None,
    "tangential_coeffs": None,
    "thin_prism_coeffs": None,
    "ftheta_coeffs": None,
    "rolling_shutter": None,
    "viewmats_rs": None,
}


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    *,
    features: Tensor | None = None,
    backend: str | None = None,
    **gsplat_options: Any,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders G Gaussians into C cameras: color, depth and any number of feature channels in one pass.

    Arguments, conventions and result are gsplat's (github.com/nerfstudio-project/gsplat, `rasterization`), on every
    device; `features` is ours. Differentiable in every float tensor, the cameras `viewmats` and `Ks` included, and to
    first order only.

    Args:
        means: [G, 3] world coordinates. quats: [G, 4] wxyz, any length but zero. scales: [G, 3] standard deviations,
            not negative. opacities: [G] in 0..1.
        colors: [G, X] or [C, G, X]; with `sh_degree`, harmonics [G, K, 3] or [C, G, K, 3], K >= (sh_degree + 1)^2.
        viewmats: [C, 4, 4] world to camera (x right, y down, z forward); the 3x3 part may be any invertible matrix,
            so a scaled world can be rendered at its original depth. Ks: [C, 3, 3] intrinsics in pixels, no skew.
        width, height: image size in pixels; the centre of the first pixel is (0.5, 0.5).
        near_plane, far_plane: Gaussians whose depth lies outside are left out.
        radius_clip: Gaussians whose radius on the image is at most this many pixels are left out.
        eps2d: pixels^2 added to the diagonal of each 2D covariance.
        sh_degree: the degree of harmonics to use; None: `colors` are the values to blend.
        packed, tile_size, channel_chunk: tune gsplat; they change neither our result nor our speed.
        backgrounds: [C, X] colors behind everything; depth and features have none.
        render_mode: "RGB"; "D", accumulated depth; "ED", depth divided by alpha; "RGB+D"; "RGB+ED".
        rasterize_mode: "classic", or "antialiased", which lowers opacities by the area that `eps2d` adds.
        features: [G, D], rendered like colors, through the same weights.
            `colors` and `features` may also be float16 or bfloat16: they are read, blended and returned in the dtype
            of means, and their gradients come back in their own.
        backend: None or "native" for ours; "gsplat" for gsplat on a GPU, which renders `features` in a second pass.
        gsplat_options: gsplat's further arguments, for `backend="gsplat"`.

    Returns:
        colors: [C, H, W, X], [C, H, W, 1] or [C, H, W, X + 1], as `render_mode` says.
        alphas: [C, H, W, 1].
        meta: "features" [C, H, W, D] (None without features), and what gsplat's holds with packed=False: "means2d"
            [C, G, 2] pixels, "conics" [C, G, 3], "depths" [C, G], "opacities" [C, G], "radii" [C, G, 2] int32
            (0: not seen), "width", "height", "n_cameras", "camera_ids" and "gaussian_ids" (None).

    Raises:
        TypeError: an argument is no tensor or no int, has a dtype that it may not have, or is unknown.
        ValueError: a shape, an option that the backend does not have, or (not looked for while torch.compile traces)
            a value that is not finite or not in its range, or a singular camera.
        ImportError: `backend="gsplat"` where gsplat is not installed.

    Complexity: O(C (G log G + pairs (X + D))) time, for the pairs of a pixel and a Gaussian that reaches it before the
        pixel is opaque; O(C (H W + G) (X + D)) memory, none per pair.
    """
    tensors = {"means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors,
               "viewmats": viewmats, "Ks": Ks, "backgrounds": backgrounds, "features": features}  # fmt: skip
    _check_types(tensors)
    _check_shapes(tensors, sh_degree)
    _check_options(width, height, near_plane, far_plane, eps2d, render_mode, rasterize_mode)
    if backend not in (None, "native", "gsplat"):
        raise ValueError(f"rasterization: backend must be None, 'native' or 'gsplat', got {backend!r}")
    if not torch.compiler.is_compiling():
        _check_values(tensors)
    options = {"sparse_grad": sparse_grad, "absgrad": absgrad, **gsplat_options}
    if backend == "gsplat":
        arguments = dict(
            width=width, height=height, near_plane=near_plane, far_plane=far_plane, radius_clip=radius_clip,
            eps2d=eps2d, packed=packed, tile_size=tile_size, rasterize_mode=rasterize_mode, channel_chunk=channel_chunk,
        )  # fmt: skip
        return _rasterization_gsplat(tensors, sh_degree, render_mode, {**arguments, **options})
    _check_native_options(options)

    projection = project_gaussians(
        means, quats, scales, opacities, viewmats, Ks, width, height, near_plane, far_plane, radius_clip, eps2d,
        antialiased=rasterize_mode == "antialiased",
    )  # fmt: skip
    num_cameras = viewmats.shape[0]
    colors, features = (t if t is None else t.to(means.dtype) for t in (colors, features))
    wants_color, wants_depth = "RGB" in render_mode, "D" in render_mode
    own = []  # channels that each camera has of its own
    if wants_color and sh_degree is not None:
        colors = _view_dependent_color(means, colors, viewmats, sh_degree)
    if wants_color:
        own.append(colors.expand(num_cameras, -1, -1))
    if wants_depth:
        own.append(projection.depths.unsqueeze(-1))
    own_channels = torch.cat(own, dim=-1)
    shared_channels = means.new_zeros(means.shape[0], 0) if features is None else features
    image = rasterize_to_pixels(
        projection.means2d, projection.conics, projection.opacities, projection.depths, own_channels, shared_channels,
        width, height,
    )  # fmt: skip

    alphas = (1 - image.transmittance).unsqueeze(-1)
    rendered = image.view_pixels
    num_colors = colors.shape[-1] if wants_color else 0
    if wants_color and backgrounds is not None:
        color = rendered[..., :num_colors] + image.transmittance.unsqueeze(-1) * backgrounds[:, None, None, :]
        rendered = torch.cat([color, rendered[..., num_colors:]], dim=-1)
    if render_mode.endswith("ED"):
        depth = rendered[..., num_colors:] / alphas.clamp_min(1e-10)
        rendered = torch.cat([rendered[..., :num_colors], depth], dim=-1)
    meta = {**projection._asdict(), "features": None if features is None else image.pixels, "width": width, "height": height,
            "n_cameras": num_cameras, "camera_ids": None, "gaussian_ids": None}  # fmt: skip
    return rendered, alphas, meta


def _view_dependent_color(means: Tensor, harmonics: Tensor, viewmats: Tensor, degree: int) -> Tensor:
    """Colors [C, G, 3], not below 0, of Gaussians seen from the cameras' centres (3DGS, section 4)."""
    linear, shift = viewmats[:, :3, :3], viewmats[:, :3, 3:]
    centres = -torch.linalg.solve(linear, shift).transpose(1, 2)  # [C, 1, 3]
    return (spherical_harmonics(degree, means - centres, harmonics) + 0.5).clamp_min(0)


def _rasterization_gsplat(
    tensors: dict[str, Tensor | None], sh_degree: int | None, render_mode: str, options: dict[str, Any]
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    try:
        import gsplat
    except ImportError as error:
        raise ImportError(
            "rasterization: backend='gsplat' needs the package gsplat, which is not installed "
            "('pip install -r requirements-gpu.txt'); backend=None renders the same without it"
        ) from error
    inputs = dict(tensors)
    features = inputs.pop("features")
    if not inputs["means"].is_cuda:
        raise ValueError(f"rasterization: backend='gsplat' renders on CUDA only, and means is on {inputs['means'].device}")
    image, alphas, meta = gsplat.rasterization(**inputs, sh_degree=sh_degree, render_mode=render_mode, **options)
    meta["features"] = None
    if features is not None:
        meta["features"] = gsplat.rasterization(**{**inputs, "colors": features, "backgrounds": None}, **options)[0]
    return image, alphas, meta


def _check_native_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name not in _GSPLAT_ONLY:
            raise TypeError(f"rasterization: unknown argument {name!r}; {near_names(name, _GSPLAT_ONLY)}")
        if value is not _GSPLAT_ONLY[name] and not (isinstance(value, str | bool | int) and value == _GSPLAT_ONLY[name]):
            raise ValueError(
                f"rasterization: {name}={value!r} is supported by backend='gsplat' only; "
                f"here it must stay {_GSPLAT_ONLY[name]!r}"
            )


def _check_types(tensors: dict[str, Tensor | None]) -> None:
    means = tensors["means"]
    for name, tensor in tensors.items():
        if tensor is None and name in ("backgrounds", "features"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"rasterization: {name} must be a tensor, got {type(tensor).__name__}")
        half = name in ("colors", "features") and tensor.dtype in (torch.float16, torch.bfloat16)
        if tensor.dtype not in (torch.float32, torch.float64) and not half:
            raise TypeError(f"rasterization: {name} must be float32 or float64, got {tensor.dtype}")
        if tensor.dtype != means.dtype and not half:
            raise TypeError(f"rasterization: {name} must have the dtype of means, {means.dtype}, got {tensor.dtype}")
        if tensor.device != means.device:
            raise ValueError(f"rasterization: {name} must be on the device of means, {means.device}, got {tensor.device}")


def _check_shapes(tensors: dict[str, Tensor | None], sh_degree: int | None) -> None:
    num_gaussians = tensors["means"].shape[0] if tensors["means"].dim() else 0
    num_cameras = tensors["viewmats"].shape[0] if tensors["viewmats"].dim() else 0
    sizes = {"G": num_gaussians, "C": num_cameras}
    layouts = {"means": ["G 3"], "quats": ["G 4"], "scales": ["G 3"], "opacities": ["G"], "viewmats": ["C 4 4"],
               "Ks": ["C 3 3"], "features": ["G D"], "backgrounds": ["C X"], "colors": ["G X", "C G X"]}  # fmt: skip
    if sh_degree is not None:
        check_int("rasterization", "sh_degree", sh_degree)
        if not 0 <= sh_degree <= 4:
            raise ValueError(f"rasterization: sh_degree must be None or 0 to 4, got {sh_degree}")
        layouts["colors"] = ["G K 3", "C G K 3"]
        if tensors["colors"].dim() >= 2 and tensors["colors"].shape[-2] < (sh_degree + 1) ** 2:
            raise ValueError(
                f"rasterization: sh_degree={sh_degree} needs at least {(sh_degree + 1) ** 2} harmonics, "
                f"colors {list(tensors['colors'].shape)} have {tensors['colors'].shape[-2]}"
            )
    if tensors["colors"].dim():
        sizes["X"] = tensors["colors"].shape[-1]
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        shape = list(tensor.shape)
        for layout in layouts[name]:
            wanted = [int(size) if size.isdigit() else sizes.get(size) for size in layout.split()]
            if len(wanted) == len(shape) and all(w is None or w == s for w, s in zip(wanted, shape, strict=True)):
                break
        else:
            options = " or ".join("[" + ", ".join(layout.split()) + "]" for layout in layouts[name])
            raise ValueError(f"rasterization: {name} must be {options} with G={num_gaussians}, C={num_cameras}, got {shape}")


def _check_options(
    width: int, height: int, near_plane: float, far_plane: float, eps2d: float, render_mode: str, rasterize_mode: str
) -> None:
    if render_mode not in RENDER_MODES:
        raise ValueError(f"rasterization: render_mode must be one of {', '.join(RENDER_MODES)}, got {render_mode!r}")
    if rasterize_mode not in ("classic", "antialiased"):
        raise ValueError(f"rasterization: rasterize_mode must be 'classic' or 'antialiased', got {rasterize_mode!r}")
    check_int("rasterization", "width", width)
    check_int("rasterization", "height", height)
    if not (0 < width < 2**20 and 0 < height < 2**20):
        raise ValueError(f"rasterization: width and height must be positive and below 2^20, got {width} x {height}")
    if not 0 < near_plane < far_plane:
        raise ValueError(f"rasterization: wanted 0 < near_plane < far_plane, got {near_plane} and {far_plane}")
    if not eps2d >= 0:
        raise ValueError(f"rasterization: eps2d must not be negative, got {eps2d}")


def _check_values(tensors: dict[str, Tensor | None]) -> None:
    """Refuses values that would silently give a wrong image: not finite, out of range, or a camera that cannot see."""
    with torch.no_grad():
        # Few reductions, and one read of them together with the cameras: on a GPU, kernels and reads of their own for
        # every check would take longer than the image does.
        means, num_cameras = tensors["means"], tensors["viewmats"].shape[0]
        ranged = [torch.linalg.vector_norm(tensors["quats"], dim=-1), tensors["scales"], tensors["opacities"]]
        extremes = [x for t in ranged for x in torch.aminmax(t)] if means.shape[0] else []
        # A sum with a NaN or an infinity in it is not finite.
        others = (tensors[name] for name in ("means", "colors", "backgrounds", "features"))
        sums = [tensor.sum(dtype=means.dtype) for tensor in others if tensor is not None]
        numbers = [t.flatten() for t in (*extremes, *sums, tensors["viewmats"], tensors["Ks"])]
        summary = torch.cat(numbers).cpu()
        if not torch.isfinite(summary).all():  # or finite values overflowed, which only costs the closer look
            _refuse_not_finite(tensors)
        if extremes:
            least_norm, _, least_scale, _, least_opacity, most_opacity = summary[:6].tolist()
            if least_norm < _NORM_MIN or least_scale < 0 or least_opacity < 0 or most_opacity > 1:
                _refuse_out_of_range(*ranged)
        viewmats, Ks = summary[summary.numel() - 25 * num_cameras :].split([16 * num_cameras, 9 * num_cameras])
        _check_cameras(viewmats.view(-1, 4, 4), Ks.view(-1, 3, 3))


def _refuse_not_finite(tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        bad = None if tensor is None else ~torch.isfinite(tensor)
        if bad is not None and bad.any():
            first = [int(i) for i in bad.nonzero()[0]]
            raise ValueError(
                f"rasterization: {name} must be finite, but {int(bad.sum())} of {bad.numel()} values are not; "
                f"the first, {tensor[tuple(first)].item()}, is at {first}"
            )


def _refuse_out_of_range(norms: Tensor, scales: Tensor, opacities: Tensor) -> None:
    for name, wanted, values, bad in (
        ("quats", "have a length above 0", norms, norms < _NORM_MIN),
        ("scales", "not be negative", scales, (scales < 0).any(1)),
        ("opacities", "lie in [0, 1]", opacities, (opacities < 0) | (opacities > 1)),
    ):
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(
                f"rasterization: {name} must {wanted}, but {int(bad.sum())} of {len(bad)} rows do not; "
                f"the first is row {row} with {values[row].tolist()}"
            )


def _check_cameras(viewmats: Tensor, Ks: Tensor) -> None:
    singular = torch.linalg.det(viewmats[:, :3, :3].double()) == 0
    if singular.any():
        camera = int(singular.nonzero()[0])
        raise ValueError(f"rasterization: the 3x3 part of viewmats[{camera}] must be invertible, its determinant is 0")
    if not torch.allclose(viewmats[:, 3], viewmats.new_tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-5):
        raise ValueError("rasterization: the last row of every viewmat must be (0, 0, 0, 1), world to camera")
    if (Ks[:, [0, 1], [0, 1]] == 0).any():
        raise ValueError("rasterization: Ks must not be singular, but a focal length is 0")
    if (Ks[:, [0, 1], [1, 0]] != 0).any():
        raise ValueError("rasterization: Ks must have no skew, but K[0, 1] or K[1, 0] is not 0")
