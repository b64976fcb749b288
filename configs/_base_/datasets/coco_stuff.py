# 118287 train, 5000 val images of at most 640x640; lists: python scripts/prepare_lists.py coco_stuff ROOT
data = dict(
    type="coco_stuff", root="data/coco_stuff", train_list="train.txt", val_list="val.txt",
    crop_size=(512, 512), scale_range=(0.5, 2.0), flip=True, workers=8,
)  # fmt: skip
