"""The text tower of a CLIP model by open_clip, without its image tower until a picture is the query."""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.teachers.base import choose_source, load_exactly, read_weights
from pointcept3m.models.teachers.open_clip import (
    check_quick_gelu,
    how_to_get,
    import_open_clip,
    open_tokenizer,
    preprocess_of,
)
from pointcept3m.models.text.base import TextEncoder
from pointcept3m.utils.registry import near_names

# Not the text tower's: where both towers lie side by side in one file, these belong to the rest of the model.
NOT_TEXT = ("visual.", "logit_scale", "logit_bias", "text_decoder.")


@TEXT_ENCODERS.register_module()
class OpenClipTextEncoder(TextEncoder):
    """Free text in the space of a CLIP or SigLIP model of open_clip.

    model_name: open_clip's name. LSeg's text side is OpenAI's ViT-B/32 (512-d), OpenSeg's is OpenAI's ViT-L/14@336px
        (768-d); OpenAI trained with QuickGELU, so they are "ViT-B-32-quickgelu" and "ViT-L-14-336-quickgelu" here.
    weight: local weight file (safetensors or state_dict) of the whole model. pretrained: a tag of
        `open_clip.list_pretrained()` to download. random_init: neither, for tests only.
    tokenizer: folder of a Hugging Face tokenizer, for the models (SigLIP) whose tokenizer open_clip does not carry.
    model_args: further entries of open_clip's model config, such as the depth of a tiny variant.
    """

    reads_images = True

    def __init__(
        self,
        model_name: str = "ViT-B-32-quickgelu",
        weight: str | Path | None = None,
        pretrained: str | None = None,
        random_init: bool = False,
        tokenizer: str | Path | None = None,
        model_args: dict[str, Any] | None = None,
    ):
        open_clip = import_open_clip(type(self).__name__)
        if model_name not in open_clip.list_models():
            raise KeyError(f"open_clip has no model {model_name!r}; {near_names(model_name, open_clip.list_models())}")
        self.model_name, self.weight, self.pretrained = model_name, weight, pretrained
        self.model_args = copy.deepcopy(model_args or {})
        self._how = how_to_get(open_clip, model_name)
        choose_source(model_name, weight, pretrained, random_init, self._how, what="text encoder")
        config = copy.deepcopy({**open_clip.get_model_config(model_name), **self.model_args})
        text = config["text_cfg"]
        if text.get("hf_model_name") or "multimodal_cfg" in config:
            raise ValueError(
                f"{model_name}: only text towers of open_clip's own are supported, this one is "
                f"{text.get('hf_model_name') or 'a captioner'}"
            )
        self.dim, self.name = int(config["embed_dim"]), "_".join(filter(None, ["open_clip", model_name, pretrained]))
        self.context_length = int(text.get("context_length", 77))
        self.tokenizer = open_tokenizer(model_name, text, tokenizer, online=bool(pretrained))
        tower = open_clip.model._build_text_tower(self.dim, text, config.get("quick_gelu", False))
        if weight or pretrained:
            self.weight = weight or self._download(open_clip)
            weights = text_weights(read_weights(self.weight, self._how), str(self.weight))
            load_exactly(tower, weights, str(self.weight), optional=("attn_mask",))
        self.network = tower.eval().requires_grad_(False)
        self._whole: Any = None

    def _download(self, open_clip: Any) -> str:
        check_quick_gelu(open_clip, self.model_name, self.pretrained)
        try:
            return open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.model_name, self.pretrained))
        except Exception as error:
            raise RuntimeError(
                f"could not download {self.model_name!r} {self.pretrained!r} ({error}). {self._how}"
            ) from error

    def embed(self, texts: list[str]) -> torch.Tensor:
        encode = getattr(self.tokenizer, "encode", None)
        for text in texts if encode else ():
            if (count := len(encode(text)) + 2) > self.context_length:  # and the two that mark start and end
                raise ValueError(f"{self.name} reads {self.context_length} word pieces, a text has {count}: {text[:60]!r}...")
        return self.network.to(self.device)(self.tokenizer(texts).to(self.device))

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        network = self._image_model().to(self.device)
        return network.encode_image(prepare_images(images, network.visual.preprocess_cfg))

    def _image_model(self) -> Any:
        """The whole model, read when the first picture comes. Random numbers where the text tower's are."""
        if self._whole is None:
            open_clip = import_open_clip(type(self).__name__)
            arguments = {"force_preprocess_cfg": self._preprocess(open_clip), **copy.deepcopy(self.model_args)}
            network = open_clip.create_model(self.model_name, pretrained=None, **arguments)
            if self.weight:
                weights = read_weights(self.weight, self._how)
                load_exactly(network, weights, str(self.weight), optional=("attn_mask", "logit_bias"))
            self._whole = network.eval().requires_grad_(False)
        return self._whole


    def _preprocess(self, open_clip: Any) -> dict[str, Any]:
        if not self.pretrained:
            return preprocess_of(open_clip, self.model_name)
        config = open_clip.get_pretrained_cfg(self.model_name, self.pretrained)
        return {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}


def text_weights(weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The text tower's tensors of a CLIP file, under the names of open_clip's `TextTransformer`."""
    if any(key.startswith("text.") for key in weights):  # SigLIP and other models with a tower of its own
        return {key.removeprefix("text."): value for key, value in weights.items() if key.startswith("text.")}
    found = {key: value for key, value in weights.items() if not key.startswith(NOT_TEXT)}
    if not found:
        raise ValueError(f"{source}: holds no text tower; first keys: {', '.join(list(weights)[:3])}")
    return {k: v for k, v in found.items() if k not in ("input_resolution", "context_length", "vocab_size")}


def prepare_images(images: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Images [V, 3, H, W] in 0..1 as open_clip's transform for evaluation makes them (on tensors, not on PIL images)."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    mode = config.get("interpolation", "bicubic")
    if config.get("resize_mode", "shortest") == "squash":
        target = (height, width)
    else:
        scale = max(height / images.shape[-2], width / images.shape[-1])
        target = tuple(max(low, int(side * scale + 1e-6)) for low, side in zip((height, width), images.shape[-2:], strict=True))
    images = F.interpolate(images, size=target, mode=mode, antialias=True, align_corners=False).clamp(0, 1)
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    images = images[..., top : top + height, left : left + width]
    mean, std = (images.new_tensor(config[key])[:, None, None] for key in ("mean", "std"))
    return (images - mean) / std
