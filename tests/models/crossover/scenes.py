"""A batch of scenes as CrossOverDataset makes them, small and random, with gaps in every modality."""

import torch

WIDTHS = dict(object_image=16, object_point=24, object_cad=12, object_text=8, image_token=16, floorplan_token=16, text_token=10)


def make_batch(scenes=5, seed=0, missing=0.3, points=True, widths=WIDTHS):
    """`scenes` scenes of 3 to 8 objects; the first has no points. With missing=0 nothing else is missing."""
    g = torch.Generator().manual_seed(seed)
    count = torch.randint(3, 9, (scenes,), generator=g)
    rows = int(count.sum())
    known = torch.rand(rows, 4, generator=g) >= missing
    batch = dict(
        object_offset=count.cumsum(0), object_known=known, object_id=torch.arange(rows), name=[f"scene{k}" for k in range(scenes)],
        object_box=torch.rand(rows, 6, generator=g) * 4, cad_box=torch.rand(rows, 6, generator=g),
    )  # fmt: skip
    for column, name in enumerate(("image", "point", "cad", "text")):
        batch[f"object_{name}"] = torch.randn(rows, widths[f"object_{name}"], generator=g) * known[:, column, None]
    for name, most in (("image", 4), ("floorplan", 1), ("text", 3)):
        count = torch.randint(1 if missing == 0 else 0, most + 1, (scenes,), generator=g)
        batch[f"{name}_offset"], batch[f"{name}_token"] = count.cumsum(0), torch.randn(int(count.sum()), widths[f"{name}_token"], generator=g)
    count = torch.randint(60, 90, (scenes,), generator=g)
    count[0] = 0 if missing else count[0]
    total = int(count.sum()) if points else 0
    batch["offset"] = count.cumsum(0) if points else torch.zeros(scenes, dtype=torch.int64)
    batch["grid_coord"] = torch.randint(0, 12, (total, 3), generator=g)
    return batch | {"coord": batch["grid_coord"] * 0.1, "feat": torch.rand(total, 3, generator=g)}


def one_scene(batch, k):
    """The scene number k of a batch as a batch of its own."""
    alone = {"name": [batch["name"][k]]}
    for key in ("object", "image", "floorplan", "text", ""):
        offset = batch[f"{key}_offset" if key else "offset"]
        first, last = int(offset[k - 1]) if k else 0, int(offset[k])
        alone[f"{key}_offset" if key else "offset"] = torch.tensor([last - first])
        names = {"object": [n for n in batch if n.startswith("object_") and n != "object_offset"] + ["cad_box"], "": ["grid_coord", "coord", "feat"]}
        for name in names.get(key, [f"{key}_token"]):
            alone[name] = batch[name][first:last]
    return alone


