"""A recipe: which frozen encoders look at the modalities, and at what size. The entry point of raw inputs, too."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from pointcept3m.models.builder import SHAPE_ENCODERS, TEACHERS, TEXT_ENCODERS
from pointcept3m.models.shapes import ShapeEncoder
from pointcept3m.models.teachers import Teacher
from pointcept3m.models.text import TextEncoder
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.registry import near_names

# image, shape, text: what TEACHERS, SHAPE_ENCODERS and TEXT_ENCODERS build; one that is None leaves its modalities out. Several
# image encoders in a list give their vectors side by side, each of unit length.
# frame_size: (height, width), or the longer side, at which key frames and floorplans are looked at; crop_size: the side of
# crops of objects. The paper's figures (Sec. 4) are DINOv2 ViT-g/14 at 224 x 224, I2P-MAE of Point-Bind, BLIP ViT-L.
RECIPES: dict[str, dict[str, Any]] = {
    "pocket": dict(
        image=[dict(type="PocketTeacher", name=name, image_size=None) for name in ("geometric", "diffusion")],
        shape=dict(type="PocketShape"),
        text=dict(type="ReferralEncoder"),
        frame_size=160,
        crop_size=96,
    ),
    "paper": dict(
        image=dict(type="TimmTeacher", model_name="vit_giant_patch14_dinov2"),
        shape=dict(type="I2PMAE"),
        text=dict(type="BlipTextEncoder"),
        frame_size=(224, 224),
        crop_size=224,
    ),
}
PARTS = {"image": TEACHERS, "shape": SHAPE_ENCODERS, "text": TEXT_ENCODERS}
PART_OF = {"image": "image", "floorplan": "image", "point": "shape", "cad": "shape", "text": "text"}  # by modality
KEYS = ("name", *PARTS, "frame_size", "crop_size")


class Recipe:
    """Frozen encoders on one device. A part that the recipe leaves out is None; its methods raise ValueError.

    name: becomes a file's · config: the dict that builds it again · encoders: modality -> fingerprint of what makes its
    vectors · widths: as `ModalityFeatures.widths` has them.
    """

    def __init__(self, name: str, config: Mapping[str, Any], device: str = "cpu", batch: int = 64):
        self.name, self.config, self.device, self.batch = name, dict(config), device, batch
        self.images: list[Teacher] = self._build("image") or []
        self.shape: ShapeEncoder | None = self._build("shape")
        self.text: TextEncoder | None = self._build("text")
        size = self.config.get("frame_size", 224)
        self.frame_size: int | tuple[int, int] = size if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.crop_size = int(self.config.get("crop_size", 224))

    def _build(self, part: str) -> Any:
        config = self.config.get(part)
        if config is None:
            return None
        try:
            several = [config] if isinstance(config, Mapping) else config
            built = [PARTS[part].build(one).to(self.device) for one in several]
        except (ValueError, FileNotFoundError, ImportError) as error:
            add_note(error, f"recipe {self.name!r}: weights are given by --weight {part}=PATH (--encoder-weight where --weight is CrossOver's); --leave-out {part} goes without")
            raise
        if part == "image":
            return built
        if len(built) != 1:
            raise ValueError(f"recipe {self.name!r}: {len(built)} encoders of {part}, wanted one; only images may have several")
        return built[0]

    @property
    def encoders(self) -> dict[str, str]:
        """Modality (image, floorplan, point, cad, text) -> what tells its vectors from others'."""
        made: dict[str, str] = {}
        if self.images:
            size = self.frame_size if isinstance(self.frame_size, int) else "x".join(map(str, self.frame_size))
            both = "+".join(teacher.fingerprint for teacher in self.images)
            made["image"], made["floorplan"] = f"{both}/frames {size}/crops {self.crop_size}", f"{both}/frames {size}"
        if self.shape is not None:
            made["point"] = made["cad"] = self.shape.fingerprint
        if self.text is not None:
            made["text"] = self.text.name
        return made

    @property
    def widths(self) -> dict[str, int]:
        """Widths of object_image, object_point, object_cad, object_text, image_token, floorplan_token and text_token."""
        made = {}
        if self.images:
            dim = sum(teacher.dim for teacher in self.images)
            made |= {"object_image": dim, "image_token": 2 * dim, "floorplan_token": 2 * dim}
        if self.shape is not None:
            made |= {"object_point": self.shape.dim, "object_cad": self.shape.dim}
        if self.text is not None:
            made |= {"object_text": self.text.dim, "text_token": self.text.dim}
        return made

    def image_tokens(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """[class token; mean of patches] of whole pictures uint8 [H, W, 3]: float32 [V, 2D]."""
        self._require("image")
        sized = [_resized(_checked(image, row), self._frame_size(image)) for row, image in enumerate(images)]
        rows = np.zeros((len(sized), self.widths["image_token"]), np.float32)
        for size in dict.fromkeys(image.shape for image in sized):  # pictures of one size go together
            members = [row for row, image in enumerate(sized) if image.shape == size]
            for start in range(0, len(members), self.batch):
                some = members[start : start + self.batch]
                rows[some] = np.concatenate(self._look([sized[row] for row in some]), axis=1)
        return rows

    def image_crops(self, crops: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Class tokens of pictures of objects uint8 [h, w, 3], each resized to a square: float32 [N, D]."""
        self._require("image")
        rows = [np.zeros((0, self.widths["object_image"]), np.float32)]
        for start in range(0, len(crops), self.batch):
            some = crops[start : start + self.batch]
            sized = [_resized(_checked(crop, start + row), (self.crop_size, self.crop_size)) for row, crop in enumerate(some)]
            rows.append(self._look(sized)[0])
        return np.concatenate(rows)

    def _look(self, images: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(class tokens [V, D], means of patches [V, D]) of pictures of one size; of several encoders side by side."""
        batch = torch.from_numpy(np.stack(images)).to(self.device).movedim(-1, 1).float() / 255
        first, mean = [], []
        for teacher in self.images:
            token, patches = teacher.tokens(batch)
            pair = token, patches.mean(1)
            if not all(torch.isfinite(part).all() for part in pair):
                raise ValueError(f"{teacher.name} gave values that are not finite for a picture")
            pair = [F.normalize(part, dim=1) for part in pair] if len(self.images) > 1 else pair
            first.append(pair[0])
            mean.append(pair[1])
        return torch.cat(first, dim=1).cpu().numpy(), torch.cat(mean, dim=1).cpu().numpy()

    def shapes(self, points: Sequence[NDArray]) -> NDArray[np.float32]:
        """Vectors float32 [N, Dp] of objects with points [S, 3] each."""
        return self._require("shape")(points).numpy()

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors float32 [T, Dt]."""
        return self._require("text")(texts).numpy()

    def _require(self, part: str) -> Any:
        parts = {"image": self.images, "shape": self.shape, "text": self.text}
        if not parts[part]:
            raise ValueError(f"recipe {self.name!r} has no encoder of {part}; its parts: {', '.join(name for name in parts if parts[name])}")
        return parts[part]

    def _frame_size(self, image: NDArray) -> tuple[int, int]:
        """(H, W), multiples of the patch, at which the encoder sees a whole picture."""
        height, width = image.shape[:2]
        if isinstance(self.frame_size, tuple):
            height, width = self.frame_size
        else:
            scale = self.frame_size / max(height, width)
            height, width = height * scale, width * scale
        patch = math.lcm(*(teacher.patch for teacher in self.images))
        return tuple(max(1, round(side / patch)) * patch for side in (height, width))


def build_recipe(
    recipe: str | Mapping[str, Any], device: str = "cpu", weights: Mapping[str, str] | None = None, leave_out: Sequence[str] = (), batch: int = 64
) -> Recipe:
    """The recipe of a name in RECIPES, or of a dict like those (with a "name" of its own), on `device`.

    weights: part ("image", "shape", "text") -> weight file. leave_out: parts that are not built. batch: pictures that go
    through the encoder at once.

    Raises: KeyError for an unknown name, part or entry; what encoders raise where a weight or package is missing.
    """
    return Recipe(*recipe_config(recipe, weights, leave_out), device, batch)


def recipe_config(
    recipe: str | Mapping[str, Any], weights: Mapping[str, str] | None = None, leave_out: Sequence[str] = ()
) -> tuple[str, dict[str, Any]]:
    """(name, config) of a recipe, nothing built. Raises KeyError, ValueError."""
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise KeyError(f"no recipe is called {recipe!r}; {near_names(recipe, RECIPES)}")
        name, config = recipe, dict(RECIPES[recipe])
    else:
        config = dict(recipe)
        name = str(config.pop("name", "custom"))
    for key in config:
        if key not in KEYS:
            raise KeyError(f"recipe {name!r}: {key!r} is unknown; {near_names(key, KEYS)}")
    for part in (*(weights or {}), *leave_out):
        if part not in PARTS:
            raise KeyError(f"a recipe has no part {part!r}; {near_names(part, PARTS)}")
    for part, path in (weights or {}).items():
        if config.get(part) is None:
            raise ValueError(f"recipe {name!r} has no encoder of {part}, so a weight for it has no use: {path}")
        if not isinstance(config[part], Mapping):
            raise ValueError(f"recipe {name!r} has several encoders of {part}: write their weights into the recipe")
        config[part] = {**config[part], "weight": str(path)}
    return name, {**config, **dict.fromkeys(leave_out)}


def _checked(image: NDArray, row: int) -> NDArray[np.uint8]:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"picture {row}: wanted uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return image


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))
