import numpy as np
import pytest
from PIL import Image

from datasets.base import read_table
from datasets.camvid import CamVid

# label_colors.txt of the CamVid release, with SegNet's class of each.
LABEL_COLORS = """\
64 128 64 Animal 9
192 0 128 Archway 1
0 128 192 Bicyclist 10
0 128 64 Bridge 1
128 0 0 Building 1
64 0 128 Car 8
64 0 192 CartLuggagePram 9
192 128 64 Child 9
192 192 128 Column_Pole 2
64 64 128 Fence 7
128 0 192 LaneMkgsDriv 3
192 0 64 LaneMkgsNonDriv 3
128 128 64 Misc_Text 6
192 0 192 MotorcycleScooter 10
128 64 64 OtherMoving 8
64 192 128 ParkingBlock 4
64 64 0 Pedestrian 9
128 64 128 Road 3
128 128 192 RoadShoulder 4
0 0 192 Sidewalk 4
192 128 128 SignSymbol 6
128 128 128 Sky 0
64 128 192 SUVPickupTruck 8
0 0 64 TrafficCone 2
0 64 64 TrafficLight 6
192 64 128 Train 8
128 128 0 Tree 5
192 128 192 Truck_Bus 8
64 0 64 Tunnel 1
192 192 0 VegetationMisc 5
0 0 0 Void 255
64 192 0 Wall 1
"""


def make(root, label: np.ndarray) -> CamVid:
    Image.fromarray(np.zeros((*label.shape[:2], 3), np.uint8)).save(root / "x.png")
    Image.fromarray(label.astype(np.uint8)).save(root / "x_L.png")
    (root / "list.txt").write_text("x.png x_L.png\n")
    return CamVid(root, "list.txt")


def test_classes_are_segnets_in_its_order(tmp_path):
    dataset = make(tmp_path, np.zeros((2, 2)))
    assert " ".join(dataset.class_names) == (
        "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
    )
    assert dataset.palette[[0, 3, 10]].tolist() == [[128, 128, 128], [128, 64, 128], [0, 128, 192]]


def test_segnet_labels_void_is_eleven(tmp_path):
    dataset = make(tmp_path, np.array([[0, 10, 11, 255]]))
    assert dataset.load(0)[1].tolist() == [[0, 10, 255, 255]]
    assert dataset.to_raw_ids(np.array([0, 10, 255], np.uint8)).tolist() == [0, 10, 11]


def test_all_32_colours_map_to_segnets_class(tmp_path):
    rows = [line.split() for line in LABEL_COLORS.splitlines()]
    label = np.array([[[int(value) for value in row[:3]] for row in rows]])
    assert make(tmp_path, label).load(0)[1].tolist() == [[int(row[4]) for row in rows]]
    assert {row[3] for row in rows} - {"Void"} == {name for _, _, name in read_table("camvid")}


@pytest.mark.parametrize("colour", [(128, 128, 129), (192, 192, 192), (1, 0, 0)])
def test_a_colour_of_no_class_is_named(tmp_path, colour):
    label = np.zeros((2, 3, 3))
    label[1, 1:] = colour
    with pytest.raises(ValueError, match=r"x_L.png: 2 pixels") as error:
        make(tmp_path, label).load(0)
    assert str(colour) in str(error.value)


def test_unknown_index_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds the ids \[12\]"):
        make(tmp_path, np.full((2, 2), 12)).load(0)
