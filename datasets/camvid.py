"""CamVid (Brostow et al., 2009) with the 11 classes and the 367 / 101 / 233 split of SegNet."""

from pathlib import Path

from datasets.base import DATASETS, SegDataset
from utils.names import VOID

# Each of SegNet's 11 classes -> the original classes of CamVid in it, with their colours (label_colors.txt). The first
# colour is the one that pictures use. Void is black.
GROUPS = {
    "Sky": {"Sky": (128, 128, 128)},
    "Building": {
        "Building": (128, 0, 0),
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "Pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "Road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "Pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "Tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "SignSymbol": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "Fence": {"Fence": (64, 64, 128)},
    "Car": {
        "Car": (64, 0, 128),
        "OtherMoving": (128, 64, 64),
        "SUVPickupTruck": (64, 128, 192),
        "Train": (192, 64, 128),
        "Truck_Bus": (192, 128, 192),
    },
    "Pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Animal": (64, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Child": (192, 128, 64),
    },
    "Bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
}
UNLABELLED = 11  # in SegNet's label files
IDS = {train: train for train in range(UNLABELLED)} | {UNLABELLED: VOID, VOID: VOID}


COLORS = {(0, 0, 0): VOID} | {
    color: train for train, members in enumerate(GROUPS.values()) for color in members.values()
}


@DATASETS.register("camvid")
class CamVid(SegDataset):
    """Images with either SegNet's label files (0..10, void 11) or the original ones in 32 colours.

    The pixel format decides: one channel or a palette is SegNet's, RGB is the original.

    Args:
        root: folder of the data set.
    """

    def __init__(self, root: str | Path, list_file: str | Path):
        palette = [next(iter(members.values())) for members in GROUPS.values()]
        super().__init__(root, list_file, tuple(GROUPS), palette, IDS, COLORS)
