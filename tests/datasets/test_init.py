import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import build_dataset, make_loader
from datasets.camvid import CamVid
from datasets.samplers import PositionBatches
from datasets.stream import TrainStream
from datasets.transforms import TrainTransform


@pytest.fixture
def root(tmp_path):
    for i in range(5):  # sizes differ, as they may in evaluation
        Image.fromarray(np.full((20 + i, 30, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
        Image.fromarray(np.full((20 + i, 30), i, np.uint8)).save(tmp_path / f"{i}_y.png")
    (tmp_path / "train.txt").write_text("".join(f"{i}.png {i}_y.png\n" for i in range(5)))
    return tmp_path


class Threads(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return cv2.getNumThreads()


def test_data_sets_are_built_by_name(root):
    assert isinstance(build_dataset("camvid", root, "train.txt"), CamVid)
    assert build_dataset("list", root, "train.txt", class_names=list("abcde")).num_classes == 5


def test_unknown_type_names_the_nearest(root):
    with pytest.raises(
        ValueError,
        match=r"'camvids'; did you mean 'camvid'. choices: ade20k, camvid, cityscapes, coco_stuff, list, voc",
    ):
        build_dataset("camvids", root, "train.txt")


@pytest.mark.parametrize("workers", [0, 2])
def test_training_batches(root, workers):
    stream = TrainStream(build_dataset("camvid", root, "train.txt"), TrainTransform((16, 24)), seed=0)
    batches = list(make_loader(stream, PositionBatches(2, 4, 4), workers=workers))
    assert len(batches) == 2
    for step, batch in enumerate(batches, 2):
        assert batch["image"].shape == (4, 3, 16, 24)
        assert batch["label"].shape == (4, 16, 24)
        assert batch["image"].dtype == batch["label"].dtype == torch.uint8
        expected = [stream[step * 4 + i] for i in range(4)]
        assert batch["name"] == [sample["name"] for sample in expected]
        assert torch.equal(batch["image"], torch.stack([sample["image"] for sample in expected]))


def test_workers_run_opencv_on_one_thread():
    before = cv2.getNumThreads()
    assert [batch.tolist() for batch in make_loader(Threads(), [[0]], workers=1)] == [[1]]
    assert cv2.getNumThreads() == before
