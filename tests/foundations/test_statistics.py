"""Standard errors of means."""

import math

import pytest

from mth.foundations.statistics import mean, paired_error, plus_minus, standard_error


def test_standard_error_of_a_share():
    values = [1.0] * 3 + [0.0] * 7
    assert mean(values) == pytest.approx(0.3)
    assert standard_error(values) == pytest.approx(math.sqrt(0.3 * 0.7 / 9))
    assert standard_error([1.0]) is None


def test_a_paired_error_is_of_the_differences():
    before, after = [0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 1.0]
    assert paired_error(before, after) == standard_error([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert paired_error(before, after[:3]) is None


def test_text():
    assert plus_minus(0.8554, 0.0221) == "0.855 ± 0.022"
    assert plus_minus(0.25, None, "+") == "+0.250"
    assert plus_minus(-0.0004, 0.0, "+") == "+0.000 ± 0.000"
    assert plus_minus(0.5, float("nan")) == "0.500"
