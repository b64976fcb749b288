import numpy as np
import pytest
from PIL import Image

from datasets.listed import ListedDataset, distinct_colours
from utils.visualize import VOID_COLOR


def make(root, label, **options) -> ListedDataset:
    label = np.array(label, np.uint8)
    Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(root / "x.png")
    Image.fromarray(label).save(root / "y.png")
    (root / "list.txt").write_text("x.png y.png\n")
    return ListedDataset(root, "list.txt", ["cat", "dog", "tree"], **options)


def test_ids_are_the_classes_and_255_by_default(tmp_path):
    assert make(tmp_path, [[0, 1, 2, 255]]).load(0)[1].tolist() == [[0, 1, 2, 255]]
    with pytest.raises(ValueError, match=r"holds the ids \[3\]"):
        make(tmp_path, [[0, 3]]).load(0)


@pytest.mark.parametrize("table", [{0: 255, 1: 0, 2: 1, 3: 2, 4: 2}, [255, 0, 1, 2, 2]])
def test_id_table_as_dict_or_list(tmp_path, table):
    dataset = make(tmp_path, [[0, 1, 2, 3, 4, 255]], id_table=table)
    assert dataset.load(0)[1].tolist() == [[255, 0, 1, 2, 2, 255]]
    with pytest.raises(ValueError, match=r"holds the ids \[5\]"):
        make(tmp_path, [[5]], id_table=table).load(0)


def test_255_may_be_a_class(tmp_path):
    dataset = make(tmp_path, [[0, 7, 255]], id_table={0: 0, 7: 1, 255: 2})
    assert dataset.load(0)[1].tolist() == [[0, 1, 2]]


def test_palette_is_taken_or_made(tmp_path):
    given = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert make(tmp_path, [[0]], palette=given).palette.tolist() == given
    assert make(tmp_path, [[0]]).palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_generated_colours_are_all_different_the_first_is_black_and_none_is_that_of_void():
    colours = distinct_colours(255)
    assert len(np.unique(colours, axis=0)) == 255
    assert colours[0].tolist() == [0, 0, 0]
    assert VOID_COLOR not in {tuple(colour) for colour in colours.tolist()}
