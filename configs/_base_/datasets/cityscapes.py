# 2975 train, 500 val, 1525 test images of 1024x2048; lists: python scripts/prepare_lists.py cityscapes ROOT
data = dict(
    type="cityscapes", root="data/cityscapes", train_list="train.txt", val_list="val.txt", test_list="test.txt",
    crop_size=(512, 1024), scale_range=(0.5, 2.0), flip=True, workers=8,
)  # fmt: skip
