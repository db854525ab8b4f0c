"""Dense CLIP features by open_clip, in the space of its text encoder."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers.base import Teacher, choose_source, load_exactly, read_weights
from pointcept3m.utils.registry import near_names


class _Block(nn.Module):
    """The last transformer block with every token attending to itself alone, so that its output is its value.

    That is MaskCLIP's "value path" (Zhou et al., ECCV 2022, Sec. 3.2); the residual and the MLP stay, as in the
    authors' ViT.
    """

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        block, attention = self.block, self.block.attn
        width = tokens.shape[-1]
        value = F.linear(block.ln_1(tokens), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        tokens = tokens + block.ls_1(attention.out_proj(value))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


@TEACHERS.register_module()
class OpenClipTeacher(Teacher):
    """Per-patch CLIP or SigLIP embeddings, L2-normalised: float32 [V, dim, H / patch, W / patch].

    A patch takes MaskCLIP's value path through the attention that pools: CLIP's last block, SigLIP's pooling head.

    model_name: open_clip name of a ViT ("ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP-512", "ViT-B-16-SigLIP2-512", ...).
        OpenAI's weights need the names with "-quickgelu".
    weight: local weight file (safetensors or state_dict). pretrained: a tag of `open_clip.list_pretrained()` to
        download. random_init: neither, for tests only.
    model_args: further arguments of `open_clip.create_model`, such as `force_preprocess_cfg=dict(mean=..., std=...)` for
        local weights that were trained with other means than most of their model.
    """

    def __init__(
        self,
        model_name: str = "ViT-B-16",
        weight: str | Path | None = None,
        pretrained: str | None = None,
        random_init: bool = False,
        image_size: int | Sequence[int] | None = None,
        model_args: dict[str, Any] | None = None,
        tokenizer: str | Path | None = None,
        cache: str | Path | None = None,
        max_batch: int = 16,
        precision: str = "float32",
    ):
        super().__init__(image_size, cache, max_batch, precision)
        self.model_name, self.pretrained = model_name, pretrained
        open_clip = import_open_clip(type(self).__name__)
        if model_name not in open_clip.list_models():
            raise KeyError(f"open_clip has no model {model_name!r}; {near_names(model_name, open_clip.list_models())}")
        how = how_to_get(open_clip, model_name)
        choose_source(model_name, weight, pretrained, random_init, how)
        self._text_config = {**open_clip.get_model_config(model_name), **(model_args or {})}["text_cfg"]
        network = self._build(open_clip, weight, pretrained, model_args or {}, how)
        visual = network.visual
        self._check_tower(visual)
        self.adopt(network)
        if self.pooled:
            self.dim, self.patch = int(visual.trunk.embed_dim), int(visual.trunk.patch_embed.patch_size[0])
        else:
            self.__dict__["_last"] = _Block(visual.transformer.resblocks[-1])
            self.dim, self.patch = int(visual.proj.shape[1]), int(visual.patch_size[0])
        self.__dict__["_tokenizer"], self._tokenizer_folder = None, tokenizer
        self.mean = tuple(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
        self.std = tuple(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)

    def _check_tower(self, visual: nn.Module) -> None:
        """Sets `pooled`: whether this is SigLIP's tower. Raises: ValueError where patches cannot be brought to the text's space."""
        trunk = getattr(visual, "trunk", None)
        self.pooled = trunk is not None
        if self.pooled:
            wanted = ("patch_embed", "pos_embed", "blocks", "norm", "attn_pool")
            if not all(isinstance(getattr(trunk, part, None), (nn.Module, nn.Parameter)) for part in wanted) or (
                trunk.num_prefix_tokens or trunk.attn_pool.pos_embed is not None
            ):
                raise ValueError(
                    f"{self.model_name}: of timm's image towers only those that pool by attention (SigLIP) give dense features in "
                    f"the text's space, this one is {type(trunk).__name__}; for its own space use TimmTeacher"
                )
            return
        wanted = ("conv1", "class_embedding", "positional_embedding", "transformer", "ln_post", "proj")
        block = visual.transformer.resblocks[-1] if hasattr(visual, "transformer") else None
        if not all(hasattr(visual, part) for part in wanted) or not isinstance(
            getattr(block, "attn", None), nn.MultiheadAttention
        ):
            raise ValueError(
                f"{self.model_name}: dense features need a ViT image tower of open_clip's own or SigLIP's, this one is {type(visual).__name__}"
            )
        if visual.attn_pool is not None or visual.final_ln_after_pool:
            raise ValueError(
                f"{self.model_name} pools by attention or before its last norm; its patch tokens are not in the text's space"
            )

    def _build(self, open_clip: Any, weight: Any, pretrained: str | None, arguments: dict, how: str) -> nn.Module:
        if pretrained:
            check_quick_gelu(open_clip, self.model_name, pretrained)
            try:
                return open_clip.create_model(self.model_name, pretrained=pretrained, **arguments)
            except Exception as error:
                raise RuntimeError(f"could not load {self.model_name!r} {pretrained!r} ({error}). {how}") from error
        arguments = {"force_preprocess_cfg": preprocess_of(open_clip, self.model_name), **arguments}
        network = open_clip.create_model(self.model_name, pretrained=None, **arguments)
        if weight:
            load_exactly(network, read_weights(weight, how), str(weight), optional=("attn_mask", "logit_bias"))
        return network

    @property
    def name(self) -> str:
        return f"open_clip_{self.model_name}".replace("/", "_")

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "mean": self.mean, "std": self.std}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if self.pooled:
            return self._siglip_maps(*self._siglip(images))
        return self._maps(*self._before_last(images))

    def prefix_and_patches(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole image's unit embedding, as the model pools it, and those of the patches."""
        visual = self.network.visual
        if self.pooled:
            tokens, size = self._siglip(images)
            whole, maps = visual.head(visual.trunk.forward_head(tokens)), self._siglip_maps(tokens, size)
        else:
            tokens, size = self._before_last(images)
            last = visual.transformer.resblocks[-1](tokens)
            last = last if visual.transformer.batch_first else last.transpose(0, 1)
            whole, maps = visual.ln_post(last[:, 0]) @ visual.proj, self._maps(tokens, size)
        return F.normalize(whole, dim=-1), maps.flatten(2).transpose(1, 2)

    def _before_last(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        """(tokens as CLIP's last block gets them, grid of the patches)."""
        visual = self.network.visual
        patches = visual.conv1(images)
        size = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)
        first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1) + self._positions(size).to(tokens.dtype)
        tokens = visual.ln_pre(tokens)
        blocks = visual.transformer.resblocks
        batch_first = visual.transformer.batch_first
        tokens = tokens if batch_first else tokens.transpose(0, 1)
        for block in blocks[:-1]:
            tokens = block(tokens)
        return tokens, size

    def _maps(self, tokens: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Unit embeddings of the patches [V, dim, h, w]."""
        visual = self.network.visual
        tokens = self._last(tokens)
        tokens = tokens if visual.transformer.batch_first else tokens.transpose(0, 1)
        embedding = F.normalize(visual.ln_post(tokens[:, 1:]) @ visual.proj, dim=-1)
        return embedding.transpose(1, 2).unflatten(2, size)

    def _siglip(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Size]:
        """(tokens as SigLIP's pooling gets them, grid of the patches)."""
        trunk = self.network.visual.trunk
        patches = trunk.patch_embed.proj(images)
        size = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2) + self._trunk_positions(size).to(patches.dtype)
        tokens = trunk.norm_pre(tokens)
        for block in trunk.blocks:
            tokens = block(tokens)
        return trunk.norm(tokens), size

    def _siglip_maps(self, tokens: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """The attention pooling of one patch at a time: attention over one token is its value, and the MLP follows."""
        visual = self.network.visual
        embedding = visual.head(visual.trunk.forward_head(tokens.flatten(0, 1)[:, None]))
        return F.normalize(embedding, dim=-1).unflatten(0, (len(tokens), *size)).permute(0, 3, 1, 2)

    def _trunk_positions(self, size: torch.Size) -> torch.Tensor:
        """Position embeddings [1, h * w, width] of a timm tower for a grid of `size` patches."""
        table, grid = self.network.visual.trunk.pos_embed, self.network.visual.trunk.patch_embed.grid_size
        if tuple(grid) == tuple(size):
            return table
        patches = table.transpose(1, 2).unflatten(2, tuple(grid)).float()
        patches = F.interpolate(patches, size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
        return patches.flatten(2).transpose(1, 2).to(table.dtype)

    def _positions(self, size: torch.Size) -> torch.Tensor:
        """Position embeddings [1 + h * w, width] for a grid of `size` patches; resampled where it is not CLIP's own."""
        table, grid = self.network.visual.positional_embedding, self.network.visual.grid_size
        if tuple(grid) == tuple(size):
            return table
        patches = table[1:].unflatten(0, tuple(grid)).permute(2, 0, 1)[None]
        patches = F.interpolate(patches.float(), size=tuple(size), mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([table[:1], patches[0].flatten(1).T.to(table.dtype)])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str], templates: Sequence[str] = ("a {} in a room",)) -> torch.Tensor:
        """Text embeddings, L2-normalised: float32 [K, dim]; the mean over `templates`, as CLIP's prompt ensembles."""
        if isinstance(texts, str):
            raise TypeError(f"encode_text wants a list of strings, got the string {texts!r}")
        if self._tokenizer is None:
            online = bool(self.pretrained)
            self.__dict__["_tokenizer"] = open_tokenizer(self.model_name, self._text_config, self._tokenizer_folder, online)
        device = self.network.logit_scale.device
        means = []
        for text in texts:
            tokens = self._tokenizer([template.format(text) for template in templates]).to(device)
            means.append(F.normalize(self.network.encode_text(tokens).float(), dim=-1).mean(0))
        return F.normalize(torch.stack(means), dim=-1) if means else torch.zeros(0, self.dim, device=device)


def how_to_get(open_clip: Any, model_name: str) -> str:
    """Where the weights of an open_clip model come from."""
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    hubs = [open_clip.get_pretrained_cfg(model_name, tag).get("hf_hub", "").rstrip("/") for tag in tags]
    hub = next(filter(None, hubs), "<hub id>")
    return (
        f"Run 'hf download {hub} open_clip_model.safetensors' on a machine with internet access and pass weight='<path>', "
        f"or pass pretrained=<tag> to download now; tags: {', '.join(tags) or 'none'}"
    )


def open_tokenizer(model_name: str, text: dict[str, Any], folder: str | Path | None, online: bool) -> Any:
    """The tokenizer of an open_clip model whose text config is `text`; `folder` for one that open_clip does not carry.

    Raises: ValueError, FileNotFoundError, RuntimeError that say where it comes from; only `online` asks the network.
    """
    open_clip = import_open_clip("the tokenizer")
    hub, length, options = text.get("hf_tokenizer_name"), int(text.get("context_length", 77)), text.get("tokenizer_kwargs", {})
    if not hub:
        if folder is not None:
            raise ValueError(f"{model_name} has open_clip's own tokenizer; drop tokenizer={str(folder)!r}")
        return open_clip.SimpleTokenizer(context_length=length, **options)
    if folder is None and not online:
        raise ValueError(
            f"{model_name} needs the tokenizer of {hub}: run 'hf download {hub} --include \"*token*\" \"*.model\" "
            "--local-dir <folder>' on a machine with internet access and pass tokenizer='<folder>', or pass "
            "pretrained=<tag> to download it with the weights"
        )
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"{model_name}: no tokenizer folder {str(folder)!r}")
    try:
        return open_clip.HFTokenizer(str(folder or hub), context_length=length, **options)
    except Exception as error:  # transformers is absent, or the files are damaged
        raise RuntimeError(f"{model_name}: the tokenizer {str(folder or hub)!r} does not load ({error})") from error


def preprocess_of(open_clip: Any, model_name: str) -> dict[str, Any]:
    """mean, std, interpolation and resize_mode that most published weights of a model want; a local file has no word on it.

    One published file differs from its model's others in mean and std: laion2b_s32b_b82k of ViT-L-14 wants 0.5 for both.
    """
    keys = ("mean", "std", "interpolation", "resize_mode")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    cfgs = [open_clip.get_pretrained_cfg(model_name, tag) for tag in tags]
    wanted = Counter(tuple((key, cfg[key]) for key in keys if key in cfg) for cfg in cfgs)
    return dict(wanted.most_common(1)[0][0]) if wanted else {}


def check_quick_gelu(open_clip: Any, model_name: str, tag: str) -> None:
    """The architecture must have the activation that the weights `tag` were trained with; open_clip only warns.

    Raises: ValueError that names the model with the right one; KeyError for an unknown tag.
    """
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if tag not in tags:
        raise KeyError(f"{model_name} has no weights {tag!r}; {near_names(tag, tags)}")
    trained = bool(open_clip.get_pretrained_cfg(model_name, tag).get("quick_gelu", False))
    if trained != bool(open_clip.get_model_config(model_name).get("quick_gelu", False)):
        other = f"{model_name}-quickgelu" if trained else model_name.removesuffix("-quickgelu")
        raise ValueError(
            f"{model_name!r} with the weights {tag!r}: they were trained {'with' if trained else 'without'} QuickGELU; "
            f"use model_name={other!r}"
        )


def import_open_clip(who: str) -> Any:
    try:
        import open_clip
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ImportError(
            f"{who} needs open_clip, which cannot be imported here ({error}); run 'pip install open_clip_torch'"
        ) from error
    return open_clip
