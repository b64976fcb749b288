import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.comparison.intervals import mean_interval, t_quantile


def test_three_seeds_by_hand():
    # Deviations -1, 0, 1: standard deviation 1; 4.3027 / sqrt(3).
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert found.half == pytest.approx(2.48414, abs=1e-4)
    assert not mean_interval([2.0, 3.0, 4.0]).holds_zero
    assert mean_interval([1.0, 2.0, 3.0]).holds_zero


def test_one_seed_has_no_interval():
    found = mean_interval([5.0])
    assert (found.mean, found.half, found.holds_zero) == (5.0, None, None)
    with pytest.raises(ValueError, match="mean of no values"):
        mean_interval([])


@pytest.mark.parametrize(("freedom", "value"), [(1, 12.7062), (2, 4.3027), (13, 2.1604), (30, 2.0423), (120, 1.9799)])
def test_quantiles_of_printed_tables(freedom, value):
    assert t_quantile(freedom) == pytest.approx(value, abs=1.1e-4)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=40), st.floats(-100, 100))
def test_a_shift_moves_the_mean_and_leaves_the_width(values, shift):
    one, other = mean_interval(values), mean_interval([value + shift for value in values])
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-9)
    assert other.half == pytest.approx(one.half, abs=1e-6)
