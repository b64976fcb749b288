# The quick start's student by HMKD from the quick start's teacher; all else is as in student.py.
_base_ = ["student.py", "../_base_/methods/hmkd.py"]
teacher = dict(
    backbone="resnet18", head="segformer", width=128, weights="work_dirs/quickstart/teacher/student.safetensors"
)
