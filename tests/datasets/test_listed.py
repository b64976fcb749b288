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
    return make_again(root, **options)


def make_again(root, **options) -> ListedDataset:
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


def test_ids_of_16_bits_go_through_the_table(tmp_path):
    dataset = make(tmp_path, [[0]], id_table={0: 0, 1000: 1, 40000: 2})
    Image.fromarray(np.array([[0, 1000, 40000, 255]], np.uint16)).save(tmp_path / "y.png")
    assert dataset.load_label(0).tolist() == [[0, 1, 2, 255]]
    assert dataset.to_raw_ids(np.array([0, 2, 255], np.uint8)).tolist() == [0, 40000, 255]
    Image.fromarray(np.array([[0, 1256]], np.uint16)).save(tmp_path / "y.png")  # 1256 is 1000 + 256, or 232 in 8 bits
    for table in (None, {0: 0, 1000: 1, 40000: 2}):
        with pytest.raises(ValueError, match=r"y\.png holds the ids \[1256\]"):
            make_again(tmp_path, id_table=table).load_label(0)


def test_colours_of_a_label_go_through_the_color_table(tmp_path):
    table = {(0, 0, 0): 255, (255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2}
    dataset = make(tmp_path, [[0]], color_table=table)
    colours = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "y.png")
    assert dataset.load_label(0).tolist() == [[255, 0, 1, 2]]
    colours[0, 1:] = [[254, 0, 0], [9, 9, 9], [9, 9, 9]]
    Image.fromarray(colours).save(tmp_path / "y.png")
    with pytest.raises(
        ValueError, match=r"y\.png: 3 pixels have 2 colours of no class, most of them \(2\) RGB \(9, 9, 9\)"
    ):
        dataset.load_label(0)
    with pytest.raises(ValueError, match=r"y\.png holds colours.*set data\.color_table="):
        make_again(tmp_path).load_label(0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({(0, 0, 0): 0, (0, 0, 256): 1, (1, 1, 1): 2}, r"color table maps \(0, 0, 256\) to 1"),
        ({(0, 0, 0): 0, (0, 0, 1): 3}, r"color table maps \(0, 0, 1\) to 3"),
        ({(0, 0, 0): 0, (0, 0, 1): 1}, r"nothing for the train ids \[2\]"),
    ],
)
def test_color_tables_that_do_not_fit_are_refused(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, [[0]], color_table=table)


def test_one_class_alone_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("x.png y.png\n")
    with pytest.raises(ValueError, match="only the class 'cat'.*two classes or more.*'background'"):
        ListedDataset(tmp_path, "list.txt", ["cat"])


def test_palette_is_taken_or_made(tmp_path):
    given = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert make(tmp_path, [[0]], palette=given).palette.tolist() == given
    assert make(tmp_path, [[0]]).palette.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]


def test_generated_colours_are_all_different_the_first_is_black_and_none_is_that_of_void():
    colours = distinct_colours(255)
    assert len(np.unique(colours, axis=0)) == 255
    assert colours[0].tolist() == [0, 0, 0]
    assert VOID_COLOR not in {tuple(colour) for colour in colours.tolist()}
