import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official
from PIL import Image

from datasets.cityscapes import Cityscapes


def make(root, label: np.ndarray, suffix: str) -> Cityscapes:
    stem = "aachen_000000_000019"
    Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(root / f"{stem}_leftImg8bit.png")
    Image.fromarray(label.astype(np.uint8)).save(root / f"{stem}_gtFine_{suffix}.png")
    (root / "list.txt").write_text(f"{stem}_leftImg8bit.png {stem}_gtFine_{suffix}.png\n")
    return Cityscapes(root, "list.txt")


def test_tables_are_the_official_ones(tmp_path):
    dataset = make(tmp_path, np.zeros((2, 2)), "labelIds")
    evaluated = sorted((label for label in official if 0 <= label.trainId < 255), key=lambda label: label.trainId)
    assert dataset.class_names == tuple(label.name for label in evaluated)
    assert dataset.palette.tolist() == [list(label.color) for label in evaluated]
    assert dataset.num_classes == 19
    expected = {label.id: label.trainId for label in official if label.id >= 0}
    assert {raw: int(train) for raw, train in enumerate(dataset.id_table) if train != 254} == expected


def test_label_ids_are_mapped(tmp_path):
    dataset = make(tmp_path, np.array([[7, 33, 0], [26, 29, 11]]), "labelIds")
    assert dataset.load(0)[1].tolist() == [[0, 18, 255], [13, 255, 2]]


def test_label_train_ids_are_taken_as_they_are(tmp_path):
    dataset = make(tmp_path, np.array([[0, 18, 255], [7, 1, 2]]), "labelTrainIds")
    assert dataset.load(0)[1].tolist() == [[0, 18, 255], [7, 1, 2]]


@pytest.mark.parametrize(("raw", "suffix"), [(34, "labelIds"), (255, "labelIds"), (19, "labelTrainIds")])
def test_ids_of_neither_table_are_refused(tmp_path, raw, suffix):
    dataset = make(tmp_path, np.full((2, 2), raw), suffix)
    with pytest.raises(ValueError, match=rf"{suffix}.png holds the ids \[{raw}\]"):
        dataset.load(0)


def test_other_label_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"instanceIds.png.*labelIds.png or \*_labelTrainIds.png"):
        make(tmp_path, np.zeros((2, 2)), "instanceIds")


def test_predictions_are_written_as_label_ids(tmp_path):
    dataset = make(tmp_path, np.zeros((2, 2)), "labelIds")
    assert dataset.to_raw_ids(np.array([0, 13, 18, 255], np.uint8)).tolist() == [7, 26, 33, 0]
    assert (dataset.id_table[dataset.to_raw_ids(np.arange(19, dtype=np.uint8))] == np.arange(19)).all()
