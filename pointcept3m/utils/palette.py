"""Colours: of classes, of scores, of errors. The only place that knows them; imports nothing of this package."""

from collections.abc import Mapping, Sequence

import numpy as np

# ScanNet's official palette, by the 40 NYU classes; the 20 of the benchmark have the same colours.
NYU40 = {
    "wall": "aec7e8", "floor": "98df8a", "cabinet": "1f77b4", "bed": "ffbb78", "chair": "bcbd22", "sofa": "8c564b",
    "table": "ff9896", "door": "d62728", "window": "c5b0d5", "bookshelf": "9467bd", "picture": "c49c94",
    "counter": "17becf", "blinds": "b24c4c", "desk": "f7b6d2", "shelves": "42bc66", "curtain": "dbdb8d",
    "dresser": "8c39c5", "pillow": "cab934", "mirror": "33b0cb", "floor mat": "c83683", "clothes": "5cc13d",
    "ceiling": "4e47b7", "books": "ac7252", "refrigerator": "ff7f0e", "television": "5ba38a", "paper": "99629c",
    "towel": "8c9965", "shower curtain": "9edae5", "box": "647d9a", "whiteboard": "b27f87", "person": "78b980",
    "night stand": "926fc2", "toilet": "2ca02c", "sink": "708090", "lamp": "60cfd1", "bathtub": "e377c2",
    "bag": "d55cb0", "otherstructure": "5e6ad3", "otherfurniture": "5254a3", "otherprop": "645590",
}  # fmt: skip
# ScanNet200's official palette.
SCANNET200 = {
    "wall": "aec7e8", "chair": "bcbd22", "floor": "98df8a", "table": "ff9896", "door": "d62728", "couch": "5b87e5",
    "cabinet": "1f77b4", "shelf": "e55b68", "desk": "f7b6d2", "office chair": "5be56e", "bed": "ffbb78",
    "pillow": "8d5be5", "sink": "708090", "picture": "c49c94", "window": "c5b0d5", "toilet": "2ca02c",
    "bookshelf": "9467bd", "monitor": "e55bdf", "curtain": "dbdb8d", "book": "c0e55b", "armchair": "58da89",
    "coffee table": "3a6289", "box": "b152ef", "refrigerator": "ff7f0e", "lamp": "edcc25",
    "kitchen cabinet": "29ce20", "towel": "3e8f94", "clothes": "220e82", "tv": "8f2d73", "nightstand": "893f0e",
    "counter": "17becf", "dresser": "10d48b", "stool": "5a77c9", "cushion": "7d1e8d", "plant": "963538",
    "ceiling": "bac53e", "bathtub": "e377c2", "end table": "266480", "dining table": "781ff3", "keyboard": "9a3b67",
    "bag": "a9894e", "backpack": "8ff56f", "toilet paper": "25e6cd", "printer": "0e109b", "tv stand": "c433b6",
    "whiteboard": "ed5026", "blanket": "8aaf3e", "shower curtain": "9edae5", "trash can": "2660a7",
    "closet": "be4df6", "stairs": "d03154", "microwave": "d0c148", "stove": "37dc39", "shoe": "0a7d8c",
    "computer tower": "4c26ca", "bottle": "bf1c87", "bin": "d3782a", "ottoman": "76ae4c", "bench": "11f2ab",
    "board": "1441f7", "washing machine": "d03dde", "mirror": "a23e3c", "copier": "d2eb3e", "basket": "2d9848",
    "sofa chair": "236b95", "file cabinet": "a059ed", "fan": "e3387d", "laptop": "a98f51", "shower": "2a8f14",
    "paper": "19a097", "person": "524be3", "paper towel dispenser": "fd3bde", "oven": "f08259", "blinds": "7bac2f",
    "rack": "47c285", "plate": "185ecd", "blackboard": "8610b3", "piano": "9f2034", "suitcase": "d5d058",
    "rail": "409e46", "radiator": "12a3c2", "recycling bin": "411d99", "container": "b10a6d", "wardrobe": "985307",
    "soap dispenser": "53af1e", "telephone": "12c799", "bucket": "3d51d0", "clock": "d555d8", "stand": "aa352a",
    "light": "a1c026", "laundry basket": "17f15b", "pipe": "0c67aa", "clothes dryer": "9729f5", "guitar": "853350",
    "toilet paper holder": "b8a25b", "seat": "328a26", "speaker": "1fedec", "column": "2713d0", "bicycle": "df1bb4",
    "ladder": "fe8d55", "bathroom stall": "619027", "shower wall": "6ae7b0", "cup": "0c3da2", "jacket": "7c428c",
    "storage bin": "894249", "coffee maker": "fafd1a", "dishwasher": "37bf49", "paper towel roll": "3c7e92",
    "machine": "996cea", "mat": "b83a7d", "windowsill": "87540e", "bar": "8bf85b", "toaster": "35c8ac",
    "bulletin board": "3f4586", "ironing board": "be4bba", "fireplace": "7f3f34", "soap dish": "8db619",
    "kitchen counter": "389059", "doorframe": "40a0fa", "toilet paper dispenser": "b656f5", "mini fridge": "8b1235",
    "fire extinguisher": "867836", "ball": "31a52a", "hat": "338085", "shower curtain rod": "2c15a3",
    "water cooler": "e85dc1", "paper cutter": "b06636", "tray": "74d911", "shower door": "36d196", "pillar": "3c63cc",
    "ledge": "812b90", "toaster oven": "fc646a", "mouse": "bbc449", "toilet seat cover dispenser": "0d9e28",
    "furniture": "347a98", "cart": "804cca", "storage container": "bb3273", "scale": "b48d47", "tissue box": "4dd023",
    "light switch": "48b7a8", "crate": "6163cb", "power outlet": "ac169e", "decoration": "9b4028", "sign": "769f1e",
    "projector": "45fc94", "closet door": "2d67ad", "vacuum cleaner": "6f2695", "candle": "b80931",
    "plunger": "bcae43", "stuffed animal": "35ce35", "headphones": "61ebfc", "dish rack": "4220b6", "broom": "ec72c3",
    "guitar case": "f19a53", "range hood": "85f034", "dustpan": "10cd90", "hair dryer": "4b65c6",
    "water bottle": "ed5ffb", "handicap bar": "bf3431", "purse": "e3fe36", "vent": "31ce57", "shower floor": "307196",
    "water pitcher": "7d49b6", "mailbox": "e52072", "bowl": "9e771c", "paper bag": "3ccd1b", "alarm clock": "12d7c9",
    "music stand": "4f4c99", "projector screen": "860d74", "divider": "c0613f", "laundry detergent": "6ca312",
    "bathroom counter": "5fdc9c", "object": "628dd0", "bathroom vanity": "9013c1", "closet wall": "a62439",
    "laundry hamper": "d4ca22", "bathroom stall door": "17ce22", "ceiling light": "5bd3ec", "trash bin": "4f3789",
    "dumbbell": "b61375", "stair rail": "864c0e", "tube": "57b91c", "bathroom cabinet": "52e0bb", "cd case": "5c6ed6",
    "closet rod": "a850ab", "coffee kettle": "c53f33", "structure": "afc74d", "shower head": "3eb462",
    "keyboard piano": "085b96", "case of water bottles": "4d0f82", "coat rack": "9a4160",
    "storage organizer": "c5980b", "folded chair": "3b9b2d", "fire alarm": "0c9391", "power strip": "3623db",
    "calendar": "d249b5", "poster": "dd7c4d", "potted plant": "95d642", "luggage": "48b986", "mattress": "2a5ec6",
}  # fmt: skip
# S3DIS's palette, as PointNet's release has it.
S3DIS = {
    "ceiling": "00ff00", "floor": "0000ff", "wall": "00ffff", "beam": "ffff00", "column": "ff00ff",
    "window": "6464ff", "door": "c8c864", "table": "aa78c8", "chair": "ff0000", "sofa": "c86464",
    "bookcase": "0ac864", "board": "c8c8c8", "clutter": "323232",
}  # fmt: skip
TABLEAU = ("1f77b4", "ff7f0e", "2ca02c", "d62728", "9467bd", "8c564b", "e377c2", "bcbd22", "17becf")
TABLES: tuple[Mapping[str, str], ...] = (NYU40, S3DIS, SCANNET200)

UNLABELLED = (165, 165, 165)
"""Grey of points that have no label, or that an evaluation ignores."""
RIGHT, WRONG = (116, 186, 172), (214, 39, 40)
"""Colours of points that were predicted rightly and wrongly; an ignored point is UNLABELLED."""


def palette_for(names: Sequence[str]) -> np.ndarray:
    """A colour for each class, uint8 [K, 3].

    ScanNet's own colours where its 20 or NYU's 40 classes hold the most of `names`, else those of S3DIS or ScanNet200.
    Classes that the table lacks, and all of them where it has less than half, get the colours of `distinct_colors`.
    """
    words = [str(name).strip().lower() for name in names]
    table = max(TABLES, key=lambda known: sum(word in known for word in words))  # the first of equals
    if 2 * sum(word in table for word in words) < len(words):
        table = {}
    found = {word: _rgb(table[word]) for word in words if word in table}
    fresh = iter(distinct_colors(len(words) - sum(word in found for word in words), avoid=list(found.values())))
    return np.array([found[word] if word in found else next(fresh) for word in words], np.uint8).reshape(-1, 3)


def distinct_colors(number: int, avoid: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """`number` colours that are far from each other, from `avoid`, white, black and grey: uint8 [number, 3].

    First Tableau's nine; then always the one of a fixed grid, without its gaudy corners, that lies farthest from
    those before it in OKLab, whose distances are nearly the eye's. The first k do not depend on `number`.
    """
    steps = np.linspace(20, 250, 16)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3).round()
    places = oklab(grid)
    calm = (np.linalg.norm(places[:, 1:], axis=1) < 0.2) & (places[:, 0] > 0.3) & (places[:, 0] < 0.92)
    grid = np.concatenate([[_rgb(color) for color in TABLEAU], grid[calm]])
    if number > len(grid):
        raise ValueError(f"distinct_colors: there are {len(grid)} colours, {number} were wanted")
    places = oklab(grid)
    greys = [(255, 255, 255), (0, 0, 0), (100, 100, 100), UNLABELLED]
    distance = _distance(places, oklab(np.array([*greys, *map(tuple, avoid)], np.float64)))
    chosen: list[int] = []
    while len(chosen) < number:
        free = np.flatnonzero(distance[: len(TABLEAU)] > 0.1)
        chosen.append(int(free[0] if len(free) else distance.argmax()))
        distance = np.minimum(distance, _distance(places, places[chosen[-1:]]))
    return grid[chosen].astype(np.uint8).reshape(-1, 3)


def _distance(places: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N] distance of each of `places` [N, 3] to the nearest of `others` [M, 3]."""
    return np.linalg.norm(places[:, None] - others[None], axis=2).min(axis=1)


_TO_CONES = np.array(
    [
        [0.4122214708, 0.2119034982, 0.0883024619],
        [0.5363325363, 0.6806995451, 0.2817188376],
        [0.0514459929, 0.1073969566, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 1.9779984951, 0.0259040371],
        [0.7936177850, -2.4285922050, 0.7827717662],
        [-0.0040720468, 0.4505937099, -0.8086757660],
    ]
)


def oklab(color: np.ndarray) -> np.ndarray:
    """sRGB 0..255 [..., 3] as OKLab: lightness 0..1 and two colour axes (Ottosson, "A perceptual color space", 2020)."""
    value = np.asarray(color, dtype=np.float64) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _TO_CONES) @ _TO_LAB


def class_colors(segment: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """uint8 [N, 3]: the colour of each class id of `segment` [N]; ids below 0 or beyond the palette [K, 3] are UNLABELLED."""
    segment = np.asarray(segment)
    known = (segment >= 0) & (segment < len(palette))
    table = np.concatenate([np.asarray(palette, np.uint8).reshape(-1, 3), np.array([UNLABELLED], np.uint8)])
    return table[np.where(known, segment, len(palette)).astype(np.int64)]


def error_colors(prediction: np.ndarray, segment: np.ndarray, ignore_index: int = -1) -> np.ndarray:
    """uint8 [N, 3]: RIGHT, WRONG, or UNLABELLED where `segment` [N] is `ignore_index` or negative."""
    prediction, segment = np.asarray(prediction), np.asarray(segment)
    if prediction.shape != segment.shape:
        raise ValueError(f"error_colors: {prediction.shape} predictions for {segment.shape} labels")
    colors = np.where((prediction == segment)[:, None], RIGHT, WRONG).astype(np.uint8)
    colors[(segment == ignore_index) | (segment < 0)] = UNLABELLED
    return colors


def score_colors(score: np.ndarray, low: float = 0.0, high: float = 1.0, name: str = "inferno") -> np.ndarray:
    """uint8 [..., 3] by matplotlib's colour map `name`, brighter where higher; clipped to low..high, UNLABELLED where NaN."""
    from matplotlib import colormaps

    score = np.asarray(score, dtype=np.float64)
    scaled = np.clip((score - low) / max(high - low, 1e-12), 0, 1)
    colors = colormaps[name](np.nan_to_num(scaled), bytes=True)[..., :3].copy()
    colors[np.isnan(score)] = UNLABELLED
    return colors


def _rgb(text: str) -> tuple[int, int, int]:
    return tuple(bytes.fromhex(text))
