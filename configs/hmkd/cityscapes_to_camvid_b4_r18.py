# SegFormer-B4 of Cityscapes' 19 classes -> DeepLabV3-ResNet-18 on CamVid's 11: the teacher's probabilities are summed.
# CamVid's 32 original classes (datasets/camvid.py) decide: walls are Building, grass and bushes Tree, traffic lights
# SignSymbol, trucks, buses and trains Car, motorcyclists Bicyclist. Doubtful: terrain, which holds bare soil too, and
# bicycle, which may be parked. Neither is left out (None): its probability would go to the classes that come next, and
# with it the rider's bicycle, which is part of CamVid's Bicyclist.
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
