import pytest

from configs.schema import Experiment
from scripts.preparation.recipe import choose_recipe, write_configs
from utils.config import load_config


def written(folder, sizes):
    """The three configs for images of these sizes, and the sentences."""
    recipe, choices = choose_recipe(sizes, folder)
    write_configs(recipe, {"type": "list", "root": "data/x", "class_names": ["a", "b"]}, "x", folder)
    return {n: load_config(folder / f"{n}.py", Experiment) for n in ("student", "teacher", "hmkd")}, choices


@pytest.mark.parametrize(
    ("size", "count", "crop", "iters"),
    [
        ((96, 128), 10, (96, 128), 400),  # 100 passes are 125 iterations; at least 400
        ((360, 480), 367, (360, 480), 4600),  # 100 * 367 / 8 = 4587
        ((1024, 2048), 2975, (512, 512), 20000),  # at most 20000
    ],
)
def test_crop_and_iterations_follow_the_size_and_number_of_the_images(tmp_path, size, count, crop, iters):
    configs, _ = written(tmp_path, [size] * count)
    for config in configs.values():
        assert config.data.crop_size == crop
        assert config.schedule.max_iters == iters
        assert config.eval.interval == config.checkpoint.interval == iters // 8


def test_images_much_larger_than_the_crop_are_evaluated_in_windows_that_leave_no_gap(tmp_path):
    evaluation = written(tmp_path, [(600, 1100)])[0]["student"].eval
    assert evaluation.mode == "slide"
    assert evaluation.crop_size == (512, 512)
    assert evaluation.stride == (341, 341)
    assert written(tmp_path, [(600, 1000)])[0]["student"].eval.mode == "whole"


def test_weights_are_used_where_they_are_at_hand(tmp_path):
    random, choices = written(tmp_path, [(96, 128)])
    assert random["student"].student.pretrained is None
    assert sum("pretrained/" in choice for choice in choices) == 2
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/mit_b0.pth").touch()
    found, _ = written(tmp_path, [(96, 128)])
    assert found["student"].student.pretrained == "pretrained/mit_b0.pth"
    assert found["student"].optimizer.lr == 2e-4
    assert found["teacher"].student.pretrained is None
    assert found["teacher"].optimizer.lr == 5e-4
