"""What every text encoder is: frozen, strings in, unit vectors out; and how class names become vectors."""

from collections.abc import MutableMapping, Sequence

import torch
import torch.nn.functional as F

PROMPT = "a {label} in a scene"  # OpenScene's and CUA-O3D's


class TextEncoder:
    """`encoder(texts) -> float32 [K, dim]` unit vectors, on the CPU whatever `device` the network runs on.

    No `nn.Module`, so that a model that holds one carries none of its weights. A subclass sets `dim` and `name` and
    writes `embed`; one whose space holds images too sets `reads_images` and writes `embed_images`.
    """

    dim: int
    name: str  # tells spaces apart: two encoders of one name give one text one vector
    reads_images: bool = False
    device: torch.device = torch.device("cpu")

    def embed(self, texts: list[str]) -> torch.Tensor:
        """Vectors [K, dim] of any length of at least one text."""
        raise NotImplementedError(f"{type(self).__name__} does not define embed()")

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors [V, dim] of any length of at least one image [V, 3, H, W], float32 in 0..1, on `device`."""
        raise NotImplementedError(f"{type(self).__name__} does not define embed_images()")

    @property
    def image_side(self) -> str:
        """What looks at images in this space, in words."""
        return self.name

    def to(self, device: str | torch.device) -> "TextEncoder":
        """Runs on `device` from now on; returns itself."""
        self.device = torch.device(device)
        return self

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Raises: TypeError for a bare string or what is no string; ValueError for an empty text or one too long."""
        if isinstance(texts, str):
            raise TypeError(f"{self.name}: wanted a list of texts, got the string {texts!r}; write [{texts!r}]")
        texts = list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise TypeError(f"{self.name}: wanted texts, got {type(text).__name__} {text!r}")
            if not text.strip():
                raise ValueError(f"{self.name}: an empty text cannot be embedded; got {texts!r}")
        if not texts:
            return torch.zeros(0, self.dim)
        return self._unit(self.embed(texts), len(texts))

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors float32 [V, dim], on the CPU, of whole images [V, 3, H, W] (float, 0..1): a picture as a query.

        Raises: ValueError where this space has no images in it; TypeError, ValueError where the images are not that.
        """
        if not self.reads_images:
            raise ValueError(
                f"{self.name} embeds text only, it has no image side; ask with words, or use OpenClipTextEncoder or "
                "PocketTextEncoder on a model that was distilled from a teacher of their space"
            )
        what = f"{self.name}: images must be a float tensor [V, 3, H, W] with values 0..1"
        if not isinstance(images, torch.Tensor) or not images.is_floating_point():
            raise TypeError(f"{what}, got {getattr(images, 'dtype', type(images).__name__)}")
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 1:
            raise ValueError(f"{what}, got shape {tuple(images.shape)}")
        if not len(images):
            return torch.zeros(0, self.dim)
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= -0.05 and high <= 1.05):
            raise ValueError(f"{what}, got values from {low:g} to {high:g}")
        return self._unit(self.embed_images(images.to(self.device, torch.float32)), len(images))

    def _unit(self, vectors: torch.Tensor, count: int) -> torch.Tensor:
        assert tuple(vectors.shape) == (count, self.dim), f"{self.name} gave {tuple(vectors.shape)}"
        vectors = F.normalize(vectors.detach().float(), dim=-1).cpu()
        if not torch.isfinite(vectors).all():
            raise ValueError(f"{self.name}: the weights give vectors that are not finite")
        return vectors


def embed_labels(
    encoder: TextEncoder,
    names: Sequence[str],
    prompt: str | Sequence[str] = PROMPT,
    cache: MutableMapping[tuple[str, str], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Unit vectors float32 [K, dim] of K class names, each put where `prompt` says `{label}`.

    With several prompts a name's vector is the normalised mean of the unit vectors of its sentences (CLIP's prompt
    ensemble, Radford et al., ICML 2021, Sec. 3.1.4). `prompt="{label}"` embeds the bare names. `cache`, such as a
    dict, keeps the vector of each sentence under (`encoder.name`, sentence).
    Raises: ValueError where a prompt has no `{label}`, or there is no prompt; else as `encoder` does.
    """
    if isinstance(names, str):
        raise TypeError(f"embed_labels wants a list of names, got the string {names!r}")
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError(f"embed_labels needs at least one prompt, such as {PROMPT!r}")
    for text in prompts:
        if "{label}" not in text:
            raise ValueError(f"the prompt {text!r} does not say where the name goes; write one like {PROMPT!r}")
    names = list(names)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"a class needs a name to be embedded; got {name!r} among {names!r}")
    sentences = [text.replace("{label}", name) for name in names for text in prompts]
    cache = {} if cache is None else cache
    new = [s for s in dict.fromkeys(sentences) if (encoder.name, s) not in cache]
    for sentence, vector in zip(new, encoder(new), strict=True):
        cache[encoder.name, sentence] = vector
    if not sentences:
        return torch.zeros(0, encoder.dim)
    vectors = torch.stack([cache[encoder.name, sentence] for sentence in sentences])
    return F.normalize(vectors.unflatten(0, (len(names), len(prompts))).mean(1), dim=-1)
