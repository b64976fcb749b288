# 10582 train, with SBD's labels (VOC alone: train.txt, 1464), 1449 val images of at most 500x500; lists: python
# scripts/prepare_lists.py voc ROOT
data = dict(
    type="voc", root="data/voc", train_list="trainaug.txt", val_list="val.txt",
    crop_size=(512, 512), scale_range=(0.5, 2.0), flip=True, workers=8,
)  # fmt: skip
