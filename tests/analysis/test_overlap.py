"""Overlap: exact counts against sets, any family, the expectation for random masks."""

import itertools

import numpy as np
import pytest

from mth.analysis import overlap as module
from mth.analysis.overlap import Mask, expected_jaccard, overlap, shared_entries
from mth.config.choices import Budget
from mth.config.schema import MaskConfig
from mth.foundations.errors import UserError
from mth.tickets.masks import sample_mask

SHAPES = {"model.layers.0.a": (50, 40), "model.layers.0.b": (50,), "model.layers.1.a": (50, 40), "embed": (3000,)}


def as_sets(mask):
    indices = sample_mask(SHAPES, mask.config, mask.percent, mask.seed, weights=lambda name: np.arange(np.prod(SHAPES[name])) * 1.0)
    return {name: set(range(int(np.prod(SHAPES[name])))) if index is None else set(index.tolist()) for name, index in indices.items()}


@pytest.mark.parametrize("chunk", [7, 1000, 2**22])
def test_counts_equal_those_of_sets_for_every_family_pair_and_tensor(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk)
    masks = [Mask(seed, percent) for seed, percent in itertools.product((0, 10, 42), (60.0, 90.0))]
    masks += [Mask(1, 0.0), Mask(2, 90, MaskConfig("first_layer")), Mask(2, 90, MaskConfig("magnitude"))]
    masks += [Mask(2, 90, MaskConfig("last_layer", Budget.whole_layer))]
    result = overlap(SHAPES, masks, weights=lambda name: np.arange(np.prod(SHAPES[name])) * 1.0)
    sets = [as_sets(mask) for mask in masks]
    for t, name in enumerate(SHAPES):
        for i, j in itertools.product(range(len(masks)), repeat=2):
            assert result.shared[t, i, j] == len(sets[i][name] & sets[j][name])
    both = sum(len(sets[0][name] & sets[1][name]) for name in SHAPES)
    either = sum(len(sets[0][name] | sets[1][name]) for name in SHAPES)
    assert result.jaccard()[0, 1] == pytest.approx(both / either, rel=1e-12)
    a, b = sets[0]["embed"], sets[2]["embed"]
    assert result.jaccard("embed")[0, 2] == pytest.approx(len(a & b) / len(a | b), rel=1e-12)


def test_more_masks_than_a_word_has_bits():
    random = np.random.default_rng(0)
    lists = [np.sort(random.choice(500, 100, replace=False)).astype(np.int32) for _ in range(70)]
    shared = shared_entries(lists, 500)
    assert all(shared[i, j] == np.intersect1d(lists[i], lists[j]).size for i in range(70) for j in range(70))


def test_random_masks_overlap_as_chance_says():
    shapes = {"a": (2000, 1000), "b": (1000, 1000)}
    pairs = overlap(shapes, [Mask(seed) for seed in (0, 10, 42, 1002, 2001)]).pairs()
    assert pairs.size == 10
    assert expected_jaccard(99) == pytest.approx(1 / 199)
    assert pairs.mean() == pytest.approx(1 / 199, rel=0.1)  # 10 pairs of 300 expected common entries: standard error 2 %


def test_one_mask_has_no_pair():
    with pytest.raises(UserError, match="at least two masks"):
        overlap(SHAPES, [Mask(0)])
