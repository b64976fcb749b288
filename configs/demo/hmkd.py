# The quick start's student by HMKD, on the same ten images. The teacher was trained on two hundred other images.
_base_ = ["student.py", "../_base_/methods/hmkd.py"]
teacher = dict(
    backbone="resnet18", head="segformer", width=128, weights="work_dirs/quickstart/teacher/student.safetensors"
)
distill = dict(logit=4.0)
