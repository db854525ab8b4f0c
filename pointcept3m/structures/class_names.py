"""Class names of benchmarks, in their order and spelling. Facts of the data sets.

ScanNet200, Matterport3D and nuScenes names are those of the benchmarks' files and of OpenScene's evaluation.
"""

SCANNET20_NAMES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk",
    "curtain", "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "otherfurniture",
)  # fmt: skip

SCANNET200_NAMES = (
    "wall", "chair", "floor", "table", "door", "couch", "cabinet", "shelf", "desk", "office chair", "bed", "pillow",
    "sink", "picture", "window", "toilet", "bookshelf", "monitor", "curtain", "book", "armchair", "coffee table", "box",
    "refrigerator", "lamp", "kitchen cabinet", "towel", "clothes", "tv", "nightstand", "counter", "dresser", "stool",
    "cushion", "plant", "ceiling", "bathtub", "end table", "dining table", "keyboard", "bag", "backpack",
    "toilet paper", "printer", "tv stand", "whiteboard", "blanket", "shower curtain", "trash can", "closet", "stairs",
    "microwave", "stove", "shoe", "computer tower", "bottle", "bin", "ottoman", "bench", "board", "washing machine",
    "mirror", "copier", "basket", "sofa chair", "file cabinet", "fan", "laptop", "shower", "paper", "person",
    "paper towel dispenser", "oven", "blinds", "rack", "plate", "blackboard", "piano", "suitcase", "rail", "radiator",
    "recycling bin", "container", "wardrobe", "soap dispenser", "telephone", "bucket", "clock", "stand", "light",
    "laundry basket", "pipe", "clothes dryer", "guitar", "toilet paper holder", "seat", "speaker", "column", "bicycle",
    "ladder", "bathroom stall", "shower wall", "cup", "jacket", "storage bin", "coffee maker", "dishwasher",
    "paper towel roll", "machine", "mat", "windowsill", "bar", "toaster", "bulletin board", "ironing board",
    "fireplace", "soap dish", "kitchen counter", "doorframe", "toilet paper dispenser", "mini fridge",
    "fire extinguisher", "ball", "hat", "shower curtain rod", "water cooler", "paper cutter", "tray", "shower door",
    "pillar", "ledge", "toaster oven", "mouse", "toilet seat cover dispenser", "furniture", "cart", "storage container",
    "scale", "tissue box", "light switch", "crate", "power outlet", "decoration", "sign", "projector", "closet door",
    "vacuum cleaner", "candle", "plunger", "stuffed animal", "headphones", "dish rack", "broom", "guitar case",
    "range hood", "dustpan", "hair dryer", "water bottle", "handicap bar", "purse", "vent", "shower floor",
    "water pitcher", "mailbox", "bowl", "paper bag", "alarm clock", "music stand", "projector screen", "divider",
    "laundry detergent", "bathroom counter", "object", "bathroom vanity", "closet wall", "laundry hamper",
    "bathroom stall door", "ceiling light", "trash bin", "dumbbell", "stair rail", "tube", "bathroom cabinet",
    "cd case", "closet rod", "coffee kettle", "structure", "shower head", "keyboard piano", "case of water bottles",
    "coat rack", "storage organizer", "folded chair", "fire alarm", "power strip", "calendar", "poster", "potted plant",
    "luggage", "mattress",
)  # fmt: skip

ROOMS_NAMES = tuple(name for name in SCANNET20_NAMES if name != "shower curtain")
"""The classes of ScanNet20 that generated rooms have."""

MATTERPORT21_NAMES = (*SCANNET20_NAMES[:-1], "other", "ceiling")
"""ScanNet's classes with "other" for its last, and the ceiling behind them."""

MATTERPORT160_NAMES = (
    "wall", "door", "ceiling", "floor", "picture", "window", "chair", "pillow", "lamp", "cabinet", "curtain", "table",
    "plant", "mirror", "towel", "sink", "shelves", "sofa", "bed", "night stand", "toilet", "column", "banister", "stairs",
    "stool", "vase", "television", "pot", "desk", "box", "coffee table", "counter", "bench", "garbage bin", "fireplace",
    "clothes", "bathtub", "book", "air vent", "faucet", "photo", "toilet paper", "fan", "railing", "sculpture", "dresser",
    "rug", "ottoman", "bottle", "refridgerator", "bookshelf", "wardrobe", "pipe", "monitor", "stand", "drawer",
    "container", "light switch", "purse", "door way", "basket", "chandelier", "oven", "clock", "stove", "washing machine",
    "shower curtain", "fire alarm", "bin", "chest", "microwave", "blinds", "bowl", "tissue box", "plate", "tv stand",
    "shoe", "heater", "headboard", "bucket", "candle", "flower pot", "speaker", "furniture", "sign", "air conditioner",
    "fire extinguisher", "curtain rod", "floor mat", "printer", "telephone", "blanket", "handle", "shower head", "soap",
    "keyboard", "thermostat", "radiator", "kitchen island", "paper towel", "sheet", "glass", "dishwasher", "cup",
    "ladder", "garage door", "hat", "exit sign", "piano", "board", "rope", "ball", "excercise equipment", "hanger",
    "candlestick", "light", "scale", "bag", "laptop", "treadmill", "guitar", "display case", "toilet paper holder", "bar",
    "tray", "urn", "decorative plate", "pool table", "jacket", "bottle of soap", "water cooler", "utensil", "tea pot",
    "stuffed animal", "paper towel dispenser", "lamp shade", "car", "toilet brush", "doll", "drum", "whiteboard",
    "range hood", "candelabra", "toy", "foot rest", "soap dish", "placemat", "cleaner", "computer", "knob", "paper",
    "projector", "coat hanger", "case", "pan", "luggage", "trinket", "chimney", "person", "alarm",
)  # fmt: skip
"""The first 160 distinct `nyuClass` of Matterport3D's category_mapping.tsv, "void" and "unknown" left out; the sets of 40
and 80 classes are the first ones of these."""

# What is said for each class: the detailed names of OpenScene's nuScenes evaluation.
NUSCENES16_WORDS = {
    "barrier": ("barrier", "barricade"),
    "bicycle": ("bicycle",),
    "bus": ("bus",),
    "car": ("car",),
    "construction vehicle": ("bulldozer", "excavator", "concrete mixer", "crane", "dump truck"),
    "motorcycle": ("motorcycle",),
    "person": ("person", "pedestrian"),
    "traffic cone": ("traffic cone",),
    "trailer": ("trailer", "semi trailer", "cargo container", "shipping container", "freight container"),
    "truck": ("truck",),
    "drivable surface": ("road",),
    "other flat": ("curb", "traffic island", "traffic median"),
    "sidewalk": ("sidewalk",),
    "terrain": ("grass", "grassland", "lawn", "meadow", "turf", "sod"),
    "manmade": ("building", "wall", "pole", "awning"),
    "vegetation": ("tree", "trunk", "tree trunk", "bush", "shrub", "plant", "flower", "woods"),
}
NUSCENES16_NAMES = tuple(NUSCENES16_WORDS)
