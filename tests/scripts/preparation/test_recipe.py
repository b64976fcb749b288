import pytest

from configs.schema import Experiment
from scripts.preparation.recipe import choose_recipe, write_configs
from utils.config import load_config


@pytest.mark.parametrize(
    ("size", "count", "crop", "iters"),
    [
        ((96, 128), 10, (96, 128), 400),  # 100 passes are 125 iterations; at least 400
        ((360, 480), 367, (360, 480), 4600),  # 100 * 367 / 8 = 4587
        ((1024, 2048), 2975, (512, 512), 20000),  # at most 20000
    ],
)
def test_crop_and_iterations_follow_the_size_and_number_of_the_images(tmp_path, size, count, crop, iters):
    recipe = choose_recipe([size] * count, tmp_path)
    write_configs(recipe, {"type": "list", "root": "data/x", "class_names": ["a", "b"]}, "x", tmp_path)
    for name in ("student", "teacher", "hmkd"):
        assert load_config(tmp_path / f"{name}.py", Experiment).schedule.max_iters == iters
    sections = recipe.sections
    assert sections["data"]["crop_size"] == crop
    assert sections["schedule"]["max_iters"] == iters
    assert sections["eval"]["interval"] == sections["checkpoint"]["interval"] == iters // 8


def test_images_much_larger_than_the_crop_are_evaluated_in_windows_that_leave_no_gap(tmp_path):
    sections = choose_recipe([(600, 1100)], tmp_path).sections
    assert sections["eval"]["mode"] == "slide"
    assert sections["eval"]["crop_size"] == (512, 512)
    assert sections["eval"]["stride"] == (341, 341)
    assert "mode" not in choose_recipe([(600, 1000)], tmp_path).sections["eval"]


def test_weights_are_used_where_they_are_at_hand(tmp_path):
    random = choose_recipe([(96, 128)], tmp_path)
    assert "pretrained" not in random.sections["student"]
    assert sum("pretrained/" in choice for choice in random.choices) == 2
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained/mit_b0.pth").touch()
    found = choose_recipe([(96, 128)], tmp_path).sections
    assert found["student"]["pretrained"] == "pretrained/mit_b0.pth"
    assert found["optimizer"]["lr"] == 2e-4
    assert "pretrained" not in found["teacher"]
