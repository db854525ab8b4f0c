"""How the two text-aligned pocket teachers are made, and the words for what stands in rooms.

- text: every pixel towards the embedding of the words for what it shows, against all other words (LSeg, Li et al.,
  ICLR 2022, Eq. 1-3), image and text network together.
- sentence: the same towards a sentence encoder that stays as it is, as LSeg's CLIP does.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointcept3m.engines.pocket_common import (
    CATEGORY_NAMES,
    DIMS,
    SEGMENT_NAMES,
    TO_NAMED_SEGMENT,
    Frames,
    augment,
    fit,
    normalise,
    random_crop,
    relabel,
)
from pointcept3m.models.teachers.pocket import PocketNet, PocketText, finish
from pointcept3m.models.text import SentenceEncoder

# Other words for ScanNet's categories; each is another way to ask for the same pixels.
SYNONYMS = {
    "couch": ["sofa", "settee", "loveseat"], "sofa": ["couch", "settee", "loveseat"],
    "armchair": ["easy chair", "lounge chair"], "office chair": ["desk chair", "swivel chair"], "chair": ["seat", "side chair"],
    "table": ["dining table", "tabletop"], "coffee table": ["low table", "side table"], "desk": ["writing desk", "work desk"],
    "refrigerator": ["fridge", "freezer"], "bookshelf": ["bookcase", "shelf", "shelves", "shelving"],
    "cabinet": ["cupboard", "closet", "wardrobe", "dresser"], "kitchen cabinet": ["kitchen cupboard", "wall cabinet"],
    "nightstand": ["night stand", "bedside table"], "tv stand": ["television stand", "media console"],
    "counter": ["countertop", "worktop", "kitchen counter"], "sink": ["washbasin", "basin"], "bathtub": ["bath", "tub"],
    "toilet": ["toilet bowl", "lavatory"], "lamp": ["light", "floor lamp", "table lamp"], "pillow": ["cushion"],
    "trash can": ["garbage can", "waste bin", "rubbish bin"], "radiator": ["heater"], "ottoman": ["footstool", "pouf", "stool"],
    "plant": ["potted plant", "flower pot"], "box": ["carton", "cardboard box"], "monitor": ["computer screen", "display"],
    "tv": ["television"], "books": ["book"], "picture": ["painting", "poster", "photo frame"], "curtain": ["drape", "blinds"],
    "window": ["window pane"], "door": ["doorway", "entrance door"], "floor": ["ground", "flooring"], "ceiling": ["roof"],
    "wall": ["partition wall"], "bed": ["mattress", "bedstead"], "rug": ["carpet", "mat"], "microwave": ["microwave oven"],
    "vase": ["pot", "bowl"], "mirror": ["looking glass"],
}  # fmt: skip
ADJECTIVES = (
    "small large old new red blue green white black grey brown dark bright round square tall low long soft empty clean dirty "
    "modern cheap broken painted open closed left right nearest second my this some"
).split()
# Held out, as QUERIES are: never seen in training, used to score how free text lands.
UNSEEN_ADJECTIVES = "wooden metal leather antique yellow plastic narrow folded".split()


# What a person would ask for without naming it, and the categories that answer.
QUERIES = {
    "somewhere to sit": ["chair", "office chair", "armchair", "couch", "ottoman"], "a place to sleep": ["bed"],
    "something to read": ["books", "bookshelf"], "where to wash hands": ["sink"], "it keeps milk fresh": ["refrigerator"],
    "relax in warm water": ["bathtub"], "it has to be flushed": ["toilet"], "put your clothes away": ["cabinet"],
    "a surface to write a letter on": ["desk"], "daylight comes in through it": ["window"], "pull it to shut out the sun": ["curtain"],
    "it opens to the corridor": ["door"], "switch it on when it is dark": ["lamp"], "put paper waste into it": ["trash can"],
    "a living thing with leaves": ["plant"], "art to look at": ["picture"], "warm up soup": ["microwave"],
    "rest your head on it": ["pillow"], "people walk on it": ["floor"], "guests eat here": ["table"],
}  # fmt: skip
# What an encoder of whole sentences reads a phrase in.
SENTENCES = ("{}", "a {}", "the {}", "a {} in a scene", "there is a {} in the room", "a photo of a {}")


def phrases(
    classes: list[str], generator: torch.Generator, held_out: bool = False, made_up: bool = True
) -> list[str]:
    """One way to say each class: its name or a synonym, often with an adjective (`held_out`: one never trained on).

    `made_up`: also with words of random letters.
    """

    def pick(options: list[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    out = []
    for name in classes:
        noun = name if held_out or torch.rand((), generator=generator) < 0.5 else pick([name, *SYNONYMS.get(name, [])])
        chance = float(torch.rand((), generator=generator))
        if held_out:
            noun = f"{pick(UNSEEN_ADJECTIVES)} {noun}"
        elif chance < 0.4:
            noun = f"{pick(ADJECTIVES)} {noun}"
        elif chance < 0.7 and made_up:  # a made-up word: what is not known should count for little
            letters = torch.randint(97, 123, (int(torch.randint(3, 9, (), generator=generator)),), generator=generator)
            noun = f"{bytes(letters.tolist()).decode()} {noun}"
        out.append(noun)
    return out


def train_text(frames: Frames, steps: int, batch: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the text teacher, image and text network."""
    generator = torch.Generator().manual_seed(seed)
    dim = DIMS["text"]
    net, text = PocketNet(dim, trainable=True).to(memory_format=torch.channels_last), PocketText(dim)
    scale = nn.Parameter(torch.tensor(math.log(10.0)))
    weight = _class_weights(frames.category, len(CATEGORY_NAMES))
    coarse_weight = _class_weights(relabel(frames.category, TO_NAMED_SEGMENT), len(SEGMENT_NAMES))

    def loss_of(step: int) -> Tensor:
        part = frames.select(torch.randint(len(frames), (batch,), generator=generator))
        images, labels = random_crop(part, generator)
        maps = finish(net(normalise(augment(images, generator))), "text")
        labels, sharp = labels[:, 2::4, 2::4].flatten(), scale.clamp(max=math.log(50.0)).exp()
        cell = (labels >= 0).nonzero()[:, 0]
        cell = cell[torch.randperm(len(cell), generator=generator)[:6000]]
        pixels, labels = maps.movedim(1, -1).flatten(0, 2)[cell], labels[cell]

        def match(words: Tensor, target: Tensor, weight: Tensor) -> Tensor:
            return F.cross_entropy(pixels @ words.T * sharp, target, weight=weight, ignore_index=-1)

        words, other = (text(phrases(CATEGORY_NAMES, generator)) for _ in range(2))
        coarse = text(phrases(SEGMENT_NAMES, generator))
        pixel_loss = match(words, labels, weight) + 0.5 * match(
            coarse, relabel(labels, TO_NAMED_SEGMENT), coarse_weight
        )
        # Two phrases for one category agree, those for others stay apart, also where no pixel shows them.
        return pixel_loss + 0.2 * F.cross_entropy(words @ other.T * 10, torch.arange(len(words)))

    fit([*net.parameters(), *text.parameters(), scale], loss_of, steps, 4e-3, "text")
    weights = {f"image.{key}": value for key, value in net.export().items()}
    return weights | {f"text.{key}": value.detach() for key, value in text.state_dict().items()}


def train_sentence(frames: Frames, steps: int, batch: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Weights of the sentence teacher: the image network alone, in the space of a frozen `SentenceEncoder`.

    MiniLM's vectors of any two nouns have a cosine near 0.4, a part that says nothing. What a pixel is drawn to is
    therefore its category's mean vector less the mean of all categories; texts keep their plain vectors, and pixels
    are compared with them by plain cosine. Synonyms, adjectives and sentences around them are drawn anew each step.
    """
    generator = torch.Generator().manual_seed(seed)
    net = PocketNet(DIMS["sentence"], trainable=True).to(memory_format=torch.channels_last)
    scale = nn.Parameter(torch.tensor(math.log(20.0)))
    weight = _class_weights(frames.category, len(CATEGORY_NAMES))
    coarse_weight = _class_weights(relabel(frames.category, TO_NAMED_SEGMENT), len(SEGMENT_NAMES))
    embed = SentenceTable()
    target = embed.category_vectors()

    def loss_of(step: int) -> Tensor:
        part = frames.select(torch.randint(len(frames), (batch,), generator=generator))
        images, labels = random_crop(part, generator)
        maps = finish(net(normalise(augment(images, generator))), "sentence")
        labels, sharp = labels[:, 2::4, 2::4].flatten(), scale.clamp(max=math.log(50.0)).exp()
        cell = (labels >= 0).nonzero()[:, 0]
        cell = cell[torch.randperm(len(cell), generator=generator)[:6000]]
        pixels, labels = maps.movedim(1, -1).flatten(0, 2)[cell], labels[cell]

        def match(names: list[str], target: Tensor, weight: Tensor) -> Tensor:
            words = embed(_sentences(phrases(names, generator, made_up=False), generator))
            return F.cross_entropy(pixels @ words.T * sharp, target, weight=weight, ignore_index=-1)

        pixel_loss = match(CATEGORY_NAMES, labels, weight)
        pixel_loss = pixel_loss + 0.5 * match(SEGMENT_NAMES, relabel(labels, TO_NAMED_SEGMENT), coarse_weight)
        # Without this the network finds the directions that tell these words apart, not those that others share.
        share = weight[labels]
        return pixel_loss + 4 * ((1 - (pixels * target[labels]).sum(1)) * share).sum() / share.sum()

    fit([*net.parameters(), scale], loss_of, steps, 4e-3, "sentence")
    return {f"image.{key}": value for key, value in net.export().items()}


class SentenceTable:
    """Vectors [K, 384] of texts by `SentenceEncoder()`, each distinct text embedded once."""

    def __init__(self):
        self.encoder = SentenceEncoder()
        self.known: dict[str, Tensor] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            self.known.update(zip(new, self.encoder(new), strict=True))
        return torch.stack([self.known[text] for text in texts])

    def category_vectors(self) -> Tensor:
        """Unit vectors [categories, 384]: the mean over synonyms and sentences, less the mean over categories."""
        rows = []
        for name in CATEGORY_NAMES:
            words = [name, *SYNONYMS.get(name, [])]
            rows.append(self([sentence.format(word) for word in words for sentence in SENTENCES]).mean(0))
        rows = F.normalize(torch.stack(rows), dim=1)
        return F.normalize(rows - rows.mean(0), dim=1)


def _sentences(words: list[str], generator: torch.Generator) -> list[str]:
    chosen = torch.randint(len(SENTENCES), (len(words),), generator=generator).tolist()
    return [SENTENCES[index].format(word) for index, word in zip(chosen, words, strict=True)]


def _class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Inverse square root of how often each class occurs, mean 1, rare ones limited."""
    count = torch.bincount(labels[labels >= 0], minlength=num_classes).float()
    weight = (count.sum() / count.clamp(min=1)).sqrt().clamp(max=60)
    return weight / weight.mean()
