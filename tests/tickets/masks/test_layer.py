"""Masks inside one decoder layer."""

import math
from fractions import Fraction

import pytest

from mth.config.choices import Budget
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.indices import count_active
from mth.tickets.masks import active_counts, sample_mask
from mth.tickets.masks.layer import layer_tensors
from tests.tickets.counts import COUNTS, ONE_LAYER

FIRST, MIDDLE, LAST = "first_layer", "middle_layer", "last_layer"
NUMBER = {FIRST: {"qwen2.5-0.5b": 0, "qwen2.5-1.5b": 0}, MIDDLE: {"qwen2.5-0.5b": 12, "qwen2.5-1.5b": 14}}
NUMBER[LAST] = {"qwen2.5-0.5b": 23, "qwen2.5-1.5b": 27}


@pytest.mark.parametrize("family", NUMBER)
def test_one_layer_with_either_budget(real, family):
    name, shapes = real
    number = NUMBER[family][name]
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
    inside = layer_tensors(shapes, {FIRST: 0, MIDDLE: 0.5, LAST: 1}[family])
    exact = {tensor: Fraction(COUNTS[name][99][0] * math.prod(shapes[tensor]), ONE_LAYER[name]) for tensor in inside}
    assert all(counts[tensor] - math.floor(exact[tensor]) in (0, 1) for tensor in inside)
    up = [exact[tensor] % 1 for tensor in inside if counts[tensor] > exact[tensor]]
    down = [exact[tensor] % 1 for tensor in inside if counts[tensor] <= exact[tensor]]
    assert up and down and min(up) >= max(down)


@pytest.mark.parametrize(
    ("budget", "sizes", "expected"),
    [
        (10, (3, 5, 7), (2, 3, 5)),  # shares 2, 3.33, 4.67: the one left over goes to the largest remainder
        (10, (9, 2, 4), (6, 1, 3)),  # shares 6, 1.33, 2.67: neither to the largest tensor nor to the first
        (11, (2, 9, 4), (1, 7, 3)),  # shares 1.47, 6.6, 2.93: two left over
        (10, (5, 5, 5), (4, 3, 3)),  # equal remainders: in the order of the model's tensors
        (11, (5, 5, 5), (4, 4, 3)),
        (10, (1, 7, 7), (1, 5, 4)),  # three times .67, two left over
        (15, (3, 5, 7), (3, 5, 7)),
        (0, (3, 5, 7), (0, 0, 0)),
    ],
)
def test_rounding_follows_the_largest_remainders(budget, sizes, expected):
    """The whole model has `budget` active entries, all in the embedding: the layer is too small to have one of its own."""
    shapes = {"embed": (100 * budget,)} | {f"layers.0.{tensor}": (size,) for tensor, size in zip("abc", sizes, strict=True)}
    counts = active_counts(shapes, 99, MaskConfig(FIRST))
    assert counts == dict(zip(shapes, (0, *expected), strict=True))


def test_the_middle_of_a_few_layers():
    for layers, middle in ((1, 0), (2, 1), (3, 1), (12, 6)):
        shapes = {f"layers.{number}.w": (4,) for number in range(layers)}
        assert layer_tensors(shapes, 0.5) == [f"layers.{middle}.w"]


def test_a_layer_that_cannot_hold_the_budget_is_an_error(real):
    with pytest.raises(UserError, match=r"mask\.family=first_layer has only .*whole_layer"):
        sample_mask(real[1], MaskConfig(FIRST), 90, 0)
    with pytest.raises(UserError, match="named by decoder layer"):
        sample_mask({"w": (10, 10)}, MaskConfig(FIRST), 50, 0)
