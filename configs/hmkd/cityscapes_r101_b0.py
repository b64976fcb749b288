# DeepLabV3-ResNet-101 -> SegFormer-B0 on Cityscapes by dual alignment.
_base_ = [
    "../_base_/datasets/cityscapes.py",
    "../_base_/models/teacher_r101.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer.py",
]
teacher = dict(weights="pretrained/cityscapes_r101.safetensors")  # trained with configs/baselines/cityscapes_r101.py
data = dict(crop_size=(1024, 1024), photometric=True, cat_max_ratio=0.75)
