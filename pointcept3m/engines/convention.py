"""What a network is fed with, read off a config: range of the colours, feature channels, grid, classes.

Weights are only good with the input they were trained on, and nothing in their tensors says what that was. A checkpoint
carries its config; `check_input` compares it with the config of the run that loads it.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pointcept3m.datasets.transforms.dialect import explicit_section

from .checkpoint import saved_config

COLOR_RANGES = {
    "zero_one": "0..1 (color / 255: Pointcept since 1.6.0)",
    "minus_one_one": "-1..1 (color / 127.5 - 1: GaussianCross, Pointcept before 1.6.0)",
    "raw": "0..255 (no NormalizeColor)",
}


@dataclass(frozen=True)
class InputConvention:
    """What a config feeds to its model; None or () where it does not say.

    color: a key of COLOR_RANGES, None where colours are no feature. features: the keys whose columns make `feat`, in
    order. grid_size: metres, one number or one for each axis. num_classes: of `data`.
    """

    color: str | None = None
    features: tuple[str, ...] = ()
    grid_size: float | tuple[float, ...] | None = None
    num_classes: int | None = None

    def __str__(self) -> str:
        words = []
        if self.features:
            words.append("features " + " + ".join(self.features))
        if self.color:
            words.append("colours in " + COLOR_RANGES[self.color])
        if self.grid_size is not None:
            words.append(f"grid {self.grid_size} m")
        if self.num_classes is not None:
            words.append(f"{self.num_classes} classes")
        return ", ".join(words) or "nothing is said about it"


def input_convention(cfg: Mapping[str, Any], section: str = "") -> InputConvention:
    """What `cfg.data[section]` feeds, by default the first of train, test and val.

    Raises: ValueError where one chain of transforms normalises colours in two ways.
    """
    data = cfg.get("data") or {}
    names = [section] if section else ["train", "test", "val"]
    part = next((data[name] for name in names if isinstance(data.get(name), Mapping) and data[name]), {})
    entries = list(_transforms(explicit_section(part)))
    features = next((keys for entry in entries for keys in _features(entry)), ())
    modes = {entry.get("mode", "zero_one") for entry in entries if entry.get("type") == "NormalizeColor"}
    if len(modes) > 1:
        raise ValueError(f"data: NormalizeColor stands in one data set with two modes, {' and '.join(sorted(modes))}")
    color = None if features and "color" not in features else modes.pop() if modes else "raw" if features else None
    # The last one makes the cells of the network; one before it thins the cloud.
    grid = next((entry["grid_size"] for entry in reversed(entries) if entry.get("type") == "GridSample" and "grid_size" in entry), None)
    return InputConvention(
        color, features, tuple(grid) if isinstance(grid, (list, tuple)) else grid, data.get("num_classes")
    )


def check_sections(cfg: Mapping[str, Any]) -> None:
    """Raises ValueError where the model would be evaluated or tested on another input than it is trained on."""
    data = cfg.get("data") or {}
    found = {name: input_convention(cfg, name) for name in ("train", "val", "test") if isinstance(data.get(name), Mapping)}
    names = list(found)
    for first, second in zip(names, names[1:], strict=False):
        one, other = found[first], found[second]
        if one.color and other.color and one.color != other.color:
            raise ValueError(
                f"data.{first} feeds colours in {COLOR_RANGES[one.color]}, data.{second} in {COLOR_RANGES[other.color]}; "
                "give both the same dict(type='NormalizeColor', mode=...)"
            )
        if one.features and other.features and one.features != other.features:
            raise ValueError(f"data.{first} feeds {' + '.join(one.features)}, data.{second} {' + '.join(other.features)}")


def check_input(
    path: str | Path,
    cfg: Mapping[str, Any],
    weight_color: str | None = None,
    check: bool = True,
    section: str = "",
    logger: logging.Logger | None = None,
) -> InputConvention | None:
    """Compares what the weights in `path` were trained on with what `cfg` feeds; returns the former, None if unknown.

    weight_color: what range the colours had in that training, a key of COLOR_RANGES, for files that do not say; wins over
    what the file says. check: False makes a difference a warning. section: of `cfg.data`, "test" for a test.
    logger: gets a line about the file's input; a warning where the file says nothing and the config feeds colours.

    Raises: ValueError where colours or features differ, as the weights would load and predict nonsense.
    """
    if weight_color is not None and weight_color not in COLOR_RANGES:
        raise ValueError(f"weight_color must be one of {', '.join(COLOR_RANGES)}, got {weight_color!r}")
    logger = logger or logging.getLogger("pointcept3m")
    ours = input_convention(cfg, section)
    try:
        saved = saved_config(path)
    except ValueError as error:  # a config with objects in it, say: what the weights expect is unknown, no more
        logger.warning(str(error))
        saved = None
    theirs = input_convention(saved) if saved else InputConvention()
    if weight_color:
        theirs = InputConvention(weight_color, theirs.features, theirs.grid_size, theirs.num_classes)
    if saved:
        logger.info(f"weights: {path} were trained on {theirs}")
    elif not weight_color and ours.color in ("zero_one", "minus_one_one"):
        other = "minus_one_one" if ours.color == "zero_one" else "zero_one"
        logger.warning(
            f"weights: {path} do not say what range colours had in their training. This run feeds {COLOR_RANGES[ours.color]}; "
            f"if it was {COLOR_RANGES[other]}, most of the accuracy is lost without an error. "
            f"CheckpointLoader(weight_color={ours.color!r} or {other!r}) says which it was and ends this warning"
        )
    problems = _differences(path, theirs, ours)
    if problems and check:
        raise ValueError("\n".join(problems))
    for problem in problems:
        logger.warning(f"{problem} (check_input=False: loaded all the same)")
    if theirs.grid_size is not None and ours.grid_size is not None and theirs.grid_size != ours.grid_size:
        logger.warning(f"weights: {path} were trained on a grid of {theirs.grid_size} m, this run has {ours.grid_size} m")
    return theirs if saved or weight_color else None


def _differences(path: str | Path, theirs: InputConvention, ours: InputConvention) -> list[str]:
    ways = (
        "  hooks: dict(type='CheckpointLoader', check_input=False) loads them all the same, weight_color='...' corrects what is "
        "said of the file (--options hooks.0.check_input=False)"
    )
    problems = []
    if theirs.color and ours.color and theirs.color != ours.color:
        mode = f"dict(type='NormalizeColor', mode={theirs.color!r})" if theirs.color != "raw" else "no NormalizeColor"
        problems.append(
            f"weights: {path} were trained on colours in {COLOR_RANGES[theirs.color]}, this config feeds {COLOR_RANGES[ours.color]}\n"
            f"  {mode} in the transforms of data feeds what they know\n{ways}"
        )
    if theirs.features and ours.features and theirs.features != ours.features:
        problems.append(
            f"weights: {path} were trained on {' + '.join(theirs.features)}, this config feeds {' + '.join(ours.features)}\n"
            f"  Collect(feat_keys={theirs.features!r}) in the transforms of data feeds what they know\n{ways}"
        )
    return problems


def _transforms(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every dict with a `type` in `node`, in order, those within others too."""
    if isinstance(node, Mapping):
        if "type" in node:
            yield node
        for value in node.values():
            yield from _transforms(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _transforms(value)


def _features(entry: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The keys that a Collect puts side by side as `feat`, or as a view's `view1_feat`, without the view's prefix."""
    if entry.get("type") != "Collect":
        return
    for name, keys in entry.items():
        if name == "feat_keys" or name.endswith("_feat_keys"):
            prefix = name.removesuffix("feat_keys")
            listed = (keys,) if isinstance(keys, str) else tuple(keys)
            yield tuple(key.removeprefix(prefix) for key in listed)
