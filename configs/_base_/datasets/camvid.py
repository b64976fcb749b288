# 367 train, 101 val, 233 test images of 360x480; lists: python scripts/prepare_lists.py camvid ROOT
data = dict(
    type="camvid", root="data/camvid", train_list="train.txt", val_list="val.txt", test_list="test.txt",
    crop_size=(360, 480), scale_range=(0.5, 2.0), flip=True, workers=8,
)  # fmt: skip
