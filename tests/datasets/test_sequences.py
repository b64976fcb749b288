"""Frames of one video stay together."""

import pytest

from datasets.sequences import group_sequences, sequence_of


@pytest.mark.parametrize(
    ("image", "video"),
    [
        ("train/0006R0_f00930.png", "train/0006R0"),
        ("train/0016E5_07959.png", "train/0016E5"),
        ("train/Seq05VD_f00000.png", "train/Seq05VD"),
        ("leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png", "leftImg8bit/train/aachen/aachen_000000"),
        ("clips/drive-frame_0012.jpg", "clips/drive"),
        ("a/12.png", "a"),
        ("a/berlin.png", "a/berlin"),
    ],
)
def test_the_video_of_an_image_is_its_path_without_the_frame_number(image, video):
    assert sequence_of(image) == video


def test_videos_stay_whole_their_frames_in_order_and_the_seed_decides_the_order_of_videos():
    images = ["b_2.png", "a_1.png", "b_1.png", "c_9.png", "a_0.png"]
    groups = group_sequences(images, seed=0)
    assert sorted(groups) == [[2, 0], [3], [4, 1]]  # b_1, b_2; c_9; a_0, a_1
    assert group_sequences(images, seed=0) == groups
    assert {tuple(map(tuple, group_sequences(images, seed))) for seed in range(20)} > {tuple(map(tuple, groups))}


def test_names_that_are_all_of_one_video_tell_nothing_so_each_image_is_a_group():
    assert sorted(group_sequences(["001.png", "002.png", "003.png"], seed=1)) == [[0], [1], [2]]
