"""Masks: exact counts on the real Qwen2.5 shapes, uniformity, independence, stability."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mth.config import Budget, Init, Magnitude, MaskConfig, MaskFamily, ModelConfig
from mth.errors import UserError
from mth.policy import parameter_shapes
from mth.tickets.sampling import (
    active_count,
    active_counts,
    count_active,
    layer_tensors,
    mask_sha256,
    sample_mask,
    sample_without_replacement,
    tensor_stream,
    total_parameters,
)

# Paper notes, section 1: sum of per-tensor floors, and tensors with k = 0.
COUNTS = {
    "qwen2.5-0.5b": {
        99: (4_940_162, 0),
        99.5: (2_470_021, 48),
        99.9: (493_878, 121),
        99.95: (246_939, 121),
        99.99: (49_301, 121),
        99.999: (4_889, 121),
    },
    "qwen2.5-1.5b": {
        99: (15_436_967, 0),
        99.5: (7_718_399, 0),
        99.9: (1_543_578, 56),
        99.95: (771_690, 141),
        99.99: (154_265, 141),
        99.999: (15_297, 141),
    },
}
TOTALS = {"qwen2.5-0.5b": (494_032_768, 290), "qwen2.5-1.5b": (1_543_714_304, 338)}


def random_mask(name, shape, percent, seed):
    return sample_mask({name: shape}, MaskFamily.random, percent, seed)[name]


@pytest.fixture(scope="module", params=sorted(COUNTS))
def real(request):
    return request.param, parameter_shapes(ModelConfig(name=request.param, path="Qwen/none", init=Init.random))


def test_totals_count_the_tied_embedding_once(real):
    name, shapes = real
    assert (total_parameters(shapes.values()), len(shapes)) == TOTALS[name]
    assert "lm_head.weight" not in shapes


def test_active_counts_of_the_paper(real):
    name, shapes = real
    for percent, (active, empty) in COUNTS[name].items():
        counts = [active_count(math.prod(shape), percent) for shape in shapes.values()]
        assert (sum(counts), counts.count(0)) == (active, empty)


def test_sampled_masks_have_those_counts(real):
    name, shapes = real
    for percent in (99, 99.99):
        indices = sample_mask(shapes, MaskFamily.random, percent, mask_seed=42)
        assert count_active(shapes, indices) == COUNTS[name][percent][0]
        for tensor, index in indices.items():
            assert index.dtype == np.int32
            assert (np.diff(index) > 0).all()
            assert index.size == 0 or (index[0] >= 0 and index[-1] < math.prod(shapes[tensor]))


def test_counts_are_exact_where_floating_point_is_not():
    assert active_count(10_000, 99.99) == 1  # 10000 * (1 - 0.9999) is 0.99999... in doubles
    assert active_count(1000, 99.9) == 1
    assert active_count(100, 0) == 100


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**31), st.data())
def test_samples_are_distinct_sorted_and_in_range(size, seed, data):
    count = data.draw(st.integers(0, size))
    index = sample_without_replacement(tensor_stream(seed, "w"), size, count)
    assert index.size == count
    assert (np.diff(index) > 0).all()
    assert count == 0 or (index.min() >= 0 and index.max() < size)


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 5), (100, 10), (33, 17)])
def test_every_entry_is_equally_likely(size, count):
    rounds = 6000
    hits = Counter(i for seed in range(rounds) for i in sample_without_replacement(tensor_stream(seed, "w"), size, count).tolist())
    expected = rounds * count / size
    chi2 = sum((hits[i] - expected) ** 2 / expected for i in range(size)) / (1 - count / size)
    assert chi2 < size + 5 * math.sqrt(2 * size)  # chi-square with about `size` degrees of freedom


def test_every_subset_is_equally_likely():
    rounds = 6000
    seen = Counter(tuple(sample_without_replacement(tensor_stream(seed, "w"), 5, 2).tolist()) for seed in range(rounds))
    assert len(seen) == 10
    assert all(abs(count - rounds / 10) < 5 * math.sqrt(rounds / 10) for count in seen.values())


def test_equal_shapes_get_different_masks_and_seeds_differ():
    a, b = random_mask("a", (100, 100), 99, 0), random_mask("b", (100, 100), 99, 0)
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, random_mask("a", (100, 100), 99, 1))
    assert np.array_equal(a, random_mask("a", (100, 100), 99, 0))


def test_masks_never_change_between_versions():
    """A published seed names a mask for ever: this hash may only change together with the tag inside `tensor_stream`."""
    shapes = {"model.embed_tokens.weight": (1000, 64), "model.norm.weight": (64,)}
    assert random_mask("model.norm.weight", (1000,), 99, 42).tolist() == [30, 42, 67, 414, 451, 470, 548, 583, 728, 839]
    assert (
        mask_sha256(shapes, sample_mask(shapes, MaskFamily.random, 99, 0))
        == "b011ba87c55b86a587c71951ab987c008247b3fd7fe532dbb0b2ddcee9909cfe"
    )


def test_dense_stores_no_index():
    shapes = {"w": (4, 5), "b": (5,)}
    indices = sample_mask(shapes, MaskFamily.random, 0, 0)
    assert indices == {"w": None, "b": None}
    assert count_active(shapes, indices) == 25


def test_two_masks_overlap_as_chance_says():
    a, b = (random_mask("w", (2000, 1000), 99, seed) for seed in (0, 10))
    shared = np.intersect1d(a, b).size
    jaccard = shared / (a.size + b.size - shared)
    assert jaccard == pytest.approx(0.01 / 1.99, rel=0.4)  # p / (2 - p) is 0.005025; 200 shared entries expected


def test_nothing_active_is_an_error():
    with pytest.raises(UserError, match=r"sparsity\.percent=99\.999 leaves no active entry"):
        sample_mask({"w": (10, 10)}, MaskFamily.random, 99.999, 0)


FIRST, LAST = MaskFamily.first_layer, MaskFamily.last_layer
ONE_LAYER = {"qwen2.5-0.5b": 14_912_384, "qwen2.5-1.5b": 46_797_824}  # entries of one decoder layer, paper notes section 5


@pytest.mark.parametrize("family", [FIRST, LAST])
def test_one_layer_with_either_budget(real, family):
    name, shapes = real
    number = 0 if family is FIRST else {"qwen2.5-0.5b": 23, "qwen2.5-1.5b": 27}[name]
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
    assert all(abs(counts[t] - share * math.prod(shapes[t])) < 1 for t in layer_tensors(shapes, last=family is LAST))


def test_a_layer_that_cannot_hold_the_budget_is_an_error(real):
    with pytest.raises(UserError, match=r"mask\.family=first_layer has only .*whole_layer"):
        sample_mask(real[1], MaskConfig(FIRST), 90, 0)
    with pytest.raises(UserError, match="named by decoder layer"):
        sample_mask({"w": (10, 10)}, MaskConfig(FIRST), 50, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.sampled_from([0, 50, 90]), st.sampled_from(Magnitude))
def test_magnitude_takes_the_extreme_entries_and_the_first_of_equal_ones(values, percent, which):
    values = [0, *values]
    weight = np.array(values, dtype=np.float32)
    shapes = {"w": (len(values),), "b": (1000,)}
    weights = {"w": weight, "b": np.arange(1000, dtype=np.float32)}
    index = sample_mask(shapes, MaskConfig(MaskFamily.magnitude, magnitude=which), percent, 0, weights.__getitem__)["w"]
    sign = -1 if which is Magnitude.largest else 1
    count = active_count(len(values), percent)
    expected = sorted(sorted(range(len(values)), key=lambda i: (sign * abs(values[i]), i))[:count])
    assert expected == (list(range(len(values))) if index is None else index.tolist())


def test_magnitude_without_weights_is_an_error():
    with pytest.raises(UserError, match=r"mask\.family=magnitude is chosen by the weights"):
        sample_mask({"w": (10, 10)}, MaskFamily.magnitude, 50, 0)
