"""Two dialects of configs, told apart by where `ToTensor` stands, and what `NormalizeColor` means in each.

Pointcept puts `ToTensor` near the end, and `NormalizeColor` there has divided by 255 since 1.6.0. GaussianCross (and
Pointcept's older code, on which it stands) gives color / 127.5 - 1, and its transforms work on tensors, so that
`ToTensor` comes first. A network fed with the other range loses most of its accuracy without an error, so a bare
`dict(type="NormalizeColor")` is replaced by one that says its mode before anything is built or written down.
"""

from collections.abc import Mapping, Sequence
from typing import Any

NORMALIZE, TO_TENSOR = "NormalizeColor", "ToTensor"


def explicit_modes(transforms: Sequence[Any], tensors: bool = False) -> tuple[list[Any], bool]:
    """The chain `transforms` with a `mode` in every `NormalizeColor` (a given one stays), and whether it ends on tensors.

    Lists of configs inside a transform (the views of contrastive learning) are chains that begin where it stands.
    tensors: whether the chain begins on tensors, because a `ToTensor` of an outer chain came before. The lists and dicts
    that are passed in stay as they are.
    """
    result = []
    for entry in transforms:
        if isinstance(entry, Mapping):
            entry = type(entry)(
                {key: explicit_modes(value, tensors)[0] if _is_chain(value) else value for key, value in entry.items()}
            )
            if entry.get("type") == NORMALIZE and entry.get("mode") is None:
                entry["mode"] = "minus_one_one" if tensors else "zero_one"
            tensors = tensors or entry.get("type") == TO_TENSOR
        result.append(entry)
    return result, tensors


def explicit_section(section: Any) -> Any:
    """A dataset's config with a `mode` in every `NormalizeColor`: `transform`, the view transforms and `test_cfg`."""
    if not isinstance(section, Mapping):
        return section
    result, tensors = type(section)(section), False
    for key, value in section.items():
        if _is_chain(value):
            result[key], ends = explicit_modes(value)
            tensors = tensors or (ends and key == "transform")
        elif isinstance(value, (list, tuple)) and key == "datasets":  # data sets put together
            result[key] = [explicit_section(part) for part in value]
    if isinstance(section.get("test_cfg"), Mapping):
        result["test_cfg"] = explicit_test_cfg(section["test_cfg"], tensors)
    return result


def explicit_test_cfg(test_cfg: Mapping[str, Any], tensors: bool) -> Mapping[str, Any]:
    """`test_cfg` likewise; its chains begin where the dataset's `transform` ended, on `tensors` or on arrays."""
    result = type(test_cfg)(test_cfg)
    if isinstance(test_cfg.get("post_transform"), (list, tuple)):
        result["post_transform"] = explicit_modes(test_cfg["post_transform"], tensors)[0]
    if isinstance(test_cfg.get("aug_transform"), (list, tuple)):
        result["aug_transform"] = [explicit_modes(chain or (), tensors)[0] for chain in test_cfg["aug_transform"]]
    return result


def _is_chain(value: Any) -> bool:
    """Whether `value` is a list of transforms' configs."""
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(v, Mapping) and "type" in v for v in value)
