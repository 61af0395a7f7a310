"""Masks by magnitude against sorting."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mth.config.choices import Magnitude
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import active_count
from mth.tickets.masks import sample_mask


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.sampled_from([0, 50, 90]), st.sampled_from(Magnitude))
def test_magnitude_takes_the_extreme_entries_and_the_first_of_equal_ones(values, percent, which):
    values = [0, *values]
    weight = np.array(values, dtype=np.float32)
    shapes = {"w": (len(values),), "b": (1000,)}
    weights = {"w": weight, "b": np.arange(1000, dtype=np.float32)}
    index = sample_mask(shapes, MaskConfig("magnitude", magnitude=which), percent, 0, weights.__getitem__)["w"]
    sign = -1 if which is Magnitude.largest else 1
    count = active_count(len(values), percent)
    expected = sorted(sorted(range(len(values)), key=lambda i: (sign * abs(values[i]), i))[:count])
    assert expected == (list(range(len(values))) if index is None else index.tolist())


def test_magnitude_without_weights_is_an_error():
    with pytest.raises(UserError, match=r"mask\.family=magnitude is chosen by the weights"):
        sample_mask({"w": (10, 10)}, "magnitude", 50, 0)
