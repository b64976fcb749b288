"""Means over seeds with 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

# Student's t, 97.5 % quantile, for 1 to 12 degrees of freedom.
T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788)


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its 95 % interval; None for a single value, which has no spread."""

    mean: float
    half: float | None

    @property
    def holds_zero(self) -> bool | None:
        """Whether the mean may be chance; None where there is no interval."""
        return None if self.half is None else abs(self.mean) <= self.half


def t_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t with ``freedom`` >= 1 degrees of freedom, to 1e-4.

    Beyond the table by the expansion in 1 / freedom (Abramowitz and Stegun, 26.7.5).
    """
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % interval by Student's t.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("the mean of no values; expected one or more")
    n = len(values)
    half = t_quantile(n - 1) * stdev(values) / n**0.5 if n > 1 else None
    return Interval(fmean(values), half)
