import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset
from datasets.census import Census, add_up, check_census, class_weights, count_labels, count_values


def written(folder, labels):
    """A data set of two classes with these labels (H W lists of raw ids)."""
    lines = []
    for number, label in enumerate(labels):
        label = np.array(label, np.uint8)
        Image.fromarray(np.zeros((*label.shape, 3), np.uint8)).save(folder / f"{number}.png")
        Image.fromarray(label).save(folder / f"{number}_label.png")
        lines.append(f"{number}.png {number}_label.png\n")
    (folder / "list.txt").write_text("".join(lines))
    return build_dataset("list", folder, "list.txt", class_names=["background", "object"])


def census(pixels, void=0):
    pixels = np.array(pixels)
    return Census(3, pixels, (pixels > 0).astype(int), void)


def test_pixels_and_images_of_each_class_are_counted(tmp_path):
    found = count_labels(written(tmp_path, [[[0, 0, 1]], [[0, 255, 255]], [[255, 255, 255]]]), "train")
    assert (found.images, found.pixels.tolist(), found.occurs.tolist(), found.void) == (3, [3, 1], [2, 1], 5)
    assert found.void_share == 5 / 9
    assert found.absent == []


def test_a_label_that_cannot_be_read_is_an_error_or_left_out(tmp_path):
    dataset = written(tmp_path, [[[0, 1]], [[0, 1]]])
    (tmp_path / "1_label.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1_label\.png cannot be decoded"):
        count_labels(dataset, "train")
    assert count_labels(dataset, "train", skip_bad=True).pixels.tolist() == [1, 1]


def test_values_in_a_label_file_are_counted_by_their_class():
    raw, label = np.array([[7, 7, 300]], np.uint16), np.array([[0, 0, 255]], np.uint8)
    assert count_values(raw, label) == {(7, 0): 2, (300, 255): 1}
    red, gray = (255, 1, 2), (9, 9, 9)
    raw, label = np.array([[red, gray], [red, red]], np.uint8), np.array([[1, 0], [1, 1]], np.uint8)
    assert count_values(raw, label) == {(red, 1): 3, (gray, 0): 1}


def test_no_label_at_all_gives_zeros():
    found = add_up([], 2)
    assert (found.images, found.pixels.tolist(), found.void_share) == (0, [0, 0], 0.0)


@pytest.mark.parametrize(
    ("train", "val", "default", "message"),
    [
        (census([0, 0], 9), census([1, 1]), False, "all 3 labels are void everywhere.*two classes or more$"),
        (census([5, 0], 5), census([1, 1]), True, r"all labelled pixels are 'background'.*50\.0 % .*\{0: 0, 255: 1\}$"),
        (census([5, 0], 5), census([1, 1]), False, "all labelled pixels are 'background'.*such as 'background'$"),
        (census([5, 5]), census([0, 0], 9), False, "data.val_list: none of the 3 labels holds a pixel with a class"),
    ],
)
def test_labels_that_teach_or_measure_nothing_are_refused(train, val, default, message):
    with pytest.raises(ValueError, match=message):
        check_census(train, val, ["background", "object"], default)


def test_the_weight_of_a_class_is_enets_of_its_share():
    """1 / ln(1.02 + share) for the shares 0, .25 and .75, worked out with a calculator."""
    assert class_weights(np.array([0, 1, 3])) == pytest.approx((50.4983, 4.1838, 1.7514), abs=1e-4)


def test_the_suggested_table_has_every_class():
    with pytest.raises(ValueError, match=r"where 255 is 'c', set data\.id_table=\{0: 0, 1: 1, 255: 2\}$"):
        check_census(census([5, 0, 0], 5), census([1, 1, 1]), ["a", "b", "c"], True)


def test_absent_classes_are_named():
    names = ["road", "car", "sky"]
    assert check_census(census([1, 1, 1]), census([1, 1, 1]), names, True) == []
    first, second = check_census(census([1, 1, 0]), census([1, 0, 1]), names, True)
    assert "training labels: 'sky'" in first
    assert "validation labels: 'car'; mIoU is over the other 2 of 3 classes" in second
