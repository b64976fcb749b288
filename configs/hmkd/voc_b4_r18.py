# SegFormer-B4 -> DeepLabV3-ResNet-18 on PASCAL VOC, with SBD's labels, by dual alignment.
_base_ = [
    "../_base_/datasets/voc.py",
    "../_base_/models/teacher_b4.py",
    "../_base_/models/student_r18.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/cirkd_v1.py",
]
# The teacher is trained with configs/baselines/voc_b4.py.
teacher = dict(weights="pretrained/voc_b4.safetensors")
