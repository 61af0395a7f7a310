"""Means and their standard errors."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    """Mean of at least one value."""
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values: sample std over the root of their number. None for fewer than two."""
    if len(values) < 2:
        return None
    center = mean(values)
    return math.sqrt(sum((value - center) ** 2 for value in values) / (len(values) - 1) / len(values))


def paired_error(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Standard error of the difference of two means over the same units, such as prompts. None if the numbers differ or are below two."""
    if len(before) != len(after):
        return None
    return standard_error([b - a for a, b in zip(before, after, strict=True)])


def plus_minus(value: float, error: float | None, sign: str = "") -> str:
    """`0.855 ± 0.022`, or the value alone if its standard error is None or NaN, which is not known.

    sign: `+` writes the sign of a positive value too. A value that rounds to zero has no minus.
    """
    return f"{value:{sign}z.3f}" + ("" if error is None or math.isnan(error) else f" ± {error:.3f}")
