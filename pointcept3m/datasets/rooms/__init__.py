"""Furnished rooms made on the spot: RGB-D frames, scanned cloud, labels. Nothing to download, the same for the same seed."""

from pointcept3m.datasets.rooms.categories import NYU40_TO_ROOMS, ROOMS_CLASSES
from pointcept3m.datasets.rooms.layout import Room, RoomObject, generate_room
from pointcept3m.datasets.rooms.raw import Scan, scan_mesh, write_raw_scannet
from pointcept3m.datasets.rooms.render import Frames, render_frames
from pointcept3m.datasets.rooms.scan import Cloud, scan_cloud
from pointcept3m.datasets.rooms.write import write_rooms

__all__ = [
    "NYU40_TO_ROOMS", "ROOMS_CLASSES", "Cloud", "Frames", "Room", "RoomObject", "Scan", "generate_room", "render_frames",
    "scan_cloud", "scan_mesh", "write_raw_scannet", "write_rooms",
]  # fmt: skip
