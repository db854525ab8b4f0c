"""Stable Diffusion's activations as image features: one step of noise, what the U-Net's way up makes of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers.base import Teacher, choose_source

# runwayml/stable-diffusion-v1-5, which CUA-O3D names, is gone from the hub; this is its mirror.
HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"
EXTRA = "pip install pointcept3m[diffusion]"
HOW = (
    f"""Run 'hf download {HUB} --include "*.json" "*.txt" "*/diffusion_pytorch_model.safetensors" """
    """"text_encoder/model.safetensors" --local-dir stable-diffusion-v1-5' on a machine with internet access and pass """
    "weight='stable-diffusion-v1-5', or pass pretrained=True to download it now"
)


class _Reached(Exception):
    """The last block that is wanted has run."""


class OneStep(nn.Module):
    """A VAE's encoder, a U-Net and the embedded prompt: images in -1..1 -> outputs of the U-Net's `blocks` on the way up."""

    def __init__(self, vae: nn.Module, unet: nn.Module, prompt: torch.Tensor, alpha: float, blocks: Sequence[int]):
        super().__init__()
        vae.decoder = vae.post_quant_conv = None
        self.vae, self.unet, self.blocks = vae, unet, tuple(blocks)
        self.register_buffer("prompt", prompt)  # [1, words, width]
        self.register_buffer("alpha", torch.tensor(alpha))

    def forward(self, images: torch.Tensor, timestep: int, seed: int) -> list[torch.Tensor]:
        """Activations [V, c, h, w], one for each of `blocks`, in their order.

        Two draws of noise stand for what the release draws anew each time: of the latent around its mean, and of the
        step. They come from `seed` and are the same for every image, so that no image depends on its company.
        """
        posterior = self.vae.encode(images).latent_dist
        generator = torch.Generator().manual_seed(seed)
        first, second = (
            torch.randn(posterior.mean.shape[1:], generator=generator).to(posterior.mean) for _ in range(2)
        )
        latent = (posterior.mean + posterior.std * first) * self.vae.config.scaling_factor
        # Forward process of DDPM (Ho et al., NeurIPS 2020, Eq. 4).
        alpha = self.alpha.to(latent.dtype)
        noisy = alpha.sqrt() * latent + (1 - alpha).sqrt() * second
        return self._way_up(noisy, timestep)

    def _way_up(self, noisy: torch.Tensor, timestep: int) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        last = max(self.blocks)

        def keep(block: int, output: torch.Tensor) -> None:
            found[block] = output
            if block == last:
                raise _Reached  # what comes after costs most and is not wanted

        hooks = [
            self.unet.up_blocks[i].register_forward_hook(lambda _, __, output, i=i: keep(i, output)) for i in self.blocks
        ]
        try:
            self.unet(noisy, timestep, encoder_hidden_states=self.prompt.to(noisy.dtype).expand(len(noisy), -1, -1))
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return [found[i] for i in self.blocks]


@TEACHERS.register_module()
class DiffusionTeacher(Teacher):
    """Stable Diffusion v1-5 as CUA-O3D reads it (after DIFT, Tang et al., NeurIPS 2023): float32 [V, 3200, H / 8, W / 8].

    The image is encoded, noised once to `timestep`, and shown to the U-Net with the prompt; the outputs of its up blocks
    0, 1 and 2 (1280, 1280 and 640 channels) are brought to the grid of the latent by bicubic resampling and stacked.

    weight: a local folder in diffusers' layout. pretrained: fetch `hub` instead. random_init: neither, for tests only.
    image_size: the longer side; CUA-O3D takes 480 x 640.
    seed: of the noise; the release does not fix it, its features differ from run to run.
    model_args: `dict(unet=..., vae=...)`, configs of diffusers' classes, for a tiny variant with random_init.
    """

    patch = 8
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(
        self,
        weight: str | Path | None = None,
        pretrained: bool = False,
        random_init: bool = False,
        hub: str = HUB,
        image_size: int | Sequence[int] | None = 640,
        timestep: int = 100,
        blocks: Sequence[int] = (0, 1, 2),
        prompt: str = "",
        seed: int = 0,
        model_args: dict[str, dict] | None = None,
        cache: str | Path | None = None,
        max_batch: int = 4,
        precision: str = "float32",
    ):
        super().__init__(image_size, cache, max_batch, precision)
        choose_source("Stable Diffusion", weight, pretrained, random_init, HOW)
        if model_args and not random_init:
            raise ValueError("DiffusionTeacher: model_args describe a network with random_init=True; weights bring their own")
        self.timestep, self.blocks, self.seed, self.prompt = int(timestep), tuple(blocks), int(seed), prompt
        _import("diffusers")
        if random_init:
            vae, unet, scheduler, text = _random(model_args or {})
        else:
            vae, unet, scheduler, text = _load(_folder(weight) if weight else hub, prompt, bool(weight))
        count, steps = len(unet.up_blocks), scheduler.config.num_train_timesteps
        if not self.blocks or len(set(self.blocks)) != len(self.blocks) or not all(0 <= i < count for i in self.blocks):
            raise ValueError(f"DiffusionTeacher: blocks must be different numbers of 0..{count - 1}, got {self.blocks}")
        if not 0 <= self.timestep < steps:
            raise ValueError(f"DiffusionTeacher: timestep must lie in 0..{steps - 1}, got {self.timestep}")
        channels = list(unet.config.block_out_channels)[::-1]
        self.dim = sum(channels[i] for i in self.blocks)
        self.patch = 2 ** (len(vae.config.block_out_channels) - 1)
        self.adopt(OneStep(vae, unet, text, float(scheduler.alphas_cumprod[self.timestep]), self.blocks))

    @property
    def name(self) -> str:
        return "stable_diffusion"

    @property
    def options(self) -> dict[str, Any]:
        return {**super().options, "timestep": self.timestep, "blocks": self.blocks, "seed": self.seed, "prompt": self.prompt}

    def features(self, images: torch.Tensor) -> torch.Tensor:
        size = tuple(side // self.patch for side in images.shape[-2:])
        levels = self.network(images, self.timestep, self.seed)
        levels = [
            level if level.shape[-2:] == size else F.interpolate(level.float(), size, mode="bicubic", align_corners=False)
            for level in levels
        ]
        return torch.cat([level.float() for level in levels], dim=1)


def _import(package: str) -> Any:
    try:
        return __import__(package)
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ImportError(f"DiffusionTeacher needs {package}, which cannot be imported here ({error}); run '{EXTRA}'") from error


def _folder(weight: str | Path) -> Path:
    folder = Path(weight).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r} of Stable Diffusion. {HOW}")
    missing = [part for part in ("vae", "unet", "scheduler", "text_encoder", "tokenizer") if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: no folder of Stable Diffusion in diffusers' layout. {HOW}")
    return folder


def _load(source: str | Path, prompt: str, local: bool) -> tuple[nn.Module, nn.Module, Any, torch.Tensor]:
    """VAE, U-Net, scheduler and the embedded prompt of a folder or of the hub; safetensors only."""
    diffusers, transformers = _import("diffusers"), _import("transformers")
    options = dict(local_files_only=local)
    try:
        vae, unet = (
            cls.from_pretrained(source, subfolder=part, use_safetensors=True, **options)
            for cls, part in ((diffusers.AutoencoderKL, "vae"), (diffusers.UNet2DConditionModel, "unet"))
        )
        scheduler = diffusers.DDIMScheduler.from_pretrained(source, subfolder="scheduler", **options)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **options)
        encoder = transformers.CLIPTextModel.from_pretrained(
            source, subfolder="text_encoder", use_safetensors=True, **options
        ).eval()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        if local:
            raise ValueError(f"{source}: not a readable folder of Stable Diffusion ({type(error).__name__}: {first})") from error
        raise RuntimeError(f"could not download {source} ({type(error).__name__}: {first}). {HOW}") from error
    length = encoder.config.max_position_embeddings
    words = tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt").input_ids
    if words.shape[1] > length:
        raise ValueError(f"the prompt {prompt[:60]!r} has {words.shape[1]} word pieces, Stable Diffusion reads {length}")
    with torch.no_grad():
        return vae, unet, scheduler, encoder(words)[0].float()


def _random(arguments: dict[str, dict]) -> tuple[nn.Module, nn.Module, Any, torch.Tensor]:
    """The same with random weights and a prompt of zeros."""
    diffusers = _import("diffusers")
    # Stable Diffusion v1-5's configs, where they differ from the classes' defaults.
    unet = diffusers.UNet2DConditionModel(**{"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64, **arguments.get("unet", {})})
    blocks = [128, 256, 512, 512]
    vae = diffusers.AutoencoderKL(**{
        "block_out_channels": blocks, "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2, **arguments.get("vae", {}),
    })  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return vae, unet, scheduler, torch.zeros(1, 77, unet.config.cross_attention_dim)
