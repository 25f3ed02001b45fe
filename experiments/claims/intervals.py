"""What a few seeds can say: means with intervals, and verdicts by them."""

import math
import statistics
from collections.abc import Sequence

import scipy.stats


def confidence_interval(values: Sequence[float]) -> float:
    """Half the width of the 95% interval of the mean, by Student's t; infinite for one value."""
    if len(values) < 2:
        return math.inf
    return (
        float(scipy.stats.t.ppf(0.975, len(values) - 1))
        * statistics.stdev(values)
        / math.sqrt(len(values))
    )


def verdict(differences: Sequence[float]) -> str:
    """Whether a claim, that these differences are positive, holds by the interval of their mean."""
    mean, half = statistics.mean(differences), confidence_interval(differences)
    if mean - half > 0:
        return "holds"
    return "does not hold" if mean + half < 0 else "undecided"


def percent(fractions: Sequence[float]) -> str:
    """For example `14.0 ± 2.1`: mean and interval of fractions of 1, in percent or points; one
    value has no interval.
    """
    return mean_and_interval([100 * fraction for fraction in fractions], 1)


def mean_and_interval(values: Sequence[float], digits: int) -> str:
    """For example `14.02 ± 2.13`, with so many digits after the point; one value has no
    interval.
    """
    mean, half = statistics.mean(values), confidence_interval(values)
    return f"{mean:.{digits}f}" + ("" if math.isinf(half) else f" ± {half:.{digits}f}")
