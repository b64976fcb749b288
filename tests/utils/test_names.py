import pytest

from losses import METHODS
from utils.names import LISTED, Registry, did_you_mean, unknown_name


@pytest.fixture
def shapes():
    registry = Registry("shape")

    @registry.register("square")
    class Square: ...

    @registry.register("circle")
    def build_circle(): ...

    return registry, Square, build_circle


def test_components_are_found_by_name_in_the_order_of_registration(shapes):
    registry, square, circle = shapes
    assert (registry["square"], registry["circle"]) == (square, circle)
    assert (list(registry), len(registry)) == (["square", "circle"], 2)
    assert "square" in registry
    assert "sphere" not in registry


def test_an_unknown_name_is_an_error_with_the_nearest_choice(shapes):
    with pytest.raises(ValueError, match=r"^unknown shape 'squar'; did you mean 'square'\? choices: circle, square$"):
        shapes[0]["squar"]


def test_a_name_that_is_taken_names_both_modules_and_keeps_the_first():
    with pytest.raises(
        ValueError, match=r"method 'kd' is registered twice, in losses\.kd and in .*test_names: give one"
    ):

        @METHODS.register("kd")
        class Mine: ...

    assert METHODS["kd"].__module__ == "losses.kd"


def test_the_same_component_may_register_again(shapes):
    registry, square, _ = shapes
    assert registry.register("square")(square) is square
    assert len(registry) == 2


def test_the_nearest_choice_then_all_of_them():
    assert did_you_mean("lrr", ["lr", "betas"]) == "did you mean 'lr'? choices: betas, lr"
    assert did_you_mean("xyz", ["lr", "betas"]) == "choices: betas, lr"
    assert did_you_mean("lr", []) == "choices: none"


def test_of_many_choices_only_the_nearest_is_given():
    names = ["resnet", *(f"x{number}" for number in range(LISTED))]
    assert did_you_mean("resnett", names) == "did you mean 'resnet'?"
    assert str(unknown_name("net", "resnett", names, shown=["b", "a"])).endswith("choices: a, b")
