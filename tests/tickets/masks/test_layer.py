"""Masks inside one decoder layer."""

import math

import pytest

from mth.config.choices import Budget
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import count_active
from mth.tickets.masks import active_counts, sample_mask
from mth.tickets.masks.layer import layer_tensors
from tests.tickets.counts import COUNTS, ONE_LAYER

FIRST, LAST = "first_layer", "last_layer"


@pytest.mark.parametrize("family", [FIRST, LAST])
def test_one_layer_with_either_budget(real, family):
    name, shapes = real
    number = 0 if family == FIRST else {"qwen2.5-0.5b": 23, "qwen2.5-1.5b": 27}[name]
    whole = sample_mask(shapes, MaskConfig(family, Budget.whole_layer), 99, 0)
    assert count_active(shapes, whole) == ONE_LAYER[name]
    matched = sample_mask(shapes, MaskConfig(family, Budget.matched), 99, 0)
    assert count_active(shapes, matched) == COUNTS[name][99][0]
    for indices in (whole, matched):
        touched = {tensor for tensor, index in indices.items() if index is None or index.size}
        assert touched
        assert all(tensor.startswith(f"model.layers.{number}.") for tensor in touched)
    counts = active_counts(shapes, 99, MaskConfig(family))
    assert counts == {tensor: index.size for tensor, index in matched.items()}
    share = COUNTS[name][99][0] / ONE_LAYER[name]
    assert all(abs(counts[t] - share * math.prod(shapes[t])) < 1 for t in layer_tensors(shapes, last=family == LAST))


def test_a_layer_that_cannot_hold_the_budget_is_an_error(real):
    with pytest.raises(UserError, match=r"mask\.family=first_layer has only .*whole_layer"):
        sample_mask(real[1], MaskConfig(FIRST), 90, 0)
    with pytest.raises(UserError, match="named by decoder layer"):
        sample_mask({"w": (10, 10)}, MaskConfig(FIRST), 50, 0)
