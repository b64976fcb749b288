# SegFormer-B4 trained on Cityscapes' 19 classes -> DeepLabV3-ResNet-18 on CamVid's 11: the teacher's probabilities are
# added up by class_map, which follows CamVid's 32 original classes (datasets/camvid.py): walls are Building, grass and
# bushes Tree, traffic lights SignSymbol, trucks, buses and trains Car, motorcyclists Bicyclist. Two are uncertain:
# terrain includes bare soil, and a bicycle may be parked. None would be worse: it gives the probability to the other
# classes, also that of a rider's bicycle, which CamVid counts as Bicyclist.
_base_ = ["camvid_b4_r18.py"]
teacher = dict(
    weights="pretrained/cityscapes_b4.safetensors",  # trained with configs/baselines/cityscapes_b4.py
    class_map=[
        "Road", "Pavement",  # road, sidewalk
        "Building", "Building", "Fence", "Pole",  # building, wall, fence, pole
        "SignSymbol", "SignSymbol",  # traffic light, traffic sign
        "Tree", "Tree", "Sky",  # vegetation, terrain, sky
        "Pedestrian", "Bicyclist",  # person, rider
        "Car", "Car", "Car", "Car",  # car, truck, bus, train
        "Bicyclist", "Bicyclist",  # motorcycle, bicycle
    ],
)  # fmt: skip
