"""Vision transformers of timm as teachers: DINOv2, DINOv3, SigLIP, and RADIO with NVIDIA's own weights."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers.base import Teacher, choose_source, load_exactly, read_weights
from pointcept3m.utils.registry import near_names

# RADIOv2.5 has no name in timm. Its encoder is the one timm calls radio_v3 (ViT with NVIDIA's cropped position
# embedding); prefix tokens and layer scale differ from size to size and are read from the weight file.
RADIO = {
    "radio_v2.5-b": ("naflexvit_base_patch16_radio_v3", "nvidia/RADIO-B"),
    "radio_v2.5-l": ("naflexvit_large_patch16_radio_v3", "nvidia/RADIO-L"),
    "radio_v2.5-h": ("naflexvit_huge_patch16_radio_v3", "nvidia/RADIO-H"),
    "c-radio_v3-b": ("naflexvit_base_patch16_radio_v3", "nvidia/C-RADIOv3-B"),
    "c-radio_v3-l": ("naflexvit_large_patch16_radio_v3", "nvidia/C-RADIOv3-L"),
    "c-radio_v3-h": ("naflexvit_huge_patch16_radio_v3", "nvidia/C-RADIOv3-H"),
    "c-radio_v3-g": ("naflexvit_giant_patch16_radio_v3", "nvidia/C-RADIOv3-g"),
    "c-radio_v4-so400m": ("naflexvit_so400m_patch16_radio_v4", "nvidia/C-RADIOv4-SO400M"),
    "c-radio_v4-h": ("naflexvit_huge_patch16_radio_v4", "nvidia/C-RADIOv4-H"),
}


@TEACHERS.register_module()
class TimmTeacher(Teacher):
    """Patch features of a timm model: float32 [V, dim, H / patch, W / patch], prefix tokens dropped.

    model_name: a timm name ("vit_large_patch14_dinov2", "vit_base_patch16_dinov3", ...), or one of
        radio_v2.5-{b,l,h}, c-radio_v3-{b,l,h,g}, c-radio_v4-{so400m,h} (NVIDIA's weight files as they are).
    weight: local weight file. pretrained: download from the hub instead. random_init: neither, for tests only.
    layer: which block's output, -1 the last. norm: the final LayerNorm on top (as DINOv2's `x_norm_patchtokens`);
        None means for the last layer where the model has one, as `forward_features` does.
    facet: "value" makes `tokens` give the values of that block's attention, of unit length, instead of its output (CrossOver's
        release takes layer 31 of dinov2_vitg14 so); such a teacher gives tokens alone, no maps.
    model_args: further arguments of `timm.create_model`, such as the depth of a tiny variant.

    Any image size works: position embeddings are resampled as each family does it.
    """

    def __init__(
        self,
        model_name: str,
        weight: str | Path | None = None,
        pretrained: bool = False,
        random_init: bool = False,
        image_size: int | Sequence[int] | None = None,
        layer: int = -1,
        norm: bool | None = None,
        facet: str | None = None,
        model_args: dict[str, Any] | None = None,
        cache: str | Path | None = None,
        max_batch: int = 16,
        precision: str = "float32",
    ):
        super().__init__(image_size, cache, max_batch, precision)
        self.model_name, self.facet = model_name, facet
        if facet not in (None, "value"):
            raise ValueError(f"{model_name}: facet is None (a block's output) or 'value' (its attention's), got {facet!r}")
        timm = _import_timm()
        architecture, hub = RADIO.get(model_name, (model_name, None))
        if hub is None and not timm.is_model(architecture):
            raise KeyError(
                f"timm {timm.__version__} has no model {model_name!r}; {near_names(model_name, [*timm.list_models(), *RADIO])}"
            )
        if hub is not None and not timm.is_model(architecture):
            raise ImportError(f"{model_name} needs timm >= 1.0.31 (it has {architecture!r}), found {timm.__version__}")
        if hub is None and not timm.models.is_model_in_modules(
            architecture, ["vision_transformer", "eva", "naflexvit"]
        ):
            raise ValueError(f"{model_name} is no plain vision transformer of timm: it has no patch tokens to take")
        choose_source(self.model_name, weight, pretrained, random_init, _how_to_get(model_name, hub))
        network = _build(timm, architecture, hub, weight, pretrained, model_args or {}, model_name)
        depth = len(network.blocks)
        if not -depth <= layer < depth:
            raise ValueError(f"{model_name} has {depth} blocks; layer {layer} is none of them")
        self.layer = layer % depth
        has_norm = not isinstance(getattr(network, "norm", None), (nn.Identity, type(None)))
        self.norm = self.layer == depth - 1 and has_norm if norm is None else bool(norm)
        self.adopt(network)
        self.dim = int(network.embed_dim)
        self.patch = _patch_size(network, model_name)
        data = timm.data.resolve_model_data_config(network)
        # NVIDIA's weights come with a conditioner of their own: CLIP's mean and deviation, as in timm's entry.
        self.mean, self.std = tuple(data["mean"]), tuple(data["std"])

    @property
    def name(self) -> str:
        return self.model_name.replace("/", "_")

    @property
    def options(self) -> dict[str, Any]:
        facet = {"facet": self.facet} if self.facet else {}  # without it keys of caches stay as they were
        return {**super().options, "layer": self.layer, "norm": self.norm, "mean": self.mean, "std": self.std, **facet}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if self.facet:
            raise ValueError(f"{self.model_name}: facet={self.facet!r} is for tokens of CrossOver; build the teacher without it for feature maps")
        (maps,) = self.network.forward_intermediates(
            images, indices=[self.layer], norm=self.norm, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps

    def prefix_and_patches(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if getattr(self.network, "cls_token", None) is None and getattr(getattr(self.network, "embeds", None), "cls_token", None) is None:
            return super().prefix_and_patches(images)
        values: list[torch.Tensor] = []
        hook = self.network.blocks[self.layer].attn.qkv.register_forward_hook(lambda *call: values.append(call[2])) if self.facet else None
        try:
            ((patches, prefix),) = self.network.forward_intermediates(
                images, indices=[self.layer], norm=self.norm and not self.facet, stop_early=True, output_fmt="NLC",
                intermediates_only=True, return_prefix_tokens=True,
            )  # fmt: skip
        finally:
            if hook is not None:
                hook.remove()
        if self.facet:
            value = F.normalize(values[0][..., -self.dim :], dim=-1)
            return value[:, 0], value[:, prefix.shape[1] :]
        return prefix[:, 0], patches


def _import_timm() -> Any:
    try:
        import timm
        import timm.data
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ImportError(
            f"TimmTeacher needs timm, which cannot be imported here ({error}); run 'pip install timm'"
        ) from error
    return timm


def _how_to_get(name: str, hub: str | None) -> str:
    if hub is not None:
        return (
            f"Run 'hf download {hub} model.safetensors --local-dir {name}' on a machine with internet access "
            f"and pass weight='{name}/model.safetensors', or pass pretrained=True to download it now"
        )
    return (
        f"Run 'hf download timm/{name}.<tag> model.safetensors' on a machine with internet access (timm.list_pretrained"
        f"('{name}*') lists the tags) and pass weight='<path>', or pass pretrained=True to download them now"
    )


def _build(
    timm: Any, architecture: str, hub: str | None, weight: Any, pretrained: bool, arguments: dict, name: str
) -> nn.Module:
    """The network with its weights in place."""
    how = _how_to_get(name, hub)
    if hub is not None:
        weights = None
        if weight or pretrained:
            path = weight or _download(hub, how)
            weights = convert_radio(read_weights(path, how), str(path))
            arguments = {**arguments, **_radio_shape(weights)}
        if name.startswith("radio_v2.5"):
            arguments = {"pos_embed_align_corners": True, **arguments}  # as the code released with them does
        network = timm.create_model(architecture, num_classes=0, **arguments)
        if weights is not None:
            load_exactly(network, weights, str(path))
        return network
    # A fixed position table is resampled to each image; models without that option work at any size already.
    flexible = {} if architecture.startswith("naflexvit") or "dinov3" in architecture else {"dynamic_img_size": True}
    if pretrained:
        try:
            return timm.create_model(architecture, pretrained=True, num_classes=0, **flexible, **arguments)
        except Exception as error:
            raise RuntimeError(f"could not download {name!r} ({error}). {how}") from error
    network = timm.create_model(architecture, num_classes=0, **flexible, **arguments)
    if weight:
        from timm.models import vision_transformer

        weights = read_weights(weight, how)
        if any(key.startswith(("mask_token", "visual.")) for key in weights):  # files of the original authors
            weights = vision_transformer.checkpoint_filter_fn(weights, network)
        load_exactly(network, weights, str(weight), optional=("head.", "mask_token", "fc_norm."))
    return network


def _download(hub: str, how: str) -> str:
    try:
        from huggingface_hub import hf_hub_download

        return hf_hub_download(hub, "model.safetensors")
    except Exception as error:
        raise RuntimeError(f"could not download {hub} ({error}). {how}") from error


def convert_radio(weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """NVIDIA's RADIO tensors under timm's NaFlexViT names.

    Both the hub's safetensors (`radio_model.model.*`) and the training checkpoint (`base_model.*`) are known. Every
    tensor of the encoder must be accounted for: one that is left over would mean silently different features.
    Raises: ValueError where the file is no RADIO model, or holds encoder tensors that this does not know.
    """
    prefix = next((p for p in ("radio_model.model.", "base_model.") if any(k.startswith(p) for k in weights)), None)
    if prefix is None:
        raise ValueError(
            f"{source}: no RADIO weights (no key starts with 'radio_model.model.'); first keys: {', '.join(list(weights)[:3])}"
        )
    out: dict[str, torch.Tensor] = {}
    unknown = []
    for key, value in weights.items():
        if not key.startswith(prefix):
            continue  # input conditioner, summary indices, heads of the teachers it was distilled from
        key = key.removeprefix(prefix)
        if key == "patch_generator.embedder.weight":
            side = math.isqrt(value.shape[1] // 3)  # NVIDIA flattens a patch channel by channel, timm pixel by pixel
            out["embeds.proj.weight"] = value.unflatten(1, (3, side, side)).permute(0, 2, 3, 1).flatten(1).contiguous()
            out["embeds.proj.bias"] = value.new_zeros(value.shape[0])
        elif key == "patch_generator.pos_embed":
            side = math.isqrt(value.shape[1])
            out["embeds.pos_embed"] = value.reshape(1, side, side, -1)
        elif key == "patch_generator.cls_token.token":
            out["embeds.cls_token"], out["embeds.reg_token"] = value[None, :1], value[None, 1:]
        elif key.startswith("blocks.") and "parametrizations" not in key:
            out[key.replace(".grandma", ".gamma")] = value  # transformers renames anything called gamma
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f"{source}: encoder tensors of an unknown kind: {', '.join(unknown[:4])}")
    return out


def _radio_shape(weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The arguments of NaFlexViT that only the weight file knows."""
    missing = [key for key in ("embeds.reg_token", "embeds.pos_embed", "embeds.proj.weight") if key not in weights]
    if missing:
        raise ValueError(f"RADIO weights without {', '.join(missing)}")
    return {
        "reg_tokens": weights["embeds.reg_token"].shape[1],
        "pos_embed_grid_size": tuple(weights["embeds.pos_embed"].shape[1:3]),
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in weights else 0.0,  # create_model drops None
    }


def _patch_size(network: nn.Module, name: str) -> int:
    embed = getattr(network, "patch_embed", None) or getattr(network, "embeds", None)
    size = getattr(embed, "patch_size", None)
    if size is None or (not isinstance(size, int) and len(set(size)) != 1):
        raise ValueError(f"{name}: patches of {size} pixels; only square patches are supported")
    return size if isinstance(size, int) else int(size[0])
