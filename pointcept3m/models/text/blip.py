"""BLIP's text encoder, whose class token CrossOver takes for a referral."""

from pathlib import Path
from typing import Any

import torch

from pointcept3m.models.builder import TEXT_ENCODERS
from pointcept3m.models.teachers.base import choose_source, load_exactly, read_weights, weights_digest
from pointcept3m.models.text.base import TextEncoder

HOW = (
    "Download 'model_large.pth' (BLIP w/ ViT-L, 129M images) from the README of github.com/salesforce/BLIP, or run 'hf download "
    "Salesforce/blip-itm-large-coco', and pass weight='<path>' and tokenizer='<folder with the vocab.txt of bert-base-uncased>'"
)
PREFIX = "text_encoder."
SHAPE = {"vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024, "num_attention_heads": 12, "num_hidden_layers": 12}


@TEXT_ENCODERS.register_module()
class BlipTextEncoder(TextEncoder):
    """Sentences to unit vectors, 768-d: the class token of BLIP ViT-L's text encoder, without an image.

    weight: the authors' `model_large.pth`, or the weight file of a BLIP model of the hub with a text encoder
        (Salesforce/blip-itm-large-coco); entries of `text_encoder.*` are taken. random_init: none, for tests only.
    tokenizer: folder of bert-base-uncased's tokenizer (a vocab.txt is enough).
    model_args: entries of transformers' BlipTextConfig that differ from ViT-L's, such as the depth of a tiny variant.

    Source: Li et al., "BLIP: Bootstrapping Language-Image Pre-training", ICML 2022. The release of CrossOver leaves a
    vector at its own length and skips texts of more than 512 tokens; here vectors have length 1, and such a text is an error.
    """

    def __init__(
        self,
        weight: str | Path | None = None,
        tokenizer: str | Path | None = None,
        random_init: bool = False,
        model_args: dict[str, Any] | None = None,
        max_batch: int = 64,
    ):
        choose_source("BLIP", weight, None, random_init, HOW, what="text encoder")
        transformers, network = _import_transformers()
        if tokenizer is None:
            raise ValueError(f"BLIP's text encoder needs its tokenizer. {HOW}")
        if not Path(tokenizer).is_dir():
            raise FileNotFoundError(f"BLIP: no tokenizer folder {str(tokenizer)!r}. {HOW}")
        vocabulary = Path(tokenizer) / "vocab.txt"
        if not vocabulary.is_file():
            raise FileNotFoundError(f"{vocabulary}: no such file, BLIP reads the words of bert-base-uncased from it. {HOW}")
        config = transformers.BlipTextConfig(**{**SHAPE, **(model_args or {})})
        self.max_batch, self.max_tokens = int(max_batch), int(config.max_position_embeddings)
        self.tokenizer = transformers.BertTokenizer(str(vocabulary))
        self.dim = int(config.hidden_size)
        self.network = network(config, add_pooling_layer=False)
        if weight:
            load_exactly(self.network, text_weights(read_weights(weight, HOW), str(weight)), str(weight), optional=("embeddings.position_ids", "pooler."))
        self.network.eval().requires_grad_(False)
        self.name = f"blip_large_{weights_digest(self.network)[:8]}"

    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.cat([self._embed(texts[i : i + self.max_batch]) for i in range(0, len(texts), self.max_batch)])

    def _embed(self, texts: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(texts, padding="longest", return_tensors="pt")
        if tokens.input_ids.shape[1] > self.max_tokens:
            longest = int(tokens.attention_mask.sum(1).argmax())
            raise ValueError(f"BLIP reads {self.max_tokens} word pieces, a text has {tokens.input_ids.shape[1]}: {texts[longest][:60]!r}...")
        network = self.network.to(self.device)
        out = network(input_ids=tokens.input_ids.to(self.device), attention_mask=tokens.attention_mask.to(self.device), is_decoder=False)
        return out.last_hidden_state[:, 0]


def text_weights(weights: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The text encoder's tensors of a BLIP file. Raises ValueError where it holds none."""
    found = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    if not found:
        raise ValueError(f"{source}: holds no text encoder of BLIP (no key starts with {PREFIX!r}); first keys: {', '.join(list(weights)[:3])}")
    return found


def _import_transformers() -> tuple[Any, Any]:
    try:
        import transformers
        from transformers.models.blip.modeling_blip_text import BlipTextModel
    except Exception as error:  # a torchvision built for another torch fails with RuntimeError
        raise ImportError(f"BlipTextEncoder needs transformers, which cannot be imported here ({error}); run 'pip install transformers'") from error
    return transformers, BlipTextModel
