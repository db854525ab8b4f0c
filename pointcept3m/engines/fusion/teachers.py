"""How a command line names teachers: presets, files of dicts, dicts. A name becomes the folder of the features."""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pointcept3m.models.builder import TEACHERS
from pointcept3m.models.teachers import Teacher
from pointcept3m.utils.config import Config
from pointcept3m.utils.errors import add_note
from pointcept3m.utils.files import near_files
from pointcept3m.utils.registry import near_names

# Image sizes and layers as CUA-O3D's release has them; means and deviations are the models' own. `download` stands for
# the argument that fetches the weights from their hub, where there is one.
PRESETS: dict[str, dict[str, Any]] = {
    "text": dict(type="PocketTeacher", name="text"),
    "sentence": dict(type="PocketTeacher", name="sentence"),
    "geometric": dict(type="PocketTeacher", name="geometric"),
    "diffusion": dict(type="PocketTeacher", name="diffusion"),
    "lseg": dict(type="LSegTeacher"),
    "dinov2": dict(type="TimmTeacher", model_name="vit_large_patch14_dinov2", image_size=322),
    "sd": dict(type="DiffusionTeacher", image_size=640),
    "radio": dict(type="TimmTeacher", model_name="radio_v2.5-l", image_size=320),
    "siglip": dict(type="OpenClipTeacher", model_name="ViT-B-16-SigLIP-512", image_size=512),
    "clip": dict(type="OpenClipTeacher", model_name="ViT-B-16-quickgelu", image_size=448),
}
DOWNLOAD: dict[str, dict[str, Any]] = {
    "dinov2": dict(pretrained=True),
    "sd": dict(pretrained=True),
    "radio": dict(pretrained=True),
    "siglip": dict(pretrained="webli"),
    "clip": dict(pretrained="openai"),
}
# LSeg is given larger pictures of some data sets, on which its scores depend (openscene#8).
BY_DATASET: dict[str, dict[str, dict[str, Any]]] = {"matterport": {"lseg": dict(image_size=1280)}, "nuscenes": {"lseg": dict(image_size=1600)}}


def teacher_configs(
    words: Sequence[str], weights: Sequence[str] = (), download: bool = False, dataset: str = "scannet"
) -> dict[str, dict[str, Any]]:
    """{name: config} of the teachers that `words` name, in their order.

    words: each a preset ("lseg"), NAME=PRESET, NAME=dict(type=...), dict(type=...) (named after its model), or a `.py`
        file with one or more `name = dict(type=...)`, which is read as data and not run.
    weights: "NAME=PATH", the weight file of a teacher.
    download: presets without a weight file fetch theirs from the hub.
    dataset: presets have the picture sizes for it.

    Raises: KeyError, ValueError, FileNotFoundError for a word that names none, a name given twice, or a weight of none.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        for name, config in _named(word, BY_DATASET.get(dataset, {})).items():
            if name in found:
                raise ValueError(f"two teachers are called {name!r}; name one of them: --teacher other={word}")
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"a teacher's name becomes a folder's: wanted letters, digits and . _ -, got {name!r}")
            found[name] = dict(config)
    for pair in weights:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ValueError(f"--weight {pair!r}: wanted NAME=PATH, for example lseg=weights/demo_e200.ckpt")
        if name not in found:
            raise KeyError(f"--weight {pair!r}: no teacher is called {name!r}; {near_names(name, found)}")
        found[name]["weight"] = path
    if download:
        by_preset = {json.dumps(PRESETS[name]): extra for name, extra in DOWNLOAD.items()}
        for config in found.values():
            config.update(by_preset.get(json.dumps(config), {}))
    return found


def _named(word: str, sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The teachers of one word; `sizes` holds what presets have in place of their own."""
    name, equals, rest = ("", "", word) if word.startswith("dict(") else word.partition("=")
    if word in PRESETS or (equals and rest in PRESETS):
        return {name: {**PRESETS[rest or word], **sizes.get(rest or word, {})}}
    if equals or word.startswith("dict("):
        config = Config.fromtext(f"teacher = {rest}", f"--teacher {word}").get("teacher")
        _check_config(config, f"--teacher {word}")
        own = config.get("name") or config.get("model_name") or config["type"]
        return {name or str(own).replace("/", "_"): config.to_dict()}
    path = Path(word)
    if path.suffix != ".py":
        raise KeyError(f"no teacher is called {word!r}; {near_names(word, PRESETS)} Or give dict(type=...), or a .py file of such")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of teachers; {near_files(path)}")
    content = Config.fromtext(path.read_text(), str(path))
    for key, config in content.items():
        _check_config(config, f"{path}, {key!r}")
    if not content:
        raise ValueError(f"{path}: no teacher in it; wanted lines like lseg = dict(type='LSegTeacher', weight='...')")
    return {key: config.to_dict() for key, config in content.items()}


def _check_config(config: Any, where: str) -> None:
    if not isinstance(config, Mapping) or "type" not in config:
        raise ValueError(f"{where}: wanted dict(type=..., ...), got {config!r}")
    TEACHERS.get(config["type"])


def build_teachers(configs: Mapping[str, Mapping[str, Any]], device: str) -> dict[str, Teacher]:
    """{name: teacher on `device`}, built once in a process. Raises as the teachers do, with the flag that mends it."""
    return {name: _build(name, json.dumps(config), device) for name, config in configs.items()}


@functools.cache
def _build(name: str, config: str, device: str) -> Teacher:
    config = json.loads(config)
    try:
        return TEACHERS.build(config).to(device)
    except (ValueError, FileNotFoundError, KeyError, ImportError) as error:
        if config["type"] != "PocketTeacher":
            add_note(error, f"weights are given by --weight {name}=PATH, or fetched with --download where a hub has them")
        raise
