# DeepLabV3-ResNet-101 -> SegFormer-B0 on COCO-Stuff by dual alignment. SegFormer's recipe first resizes the
# shorter side of an image to 512; here images keep their size, in training and in evaluation.
_base_ = [
    "../_base_/datasets/coco_stuff.py",
    "../_base_/models/teacher_r101.py",
    "../_base_/models/student_b0.py",
    "../_base_/methods/hmkd.py",
    "../_base_/schedules/segformer.py",
]
protocol = "segformer_coco_stuff"
# The teacher is trained with configs/baselines/coco_stuff_r101.py.
teacher = dict(weights="pretrained/coco_stuff_r101.safetensors")
data = dict(photometric=True, cat_max_ratio=0.75)
schedule = dict(max_iters=80000)
train = dict(batch_size=16)
eval = dict(mode="whole", crop_size=None, stride=None)
