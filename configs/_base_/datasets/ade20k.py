# 20210 train, 2000 val images of many sizes; lists: python scripts/prepare_lists.py ade20k ROOT
data = dict(
    type="ade20k", root="data/ade20k", train_list="train.txt", val_list="val.txt",
    crop_size=(512, 512), scale_range=(0.5, 2.0), flip=True, workers=8,
)  # fmt: skip
